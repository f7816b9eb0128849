"""The nodes of a graph as JSON, and back.

fx turns nodes into Python code, so whatever of a node fx writes into that code without quoting it
(names, keywords, methods, attributes, paths) is checked here, when it is written and when it is
read.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from energy_model.errors import StorageError
from passes.storage.allow_list import (
    function_name,
    function_named,
    is_attribute,
    is_identifier,
    is_method,
    is_path,
)
from passes.storage.values import damaged, decode_value, encode_value

Function = Callable[..., Any]
_FIELDS = {"op", "name", "target", "args", "kwargs"}


def encode_node(node: fx.Node) -> dict[str, Any]:
    """Write one node as JSON.

    Raises:
        StorageError: The node names something that could not be read back.
    """
    record = {
        "op": node.op,
        "name": node.name,
        "target": _encode_target(node),
        "args": [encode_value(value, node.name) for value in node.args],
        "kwargs": {name: encode_value(value, node.name) for name, value in node.kwargs.items()},
    }
    if node.meta.get("is_wrapped", False):
        record["wrapped"] = True  # fx needs the mark to trace the module again as it was
    _check_target(node.op, node.target, node.args, dict(node.kwargs), node.name)
    return record


def _encode_target(node: fx.Node) -> Any:
    if callable(node.target):
        name = function_name(node.target)
        return name or {"custom": f"{node.target.__module__}.{node.target.__qualname__}"}
    return node.target


def decode_nodes(
    records: list[Any], root: nn.Module, functions: Mapping[str, Function]
) -> fx.Graph:
    """Rebuild a graph.

    Args:
        records: What `encode_node` returned for each node, in order; untrusted.
        root: The model that holds the modules and tensors which the nodes name.
        functions: The user's own functions by name.

    Raises:
        StorageError: A node is malformed, or names something that it may not.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    inputs: set[str] = set()
    for record in records:
        node = _decode_node(record, graph, nodes, root, functions)
        if node.op == "placeholder" and node.target in inputs:
            raise damaged("two inputs of one name", node.name)
        inputs.update([str(node.target)] if node.op == "placeholder" else [])
        nodes[node.name] = node
    _check_order([node.op for node in graph.nodes])
    return graph


def _decode_node(
    record: object,
    graph: fx.Graph,
    nodes: Mapping[str, fx.Node],
    root: nn.Module,
    functions: Mapping[str, Function],
) -> fx.Node:
    if not isinstance(record, dict) or set(record) - {"wrapped"} != _FIELDS:
        raise damaged("a malformed node", "nodes")
    name, op, given = record["name"], record["op"], record["args"]
    if not is_identifier(name):
        raise damaged(f"the node name {name!r}", "nodes")
    if not isinstance(given, list) or not isinstance(record["kwargs"], dict):
        raise damaged("malformed arguments", name)
    args = tuple(decode_value(value, nodes, name) for value in given)
    kwargs = {key: decode_value(value, nodes, name) for key, value in record["kwargs"].items()}
    target = _decode_target(op, record["target"], functions, name)
    _check_target(op, target, args, kwargs, name)
    _check_present(op, target, root, name)
    node = graph.create_node(op, target, args, kwargs, name=name)
    if node.name != name:  # fx renames what is taken, and what shadows a builtin
        raise damaged(f"the node name {name!r} twice, or one that Python uses", "nodes")
    if record.get("wrapped") is True and op == "call_function":
        node.meta["is_wrapped"] = True
    return node


def _decode_target(op: object, data: object, functions: Mapping[str, Function], name: str) -> Any:
    if op != "call_function":
        return data
    if isinstance(data, str):
        found = function_named(data)
        if found is None:
            raise damaged(f"the function {data!r}, which is not on the allow-list", name)
        return found
    custom = data.get("custom") if isinstance(data, dict) else None
    if not isinstance(custom, str):
        raise damaged("a malformed function", name)
    if custom not in functions:
        raise StorageError(
            f"the graph calls {custom}, which is not part of torch or torchvision",
            where=name,
            remedy="Pass model=..., an instance of the class that was compressed.",
        )
    return functions[custom]


def _check_target(
    op: object, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> None:
    """Check everything that fx writes into its code unquoted.

    Raises:
        StorageError: The node cannot be stored, or was tampered with.
    """
    for key in kwargs:
        if not is_identifier(key):
            raise _refused(f"the keyword {key!r}", name)
    match op:
        case "placeholder":
            _check_input(target, args, name)
        case "call_method" if not is_method(target) or not _starts_with_node(args):
            raise _refused(f"the method {target!r}", name)
        case "call_module" | "get_attr" if not is_path(target):
            raise _refused(f"the path {target!r}", name)
        case "call_function" if target is builtins.getattr:
            plain = len(args) == 2 and not kwargs and _starts_with_node(args)
            if not plain or not is_attribute(args[1]):
                raise _refused(f"the attribute {args[1:]!r}", name)
        case "output" if len(args) != 1 or target != "output":
            raise _refused("a malformed output", name)
        case "call_method" | "call_module" | "get_attr" | "call_function" | "output":
            pass
        case _:
            raise _refused(f"the operation {op!r}", name)


def _check_input(target: object, args: tuple[Any, ...], name: str) -> None:
    stem = target.removeprefix("*").removeprefix("*") if isinstance(target, str) else ""
    # A builtin may be the name of an input (`input` often is); the names that fx relies on may not.
    if not is_identifier(stem) or keyword.issoftkeyword(stem) or stem in _USED_BY_FX:
        raise _refused(f"the input name {target!r}", name)
    if len(args) > 1 or _holds_node(args):
        raise _refused("the default of an input", name)


_USED_BY_FX = frozenset({"inf", "nan", "NoneType", "device", "fx_pytree", "pytree", "getattr"})


def _holds_node(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_node, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_node, value))
    return isinstance(value, fx.Node)


def _starts_with_node(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], fx.Node)


def _refused(what: str, name: str) -> StorageError:
    return StorageError(
        f"{what} is not one that a stored graph may use",
        where=name,
        remedy="Move this code into a module of its own; if you are loading, the file is damaged "
        "or not to be trusted.",
    )


def _check_present(op: object, target: object, root: nn.Module, name: str) -> None:
    if op not in ("call_module", "get_attr"):
        return
    parent, _, last = str(target).rpartition(".")
    try:
        found = getattr(root.get_submodule(parent), last)
    except AttributeError as error:
        raise damaged(f"the path {target!r}, where nothing is", name) from error
    if not isinstance(found, nn.Module if op == "call_module" else Tensor):
        raise damaged(f"the path {target!r}, where something else is", name)


def _check_order(ops: list[str]) -> None:
    if ops.count("output") != 1 or ops[-1] != "output":
        raise damaged("no output at its end", "nodes")
    first = next(i for i, op in enumerate(ops) if op != "placeholder")
    if "placeholder" in ops[first:]:
        raise damaged("an input after the first operation", "nodes")
