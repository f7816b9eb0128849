"""Walk over a graph once and give every tensor its slots."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes.structure import movement, pointwise
from passes.structure.context import (
    Call,
    Context,
    Layout,
    Rule,
    Table,
    kept_whole,
    no_rule,
)
from passes.structure.record import Shape
from passes.structure.rules import BY_NAME, FUNCTIONS, LAYERS, METHODS
from passes.structure.slots import along

_ATTRIBUTES = ("T", "mT", "data")


def walk(module: GraphModule, found: dict[Node, Any]) -> tuple[Context, dict[Node, Any]]:
    """Apply the rule of every node.

    Args:
        module: The traced graph.
        found: What every node returns, as `record` gives it.

    Returns:
        What was learnt, and the value of every node with tensors as layouts.
    """
    context = Context(module)
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        values[node] = _value(context, node, values, found.get(node))
    return context, values


def _value(context: Context, node: Node, values: dict[Node, Any], result: Any) -> Any:
    if node.op == "output":
        for leaf in pytree.tree_leaves(map_arg(node.args, values.__getitem__)):
            if isinstance(leaf, Layout):
                context.freeze(leaf, "is an output of the model")
        return None
    if not any(isinstance(leaf, Shape) for leaf in pytree.tree_leaves(result)):
        return result
    if node.op == "get_attr":
        return _parameter(context.module, node, result)
    if node.op == "placeholder":
        return pytree.tree_map_only(Shape, lambda s: kept_whole(s.sizes), result)
    layer = context.module.get_submodule(str(node.target)) if node.op == "call_module" else None
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    call = Call(node, tuple(args), dict(kwargs), result, layer)
    return _rule(call)(context, call)


def _parameter(module: GraphModule, node: Node, result: Any) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    if not isinstance(tensor, Tensor) or not isinstance(result, Shape):
        return pytree.tree_map_only(Shape, lambda s: kept_whole(s.sizes), result)
    rank = len(result.sizes)
    tables = tuple(
        Table(tensor, dim, along(np.arange(size, dtype=np.int64), dim, rank))
        for dim, size in enumerate(result.sizes)
    )
    return Layout(result.sizes, None, tables)


def _rule(call: Call) -> Rule:
    node = call.node
    if call.module is not None:
        return LAYERS.get(type(call.module), no_rule) if _plain(call.module) else no_rule
    if node.op == "call_method":
        return METHODS.get(str(node.target), no_rule)
    if node.target is operator.getitem:
        return movement.item if isinstance(call.args[0], Layout) else pointwise.pick
    if node.target is getattr and call.args[1] not in _ATTRIBUTES:
        return no_rule
    target: Any = node.target
    named = (getattr(target, "__module__", ""), getattr(target, "__name__", ""))
    return FUNCTIONS.get(target, BY_NAME.get(named, no_rule))


def _plain(layer: nn.Module) -> bool:
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
