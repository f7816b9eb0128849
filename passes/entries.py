"""What other packages register, loaded with an error that names them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from energy_model.errors import CompressionError


def told(entry: EntryPoint) -> str:
    """An entry point, for errors."""
    return f"{entry.name} = {entry.value}"


def loaded(entry: EntryPoint, what: str) -> Any:
    """The object behind an entry point.

    Args:
        entry: The entry point.
        what: What it is, for errors: `"method"`.

    Raises:
        CompressionError: It cannot be loaded.
    """
    try:
        return entry.load()
    except Exception as error:
        raise CompressionError(
            f"the {what} cannot be loaded: {type(error).__name__}: {error}",
            where=told(entry),
            remedy="Repair or uninstall the package that registers it.",
        ) from error
