"""Make operations that write into their input write a new tensor instead.

Once parts are removed and values are read a second time, a tensor that is written in place may be
one that something else needs: the sum would be wrong, or its gradient could not be computed.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from passes.architecture.steps import may_be_view, traced_module
from passes.graph import ModelGraph
from passes.tracing.symbolic import follow_flags

_OPERATORS: Mapping[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def out_of_place(graph: ModelGraph) -> ModelGraph:
    """The same model, in whose graph nothing writes into its input; weights are shared.

    What reads a tensor after it was written gets the new one. An operation stays as it is where
    the tensor may be a view of another, or have views.

    Args:
        graph: The traced model; it is not changed.

    Raises:
        PreconditionError: The model as a whole could not be traced.
    """
    original = traced_module(graph)
    if not any(_writes_input(original, node) for node in original.graph.nodes):
        return graph
    module = GraphModule(original, copy.deepcopy(original.graph), type(original).__name__)
    for old, new in zip(original.graph.nodes, module.graph.nodes, strict=True):
        if old.name != new.name:
            new._rename(old.name)
    _rewrite(module)
    follow_flags(module, original)
    module.graph.lint()
    module.recompile()
    return replace(graph, graph_module=module)


def _rewrite(module: GraphModule) -> None:
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    writing = [node for node in order if _writes_input(module, node)]
    stay = {node for node in writing if _has_views(module, node)}
    layers = {str(node.target) for node in stay if node.op == "call_module"}
    for node in writing:
        source = _written(node)
        if source is None or node in stay or (node.op == "call_module" and node.target in layers):
            continue
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)
        _write_new(module, node)


def _write_new(module: GraphModule, node: Node) -> None:
    if node.op == "call_module":
        path, _, name = str(node.target).rpartition(".")
        layer: nn.Module = copy.copy(module.get_submodule(str(node.target)))
        vars(layer)["inplace"] = False
        setattr(module.get_submodule(path), name, layer)
    elif node.op == "call_method":
        node.target = str(node.target)[:-1]
    elif node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
    elif "inplace" in node.kwargs:
        node.update_kwarg("inplace", False)
    elif _flag(node) >= 0:
        node.update_arg(_flag(node), False)
    else:
        node.target = _plain_function(node.target)


def _writes_input(module: GraphModule, node: Node) -> bool:
    """Whether a node writes into its first argument, and has a form that does not."""
    if node.op == "call_module":
        return getattr(module.get_submodule(str(node.target)), "inplace", False) is True
    name = str(node.target)
    if node.op == "call_method":
        return name.endswith("_") and name[-2:] != "__" and hasattr(torch.Tensor, name[:-1])
    if node.op != "call_function":
        return False
    if node.target in _OPERATORS or node.kwargs.get("inplace") is True or _flag(node) >= 0:
        return True
    return _plain_function(node.target) is not None


def _plain_function(target: Any) -> Any:
    """The function that does the same out of place; `None` if this one is no other."""
    name = getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    holders = (inspect.getmodule(target), torch, nn.functional)
    found = (getattr(holder, name[:-1], None) for holder in holders)
    return next((function for function in found if callable(function)), None)


def _flag(node: Node) -> int:
    """Place of the argument `inplace` of a function, if it is given there and true; else -1."""
    target: Any = node.target
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return -1
    place = names.index("inplace") if "inplace" in names else -1
    return place if 0 <= place < len(node.args) and node.args[place] is True else -1


def _has_views(module: GraphModule, node: Node) -> bool:
    """Whether the tensor that a node writes into may share its memory with another one.

    A view that is not used again, or that is all that is left of its tensor, does no harm; but
    such cases are not told apart.
    """
    source = _written(node)
    if source is None:
        return False
    order = {n: place for place, n in enumerate(node.graph.nodes)}
    if may_be_view(module, source):
        return any(
            order[user] > order[node] for base in source.all_input_nodes for user in base.users
        )
    views = [user for user in source.users if may_be_view(module, user)]
    return any(order[user] > order[node] for view in views for user in view.users)


def _written(node: Node) -> Node | None:
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, Node) else None
