"""Join the graph of the training mode with that of the evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.tracing.mode import Mode
from passes.tracing.symbolic import Trace, owner, owners


@dataclass(frozen=True, slots=True)
class Difference:
    """A constant argument that differs between the modes.

    Attributes:
        node: The node in the evaluation graph.
        position: Index among the flattened arguments of the node.
        train: The constant in training mode.
    """

    node: Node
    position: int
    train: Any


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The two graphs differ in structure.

    Attributes:
        path: The innermost module that holds all of the difference; empty for the model itself.
    """

    path: str


def _flat(node: Node) -> tuple[list[Any], Any]:
    return pytree.tree_flatten((node.args, dict(node.kwargs)))


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _compare(
    a: Node, b: Node, names: dict[Node, Node], traces: tuple[Trace, Trace]
) -> list[Difference] | None:
    """Differences between two nodes; `None` when their structure differs."""
    x, y = (t.constants.get(str(n.target)) for t, n in zip(traces, (a, b), strict=True))
    if x is not None and y is not None:
        return [] if torch.equal(x, y) else None
    if (a.op, a.target) != (b.op, b.target):
        return None
    left, left_spec = _flat(a)
    right, right_spec = _flat(b)
    if left_spec != right_spec:
        return None
    found = []
    for position, (x, y) in enumerate(zip(left, right, strict=True)):
        if isinstance(x, Node) or isinstance(y, Node):
            if not isinstance(y, Node) or names.get(y) is not x:
                return None
        elif not _same(x, y):
            found.append(Difference(a, position, y))
    return found


def _common(stacks: list[list[str]]) -> str:
    """The innermost module that all stacks of running modules share."""
    shared = ""
    for column in zip(*stacks, strict=False):
        if len(set(column)) > 1:
            break
        shared = column[0]
    return shared


def compare(evaluation: Trace, training: Trace) -> list[Difference] | Mismatch:
    """Compare the graphs of both modes, node by node.

    Returns:
        The constants that differ, or the module whose structure differs.
    """
    if evaluation.graph is None or training.graph is None:
        return Mismatch("")
    traces = (evaluation, training)
    left, right = list(evaluation.graph.nodes), list(training.graph.nodes)
    names: dict[Node, Node] = {}
    differences: list[Difference] = []
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        found = _compare(a, b, names, traces)
        if found is None:
            return Mismatch(_differing_module(left[index:], right[index:]))
        names[b] = a
        differences.extend(found)
    if len(left) != len(right):
        return Mismatch("")
    return differences


def _differing_module(left: list[Node], right: list[Node]) -> str:
    """The common owner of what remains once equal tails are cut off."""
    while left and right and (left[-1].op, left[-1].target) == (right[-1].op, right[-1].target):
        left, right = left[:-1], right[:-1]
    return _common([owners(node) for node in (*left, *right)])


def insert_modes(module: GraphModule, differences: list[Difference]) -> None:
    """Replace each differing constant by a `Mode` node below the module that owns it."""
    for number, difference in enumerate(differences):
        node = difference.node
        flat, spec = _flat(node)
        path = owner(node)
        name = f"{path}.mode_{number}" if path else f"mode_{number}"
        module.add_submodule(name, Mode(difference.train, flat[difference.position]))
        with module.graph.inserting_before(node):
            flat[difference.position] = module.graph.call_module(name)
        node.args, node.kwargs = pytree.tree_unflatten(flat, spec)
    module.graph.lint()
    module.recompile()
