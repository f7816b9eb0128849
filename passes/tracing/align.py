"""Join the graph of the training mode with that of the evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

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
        index: Position of the first node that differs.
        suspects: Modules of which one behaves differently in the two modes, innermost first; the
            last one is the innermost that holds both of the differing nodes (empty: the model).
    """

    index: int
    suspects: tuple[str, ...]


class _Slice(NamedTuple):
    """A slice that pytree opens; its bounds may be nodes."""

    start: Any
    stop: Any
    step: Any


def _flat(node: Node) -> tuple[list[Any], Any]:
    arguments = pytree.tree_map_only(
        slice, lambda s: _Slice(s.start, s.stop, s.step), (node.args, dict(node.kwargs))
    )
    return pytree.tree_flatten(arguments)


def _rebuilt(flat: list[Any], spec: Any) -> Any:
    """What `_flat` opened, as the arguments of a node."""

    def closed(value: Any) -> Any:
        return slice(*value) if isinstance(value, _Slice) else value

    opened = pytree.tree_unflatten(flat, spec)
    return pytree.tree_map(closed, opened, is_leaf=lambda value: isinstance(value, _Slice))


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


def _suspects(a: Node | None, b: Node | None) -> tuple[str, ...]:
    """Whose `forward` may be the cause when `a` stands where the other mode has `b`."""
    left, right = (owners(node) if node is not None else [""] for node in (a, b))
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1
    inner = sorted({*left[shared:], *right[shared:]}, key=lambda path: -path.count("."))
    return (*inner, left[shared - 1])


def compare(evaluation: Trace, training: Trace) -> list[Difference] | Mismatch:
    """Compare the graphs of both modes, node by node.

    Returns:
        The constants that differ, or the module whose structure differs.
    """
    if evaluation.graph is None or training.graph is None:
        return Mismatch(0, ("",))
    traces = (evaluation, training)
    names: dict[Node, Node] = {}
    differences: list[Difference] = []
    pairs = zip_longest(evaluation.graph.nodes, training.graph.nodes)
    for index, (a, b) in enumerate(pairs):
        found = _compare(a, b, names, traces) if a is not None and b is not None else None
        if found is None:
            return Mismatch(index, _suspects(a, b))
        names[b] = a
        differences.extend(found)
    return differences


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
        node.args, node.kwargs = _rebuilt(flat, spec)
    module.graph.lint()
    module.recompile()
