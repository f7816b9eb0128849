"""Rules for what only moves elements: views, permutations, slices, splits, padding.

The slots move as the elements do, so the operation itself is run on them. Where one channel
dimension becomes two, as in a channel shuffle, the rest must stay a box: channels are removed along
one of them, and tied across the other. What a size in the code does when the width changes is not
judged here: `passes.structure.proof` runs every such node at another width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from passes.structure.context import Call, Context, Layout, Rule, Table, kept_whole, no_rule
from passes.structure.record import Shape
from passes.structure.slots import SlotArray, aligned, compact, varying

Move = Callable[..., Any]


def operation(call: Call) -> Move:
    """What a node computes, as a function of its arguments."""
    if call.module is not None:
        layer: Move = call.module
        return layer
    target: Any = call.node.target
    if call.node.op == "call_method":
        return lambda tensor, *args, **kwargs: getattr(tensor, str(target))(*args, **kwargs)
    move: Move = _pad if target is F.pad else target
    return move


def _pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor:
    # What is put there has no channel, whatever its value; real numbers, as some modes need them.
    padded = F.pad((input + 1).double(), list(pad), mode)
    return padded.long() - 1


def full(slots: SlotArray, shape: tuple[int, ...]) -> Tensor:
    """The slots of every element, as a tensor."""
    return torch.from_numpy(np.broadcast_to(slots, shape).copy())


def run(move: Move, call: Call, slots: SlotArray) -> Any:
    """Run a node on the slots of its first tensor; other tensors only lend their shape."""
    tensors = iter(call.layouts)
    first = next(tensors)

    def given(layout: Layout) -> Tensor:
        if layout is first:
            return full(slots, layout.shape)
        return torch.empty(layout.shape, dtype=torch.int64)

    args, kwargs = pytree.tree_map_only(Layout, given, (call.args, call.kwargs))
    moved = move(*args, **kwargs)
    return pytree.tree_map_only(Tensor, lambda t: compact(t.numpy()), moved)


def movement(choose: Callable[[Call, SlotArray], int | None]) -> Rule:
    """A rule for an operation that moves elements.

    Args:
        choose: Along which dimension of an output channels are removed when they run along more
            than one; `None` if along no one.
    """

    def rule(context: Context, call: Call) -> Any:
        layout = call.argument(0, "input")
        if not isinstance(layout, Layout):
            return no_rule(context, call)
        move = operation(call)
        if layout.slots is None:
            context.moved[call.node] = move
            return _move_tables(move, call, layout)
        if not varying(layout.slots) and layout.slots.flat[0] < 0:
            return pytree.tree_map_only(Shape, lambda s: kept_whole(s.sizes), call.result)
        context.moved[call.node] = move
        moved = run(move, call, layout.slots)

        def finish(slots: SlotArray, shape: tuple[int, ...]) -> Layout:
            return Layout(shape, _boxed(context, call, slots, choose))

        return _paired(finish, moved, call.result)

    return rule


def _paired(finish: Callable[[Any, tuple[int, ...]], Layout], moved: Any, result: Any) -> Any:
    leaves, spec = pytree.tree_flatten(moved)
    shapes = pytree.tree_leaves(result)
    return pytree.tree_unflatten(
        [finish(leaf, shape.sizes) for leaf, shape in zip(leaves, shapes, strict=True)], spec
    )


def _move_tables(move: Move, call: Call, layout: Layout) -> Any:
    """A parameter keeps track of the index of each element along each of its dimensions."""
    moved = [
        pytree.tree_flatten(run(move, call, aligned(table.index, layout.rank)))
        for table in layout.tables
    ]
    shapes, spec = pytree.tree_flatten(call.result)
    parts = []
    for number, shape in enumerate(shapes):
        tables = tuple(
            Table(table.tensor, table.dim, leaves[number])
            for table, (leaves, _) in zip(layout.tables, moved, strict=True)
        )
        parts.append(Layout(shape.sizes, None, tables))
    return pytree.tree_unflatten(parts, spec)


def _boxed(
    context: Context, call: Call, slots: SlotArray, choose: Callable[[Call, SlotArray], int | None]
) -> SlotArray:
    dims = varying(slots)
    if len(dims) < 2:
        return slots
    why = f"{call} lays channels out over fixed sizes"
    kept = choose(call, slots)
    if kept not in dims:
        context.slots.freeze(slots, why)
        return slots
    for dim in dims:
        if dim != kept:
            slots = context.slots.couple(slots, dim, why)
    return slots


def by_size(call: Call, slots: SlotArray) -> int | None:
    """The dimension whose size is not a number in the code: -1, or computed from a shape."""
    sizes = list(call.node.args[1:])
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = list(sizes[0])
    if call.node.op == "call_function" and call.node.kwargs.get("shape") is not None:
        sizes = list(call.node.kwargs["shape"])  # type: ignore[arg-type]
    if len(sizes) != slots.ndim:
        return None
    dims = [dim for dim in varying(slots) if sizes[dim] == -1]
    return next(iter(dims or [d for d in varying(slots)[::-1] if isinstance(sizes[d], Node)]), None)


def by_part_size(call: Call, slots: SlotArray) -> int | None:
    """As `by_size`, for `unflatten`, which names the sizes of the parts of one dimension."""
    dim = call.module.dim if call.module is not None else call.argument(1, "dim")
    sizes = call.module.unflattened_size if call.module is not None else call.written(2, "sizes")
    if not isinstance(sizes, tuple | list):
        return None
    dim %= slots.ndim - len(sizes) + 1
    free = [dim + i for i, s in enumerate(sizes) if s == -1 or isinstance(s, Node)]
    return next((d for d in free if d in varying(slots)), None)


def second(call: Call, slots: SlotArray) -> int | None:
    """The usual dimension of channels."""
    return 1


def nowhere(call: Call, slots: SlotArray) -> int | None:
    """No choice: channels that run along several dimensions stay."""
    dims = varying(slots)
    before = call.layouts[0].slots
    # A permutation has no more dimensions of channels than its input, which was a box.
    return None if before is None or len(varying(before)) < len(dims) else dims[0]


def split(context: Context, call: Call) -> Any:
    """`chunk` and `split`: equal parts of the channels lose the same channels."""
    parts = movement(nowhere)(context, call)
    layout = call.argument(0, "input")
    if not isinstance(layout, Layout) or layout.slots is None:
        return parts
    lists = [part.slots for part in parts if isinstance(part, Layout) and part.slots is not None]
    if len({part.shape for part in parts}) == 1 and varying(lists[0]):
        for other in lists[1:]:
            if other.shape == lists[0].shape:
                context.slots.unite(lists[0], other, f"is split into equal parts by {call}")
    return parts


def item(context: Context, call: Call) -> Any:
    """`x[...]` of a tensor."""
    index = call.args[1]
    if any(isinstance(leaf, Layout) for leaf in pytree.tree_leaves(index)):
        return no_rule(context, call)
    return movement(nowhere)(context, call)


def stack(context: Context, call: Call) -> Any:
    """Tensors of the same channels side by side along a new dimension."""
    parts = call.argument(0, "tensors")
    if not all(isinstance(part, Layout) for part in parts):
        return no_rule(context, call)
    why = f"is stacked by {call}"
    slots = context.known(parts[0], why)
    for part in parts[1:]:
        slots = context.slots.unite(slots, context.known(part, why), why)
    dim = call.argument(1, "dim", 0) % len(call.shape)
    return Layout(call.shape, np.expand_dims(slots, dim))
