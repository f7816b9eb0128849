"""Rules for what acts on elements: arithmetic, activations, concatenation, and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils import _pytree as pytree

from passes.structure.context import Call, Context, Layout, Rule, Table, kept_whole, no_rule
from passes.structure.slots import ALWAYS, SlotArray, aligned, always, compact, joined, varying


def elementwise(context: Context, call: Call) -> Any:
    """Every element of the output depends on the elements at its place alone.

    An operand of size 1 that is broadcast over channels is not tied to them, but stays.
    """
    shape = call.shape
    rank = len(shape)
    operands = call.layouts
    if any(layout.rank > rank for layout in operands):
        return no_rule(context, call)
    known = [layout for layout in operands if layout.slots is not None]
    loose = [layout for layout in operands if layout.slots is None]
    if not known:
        return call.filled(Layout(shape, None, _lifted(loose, rank)))
    slots = _united(context, call, known)
    for table in _lifted(loose, rank):
        attach(context, table, slots, str(call))
    return call.filled(Layout(shape, compact(slots)))


def _united(context: Context, call: Call, known: list[Layout]) -> SlotArray:
    rank = len(call.shape)
    arrays = [aligned(layout.slots, rank) for layout in known if layout.slots is not None]
    changing = {dim for array in arrays for dim in varying(array)}
    result: SlotArray | None = None
    for layout, array in zip(known, arrays, strict=True):
        sizes = (1,) * (rank - layout.rank) + layout.shape
        if any(sizes[dim] == 1 and call.shape[dim] > 1 for dim in changing):
            context.slots.freeze(array, f"is broadcast over channels by {call}")
            continue
        why = f"meets channels that always stay in {call}"
        result = array if result is None else context.slots.unite(result, array, why)
    return always(rank) if result is None else result


def _lifted(loose: list[Layout], rank: int) -> tuple[Table, ...]:
    tables = (table for layout in loose for table in layout.tables)
    return tuple(Table(t.tensor, t.dim, aligned(t.index, rank)) for t in tables)


def attach(context: Context, table: Table, slots: SlotArray, why: str) -> None:
    """Give a parameter the slots of the channels that it meets."""
    if not set(varying(table.index)) & set(varying(slots)):
        # Its index does not follow the channels: one number, or one for every position.
        whole = np.full(table.tensor.shape[table.dim], ALWAYS, dtype=np.int64)
        context.enter(table.tensor, table.dim, whole, "vector", why)
        return
    index, wanted = np.broadcast_arrays(table.index, slots)
    found = np.full(table.tensor.shape[table.dim], ALWAYS, dtype=np.int64)
    found[index] = wanted
    if not (found[index] == wanted).all():
        context.slots.freeze(slots, f"meets one parameter at several channels in {why}")
        context.pinned.append((table.tensor, f"is used in {why}"))
        return
    context.enter(table.tensor, table.dim, found, "vector", why)


def concatenate(context: Context, call: Call) -> Any:
    """`cat`: lists of channels one after another, or the same channels several times."""
    parts = call.argument(0, "tensors")
    dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
    if not all(isinstance(part, Layout) for part in parts):
        return no_rule(context, call)
    rank = len(call.shape)
    dim %= rank
    known = [part for part in parts if part.slots is not None]
    if not known:
        for part in parts:
            context.pin(part, f"is concatenated by {call}")
        return kept_whole(call.shape)
    across = next((p.slots for p in known if p.slots is not None), always(rank))
    if across.shape[dim] > 1 or not varying(across):
        across = always(rank)
    for part in parts:
        for table in part.tables:
            attach(context, table, across, str(call))
    arrays = [across if part.slots is None else part.slots for part in parts]
    return Layout(call.shape, _rectangular(context, call, arrays, dim, parts))


def _rectangular(
    context: Context, call: Call, arrays: list[SlotArray], dim: int, parts: list[Layout]
) -> SlotArray:
    """Join along `dim`; channels that run along another dimension are the same in all parts."""
    crosswise = [a for a in arrays if set(varying(a)) - {dim}]
    if crosswise:
        why = f"is concatenated with channels that always stay by {call}"
        common = crosswise[0].take([0], dim)
        arrays = [context.slots.couple(array, dim, why) for array in arrays]
        for array in arrays:
            common = context.slots.unite(common, array, why)
        return common
    return joined(arrays, [part.shape for part in parts], dim)


def reduction(context: Context, call: Call) -> Any:
    """`mean`, `sum`, `softmax`, ...: over other dimensions than that of the channels."""
    if len(call.layouts) != 1 or not isinstance(call.argument(0, "input"), Layout):
        return no_rule(context, call)
    layout = call.layouts[0]
    dims = reduced(call, layout.rank)
    kept = context.passes(layout, dims, f"{call} mixes channels")
    if kept.slots is None:
        return no_rule(context, call)
    slots = kept.slots
    if len(call.shape) != layout.rank:
        slots = slots.squeeze(tuple(sorted(dims))) if len(dims) < layout.rank else always(0)
    if slots.ndim != len(call.shape):
        return no_rule(context, call)
    return call.filled(Layout(call.shape, slots))


def reduced(call: Call, rank: int) -> set[int]:
    """The dimensions that a reduction works along; all of them where it is not told."""
    if call.module is not None:
        found = getattr(call.module, "dim", None)
    elif getattr(call.node.target, "__name__", call.node.target) in ("norm", "normalize"):
        found = call.argument(2, "dim")  # after the order of the norm
    else:
        found = call.argument(1, "dim")
    if isinstance(found, bool) or found is None:
        return set(range(rank))
    dims = [found] if isinstance(found, int) else list(found)
    # An empty list means every dimension to most reductions.
    return {dim % rank for dim in dims} or set(range(rank))


def spatial(dims: int) -> Rule:
    """A rule for what mixes along the last dimensions only: pooling, resizing, padding."""

    def rule(context: Context, call: Call) -> Any:
        layouts = call.layouts
        if len(layouts) != 1 or layouts[0].rank != len(call.shape):
            return no_rule(context, call)
        layout = layouts[0]
        last = set(range(layout.rank - dims, layout.rank))
        kept = context.passes(layout, last, f"{call} mixes channels")
        return call.filled(kept)

    return rule


def resize(context: Context, call: Call) -> Any:
    """`interpolate` works on all dimensions but the first two."""
    layouts = call.layouts
    if len(layouts) != 1:
        return no_rule(context, call)
    return spatial(layouts[0].rank - 2)(context, call)


def gate_pair(context: Context, call: Call) -> Any:
    """`glu`: the second half of the channels gates the first."""
    layout = call.layouts[0]
    dim = (
        call.module.dim if call.module is not None else call.argument(1, "dim", -1)
    ) % layout.rank
    why = f"is split in two by {call}"
    slots = context.known(layout, why)
    if slots.shape[dim] == 1:
        return call.filled(Layout(call.shape, slots))
    halves = np.split(slots, 2, axis=dim)
    return call.filled(Layout(call.shape, context.slots.unite(halves[0], halves[1], why)))


def pick(context: Context, call: Call) -> Any:
    """An item of what a node returned."""
    container, key = call.args
    leaves = pytree.tree_leaves(container[key])
    if all(isinstance(leaf, Layout) or leaf is None for leaf in leaves):
        return container[key]
    return no_rule(context, call)
