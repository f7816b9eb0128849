"""How a graph leaves: ONNX, checked against torch. Only here is `onnx` used.

Importing this package loads neither torch nor ONNX: `unpack` is looked up on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from energy_model._house import require_own_rooms

require_own_rooms()

if TYPE_CHECKING:
    from export.archive_file import unpack

_HOMES = {"unpack": "export.archive_file"}

__all__ = ["unpack"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
