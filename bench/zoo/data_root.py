"""Where data sets and trained weights lie that the project does not contain."""

from __future__ import annotations

import os
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def data_root() -> Path:
    """Folder of data sets and weights; it may not exist.

    The environment variable `TRANSFORM_DATA` names it; without it, `shared/data` beside the
    repository.
    """
    named = os.environ.get("TRANSFORM_DATA")
    return Path(named) if named else _REPOSITORY.parent / "shared" / "data"
