"""The five packages of the project stand beside each other, or nothing works: check that they do.

`transform`, `export` and `bench` are everyday names. A user's own `export/` or `transform.py`
earlier on the path would be imported in place of ours and fail much later, far from the cause.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("energy_model", "passes", "export", "bench", "transform")
_ROOT = Path(__file__).resolve().parent.parent


def _location(room: str) -> Path | None:
    spec = find_spec(room)
    if spec is None:
        return None
    if spec.origin is None or spec.submodule_search_locations is None:
        places = list(spec.submodule_search_locations or ())
        return Path(places[0]) if places else Path(spec.origin or room)
    return Path(spec.origin).parent


def require_own_rooms() -> None:
    """Check that each of the five packages is found where this file lies.

    Raises:
        ImportError: Another module of the same name comes first on the path; it is named.
    """
    for room in ROOMS:
        place = _location(room)
        if place is None or place.resolve() != _ROOT / room:
            raise ImportError(
                f"the compiler's package {room!r} is shadowed: Python finds {place} before "
                f"{_ROOT / room}. Rename or move that file or folder, or start Python elsewhere.",
                name=room,
                path=str(place),
            )


def main() -> None:
    """Run the command line, after checking that nothing shadows it (entry point `transform`)."""
    try:
        require_own_rooms()
    except ImportError as error:
        sys.exit(f"transform: {error}")
    try:
        import_module("transform.cli").main()
    except KeyboardInterrupt:
        sys.exit(130)
