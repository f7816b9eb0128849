"""Nested values with tensors in them, as JSON beside a table of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from energy_model.errors import StorageError


def pack_tree(value: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Encode numbers, strings, tensors, and lists, tuples and dicts of them.

    Args:
        value: What to encode.
        tensors: Takes the tensors up, detached and on the CPU.
        prefix: Start of the names of the tensors.

    Returns:
        A JSON value for `unpack_tree`.

    Raises:
        StorageError: A value of another type.
    """
    if isinstance(value, Tensor):
        name = f"{prefix}{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [[_key(k), pack_tree(v, tensors, prefix)] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack_tree(item, tensors, prefix) for item in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise StorageError(f"{type(value).__name__} cannot be written down", where=prefix)


def _key(key: Any) -> Any:
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise StorageError(f"a dict key of type {type(key).__name__} cannot be written down")
    return key


def unpack_tree(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Decode what `pack_tree` wrote.

    Raises:
        StorageError: The data is damaged.
    """
    if not isinstance(data, dict) or len(data) != 1:
        raise StorageError("a damaged value", remedy="Save it again.")
    [(kind, value)] = data.items()
    if kind == "tensor" and value in tensors:
        return tensors[value]
    if kind == "dict":
        return {key: unpack_tree(item, tensors) for key, item in value}
    if kind == "tuple":
        return tuple(unpack_tree(item, tensors) for item in value)
    if kind == "list":
        return [unpack_tree(item, tensors) for item in value]
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "value":
        return value
    raise StorageError(f"a damaged value of kind {kind!r}", remedy="Save it again.")
