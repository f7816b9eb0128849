"""Rules for products of activations: `matmul` and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from passes.structure.context import Call, Context, Layout, kept_whole, no_rule, produced
from passes.structure.slots import ALWAYS, SlotArray, aligned, compact, varying


def product(context: Context, call: Call) -> Any:
    """`matmul` of two activations, or of one with a matrix of parameters."""
    if len(call.layouts) != 2 or min(layout.rank for layout in call.layouts) < 2:
        return no_rule(context, call)
    left, right = call.layouts
    if right.slots is None and right.rank == 2 and len(right.tables) == 2:
        return _with_parameter(context, call, left, right)
    a, b = context.known(left, str(call)), context.known(right, str(call))
    return Layout(call.shape, multiply(context, (a, left.shape), (b, right.shape), str(call)))


def _with_parameter(context: Context, call: Call, left: Layout, right: Layout) -> Any:
    tables = {int(varying(t.index)[0]): t for t in right.tables if len(varying(t.index)) == 1}
    whole = all(t.index.size == t.tensor.shape[t.dim] for t in tables.values())
    if set(tables) != {0, 1} or not whole:
        return no_rule(context, call)
    inputs, outputs = tables[0], tables[1]
    read = context.channels(left, -1, f"{call} mixes channels of several dimensions")
    why = str(call)
    context.enter(inputs.tensor, inputs.dim, _ordered(read, inputs.index), "in", why)
    context.read(call, left.rank - 1, read)
    fresh = context.slots.fresh(right.shape[1])
    context.enter(outputs.tensor, outputs.dim, _ordered(fresh, outputs.index), "out", why)
    return produced(context, fresh, call, -1)


def _ordered(slots: SlotArray, index: SlotArray) -> SlotArray:
    result = np.full_like(slots, ALWAYS)
    result[index.reshape(-1)] = slots
    return result


Operand = tuple[SlotArray, tuple[int, ...]]


def multiply(context: Context, left: Operand, right: Operand, why: str) -> SlotArray:
    """The slots of a matrix product.

    Every output reads all channels of the contracted dimension, which therefore go together or
    stay together. One slot cannot speak for a row and a column: where both change, all are tied.

    Args:
        context: Where slots are tied.
        left: Slots and shape of `(..., n, k)`.
        right: Slots and shape of `(..., k, m)`.
        why: Name of the operation, for reasons.
    """
    rank = max(left[0].ndim, right[0].ndim)
    a, b = aligned(left[0], rank), aligned(right[0], rank)
    reason = f"is contracted by {why}"
    mixed = a.shape[-1] > 1 or b.shape[-2] > 1
    if mixed:
        row, column = a.take([0], rank - 2), b.take([0], rank - 1)
        context.slots.unite(row.swapaxes(-1, -2), column, reason)
        a, b = context.slots.couple(a, rank - 1, reason), context.slots.couple(b, rank - 2, reason)
    for one, other, fixed_shape in ((a, b, left[1]), (b, a, right[1])):
        batch = [1] * (rank - len(fixed_shape)) + list(fixed_shape[:-2])
        shared = any(other.shape[d] > 1 and batch[d] > 1 for d in range(rank - 2))
        if not mixed and not varying(one) and one.flat[0] < 0 and not shared:
            return other
    return compact(context.slots.unite(a, b, reason))


def attention(context: Context, call: Call) -> Any:
    """`scaled_dot_product_attention`: one unit per head, or the width of the values."""
    names = ("query", "key", "value")
    q, k, v = (call.argument(i, name) for i, name in enumerate(names))
    mask = call.argument(3, "attn_mask")
    if not all(isinstance(x, Layout) and x.rank >= 3 for x in (q, k, v)) or call.argument(
        7, "enable_gqa", False
    ):
        return no_rule(context, call)
    why = str(call)
    slots = [context.known(x, why) for x in (q, k, v)]
    if isinstance(mask, Layout):
        context.freeze(mask, f"is the mask of {why}")
        for slot in slots:
            _not_masked(context, slot, mask, why)
    swapped = (*k.shape[:-2], k.shape[-1], k.shape[-2])
    scores = multiply(context, (slots[0], q.shape), (slots[1].swapaxes(-1, -2), swapped), why)
    shape = (*call.shape[:-1], k.shape[-2])
    if set(varying(scores)) & {scores.ndim - 1, scores.ndim - 2}:
        context.slots.freeze(scores, f"runs along the positions of {why}")
    return Layout(call.shape, multiply(context, (scores, shape), (slots[2], v.shape), why))


def _not_masked(context: Context, slots: SlotArray, mask: Layout, why: str) -> None:
    """Heads stay if the mask has a row for each of them."""
    sizes = (1,) * (slots.ndim - mask.rank) + mask.shape
    if any(slots.shape[d] > 1 and sizes[d] > 1 for d in range(slots.ndim - 2)):
        context.slots.freeze(slots, f"the mask of {why} has a row for each head")


def heads(context: Context, call: Call) -> Any:
    """`nn.MultiheadAttention`: its width is that of its inputs, but each head may go.

    The layer checks that its heads add up to the width, so that to remove one means to replace the
    layer by another that computes the same.
    """
    layer = call.module
    why = f"{call} fixes its width"
    for layout in call.layouts:
        context.freeze(layout, why)
    units = context.slots.fresh(layer.num_heads)
    rows = np.repeat(units, layer.head_dim)
    fused = layer.in_proj_weight is not None
    for name in ("in_proj_weight",) if fused else ("q_proj_weight", "k_proj_weight"):
        context.enter(getattr(layer, name), 0, np.tile(rows, 3 if fused else 1), "out", why)
    if not fused:
        context.enter(layer.v_proj_weight, 0, rows, "out", why)
    context.enter(layer.in_proj_bias, 0, np.tile(rows, 3), "out", why)
    context.enter(layer.out_proj.weight, 1, rows, "in", why)
    _keep_heads(context, call, layer, units)
    return tuple(None if s is None else kept_whole(s.sizes) for s in call.result)


def _keep_heads(context: Context, call: Call, layer: nn.MultiheadAttention, units: Any) -> None:
    read = any(u.args[1:] != (0,) for u in call.node.users)
    weights = call.argument(4, "need_weights", True)
    if read and weights:
        context.slots.freeze(units, f"the attention weights of {call} are read")
    if layer.add_zero_attn:
        context.slots.freeze(units, f"{call} attends to a zero of its own")
    if layer.bias_k is not None:
        context.slots.freeze(units, f"{call} has a key and a value of its own")
    if any(
        isinstance(mask, Layout) and mask.rank == 3
        for mask in (call.argument(5, "attn_mask"), call.argument(3, "key_padding_mask"))
    ):
        context.slots.freeze(units, f"the mask of {call} may have a row for each head")
