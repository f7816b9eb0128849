"""The arguments of graph nodes as JSON, and back.

JSON's own types stand for themselves (a JSON list is a Python list); everything else is an object
with exactly one key, its tag: `{"tuple": [...]}`, `{"float": "nan"}`, `{"node": "conv1"}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from energy_model.errors import StorageError

_MAX_DEPTH = 40


def _named(kind: type) -> Mapping[str, Any]:
    found = {
        str(value).removeprefix("torch."): value
        for value in vars(torch).values()
        if isinstance(value, kind)
    }
    return dict(sorted(found.items()))


_ENUMS: Mapping[str, Mapping[str, Any]] = {
    "dtype": _named(torch.dtype),
    "memory_format": _named(torch.memory_format),
    "layout": _named(torch.layout),
}


def encode_value(value: object, where: str, depth: int = 0) -> Any:
    """Write one argument as JSON.

    Args:
        value: A constant, an fx node, or a nesting of them in tuples, lists, dicts and slices.
        where: What the value belongs to, for errors.
        depth: How many levels lie above this one.

    Raises:
        StorageError: For a value of another type, or one nested too deeply.
    """
    _check_depth(depth, where)
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, table in _ENUMS.items():
        name = str(value).removeprefix("torch.")
        if type(value) is type(next(iter(table.values()))) and table.get(name) == value:
            return {tag: name}
    return _encode_container(value, where, depth + 1)


def _encode_container(value: object, where: str, depth: int) -> Any:
    if isinstance(value, list):
        return [encode_value(item, where, depth) for item in value]
    if isinstance(value, torch.Size):
        return {"size": [int(item) for item in value]}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [encode_value(item, where, depth) for item in value]}
    if isinstance(value, slice):
        return {
            "slice": [encode_value(v, where, depth) for v in (value.start, value.stop, value.step)]
        }
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        pairs = value.items()
        return {
            "dict": [
                [encode_value(k, where, depth), encode_value(v, where, depth)] for k, v in pairs
            ]
        }
    raise StorageError(
        f"an argument of type {type(value).__module__}.{type(value).__qualname__} cannot be stored",
        where=where,
        remedy="Arguments may be numbers, strings, dtypes, devices, and tuples, lists, dicts or ."
        "slices of them; keep anything else inside a module of its own.",
    )


def decode_value(data: object, nodes: Mapping[str, fx.Node], where: str, depth: int = 0) -> Any:
    """Read one argument back.

    Args:
        data: What `encode_value` wrote; untrusted.
        nodes: The nodes that may be referred to, by name.
        where: What the value belongs to, for errors.
        depth: How many levels lie above this one.

    Raises:
        StorageError: For anything that `encode_value` cannot have written.
    """
    _check_depth(depth, where)
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode_value(item, nodes, where, depth + 1) for item in data]
    if isinstance(data, dict) and len(data) == 1:
        ((tag, payload),) = data.items()
        if tag in _TAGS:
            return _TAGS[tag](payload, nodes, where, depth + 1)
    raise damaged(f"an argument of unknown form {_shown(data)}", where)


def damaged(what: str, where: str) -> StorageError:
    """The error for a stored graph that we cannot have written."""
    return StorageError(
        f"the stored graph holds {what}",
        where=where,
        remedy="The file is damaged, or was written by something else: save the model again.",
    )


def _decode_node(payload: object, nodes: Mapping[str, fx.Node], where: str, _: int) -> fx.Node:
    if isinstance(payload, str) and payload in nodes:
        return nodes[payload]
    raise damaged(f"a reference to the node {_shown(payload)}, which does not come before", where)


def _decode_float(payload: object, _n: object, where: str, _: int) -> float:
    if payload in ("inf", "-inf", "nan"):
        return float(str(payload))
    raise damaged(f"the float {_shown(payload)}", where)


def _decode_ellipsis(payload: object, _n: object, where: str, _: int) -> Any:
    if payload is True:
        return ...
    raise damaged("a malformed ellipsis", where)


def _decode_device(payload: object, _n: object, where: str, _: int) -> torch.device:
    try:
        return torch.device(str(payload))
    except RuntimeError as error:
        raise damaged(f"the device {_shown(payload)}", where) from error


def _decode_enum(tag: str) -> Callable[..., Any]:
    def decode(payload: object, _n: object, where: str, _: int) -> Any:
        if isinstance(payload, str) and payload in _ENUMS[tag]:
            return _ENUMS[tag][payload]
        raise damaged(f"the {tag} {_shown(payload)}", where)

    return decode


def _decode_tuple(
    payload: object, nodes: Mapping[str, fx.Node], where: str, depth: int
) -> tuple[Any, ...]:
    return tuple(decode_value(item, nodes, where, depth) for item in _items(payload, where))


def _decode_size(payload: object, _n: object, where: str, _: int) -> torch.Size:
    return torch.Size(_integers(payload, where))


def _decode_slice(payload: object, nodes: Mapping[str, fx.Node], where: str, depth: int) -> slice:
    if len(_items(payload, where)) != 3:
        raise damaged("a malformed slice", where)
    return slice(*_decode_tuple(payload, nodes, where, depth))


def _decode_range(payload: object, _n: object, where: str, _: int) -> range:
    bounds = _integers(payload, where)
    if len(bounds) != 3 or bounds[2] == 0:
        raise damaged("a malformed range", where)
    return range(*bounds)


def _decode_dict(
    payload: object, nodes: Mapping[str, fx.Node], where: str, depth: int
) -> dict[Any, Any]:
    pairs = [_items(pair, where) for pair in _items(payload, where)]
    if any(len(pair) != 2 or not isinstance(pair[0], str | int) for pair in pairs):
        raise damaged("a malformed dict", where)
    return {key: decode_value(value, nodes, where, depth) for key, value in pairs}


_TAGS: Mapping[str, Callable[..., Any]] = {
    "node": _decode_node,
    "float": _decode_float,
    "ellipsis": _decode_ellipsis,
    "device": _decode_device,
    "tuple": _decode_tuple,
    "size": _decode_size,
    "slice": _decode_slice,
    "range": _decode_range,
    "dict": _decode_dict,
    **{tag: _decode_enum(tag) for tag in _ENUMS},
}


def _items(payload: object, where: str) -> list[Any]:
    if isinstance(payload, list):
        return payload
    raise damaged(f"{_shown(payload)} where a list belongs", where)


def _integers(payload: object, where: str) -> list[int]:
    items = _items(payload, where)
    if all(type(item) is int and abs(item) < 2**63 for item in items):
        return items
    raise damaged(f"{_shown(payload)} where integers belong", where)


def _check_depth(depth: int, where: str) -> None:
    if depth > _MAX_DEPTH:
        raise StorageError(
            f"arguments are nested more than {_MAX_DEPTH} levels deep",
            where=where,
            remedy="No model needs this: check where the graph comes from.",
        )


def _shown(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
