"""Rules for layers with weights, as modules and as functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from passes.structure.context import Call, Context, Layout, Rule, no_rule, produced
from passes.structure.slots import ALWAYS, SlotArray, first_of_groups, varying


def _parameter(value: Any) -> Tensor | None:
    """The parameter that a functional layer is given as it is; `None` if it is computed."""
    if not isinstance(value, Layout) or value.slots is not None:
        return None
    tensor = value.tables[0].tensor if value.tables else None
    direct = all(
        varying(t.index) in ((), (t.dim,))
        and t.tensor is tensor
        and t.index.size == t.tensor.shape[t.dim]
        for t in value.tables
    )
    return tensor if direct and tensor is not None and value.shape == tuple(tensor.shape) else None


def _weights(call: Call, first: int = 1) -> tuple[Tensor | None, Tensor | None, bool]:
    """Weight, bias, and whether both are parameters as they are."""
    if call.module is not None:
        return call.module.weight, call.module.bias, True
    given = [call.argument(first, "weight"), call.argument(first + 1, "bias")]
    found = [None if value is None else _parameter(value) for value in given]
    plain = all(f is not None or g is None for f, g in zip(found, given, strict=True))
    return found[0], found[1], plain and found[0] is not None


def linear(context: Context, call: Call) -> Any:
    """`nn.Linear`, `F.linear`: on the last dimension."""
    weight, bias, plain = _weights(call)
    layout = call.argument(0, "input")
    if weight is None or not plain or not isinstance(layout, Layout):
        return no_rule(context, call)
    why = str(call)
    dims = varying(context.known(layout, why))
    if dims and layout.rank - 1 not in dims and layout.slots is not None:
        # It mixes positions, not channels: the channels pass, and its own outputs stay.
        outputs = np.full(weight.shape[0], ALWAYS, dtype=np.int64)
        inputs = np.full(weight.shape[1], ALWAYS, dtype=np.int64)
        _enter(context, weight, bias, outputs, inputs, (0, 1), why)
        return Layout(call.shape, layout.slots)
    read = context.channels(layout, -1, f"{call} mixes channels of several dimensions")
    fresh = context.slots.fresh(weight.shape[0])
    context.read(call, layout.rank - 1, read)
    _enter(context, weight, bias, fresh, read, (0, 1), why)
    return produced(context, fresh, call, -1)


def _enter(
    context: Context,
    weight: Tensor,
    bias: Tensor | None,
    outputs: SlotArray,
    inputs: SlotArray,
    dims: tuple[int, int],
    why: str,
) -> None:
    context.enter(weight, dims[0], outputs, "out", why)
    context.enter(bias, 0, outputs, "out", why)
    context.enter(weight, dims[1], inputs, "in", why)


def convolution(dims: int, *, transposed: bool = False) -> Rule:
    """A rule for convolutions over so many dimensions."""

    def rule(context: Context, call: Call) -> Any:
        weight, bias, plain = _weights(call)
        layout = call.argument(0, "input")
        if weight is None or not plain or not isinstance(layout, Layout):
            return no_rule(context, call)
        groups = _groups(call, transposed)
        if not isinstance(groups, int):
            return no_rule(context, call)
        channel = layout.rank - 1 - dims
        why = str(call)
        read = context.channels(layout, channel, f"{call} mixes channels of several dimensions")
        if groups > 1 and groups == len(read) and (not transposed or weight.shape[1] == 1):
            return _depthwise(context, call, weight, bias, read)
        context.read(call, channel, read)
        fresh = context.slots.fresh(call.shape[channel])
        entered = _grouped(context, read, fresh, groups, transposed, why)
        _enter(context, weight, None, entered[0], entered[1], (1, 0) if transposed else (0, 1), why)
        context.enter(bias, 0, fresh, "out", why)
        return produced(context, fresh, call, channel)

    return rule


def _groups(call: Call, transposed: bool) -> Any:
    if call.module is not None:
        return call.module.groups
    # conv(input, weight, bias, stride, padding, dilation, groups); transposed ones put
    # output_padding and groups before dilation: the same place for groups.
    return call.argument(6, "groups", 1)


def _grouped(
    context: Context, read: SlotArray, fresh: SlotArray, groups: int, transposed: bool, why: str
) -> tuple[SlotArray, SlotArray]:
    """Slots of the weight's output and input dimension; groups lose the same channels each."""
    if groups == 1:
        return fresh, read
    reason = f"meets channels that always stay in the groups of {why}"
    inputs = first_of_groups(read, groups, context.slots, reason)
    outputs = first_of_groups(fresh, groups, context.slots, reason)
    return (outputs, read) if transposed else (fresh, inputs)


def _depthwise(
    context: Context, call: Call, weight: Tensor, bias: Tensor | None, read: SlotArray
) -> Any:
    channel = call.layouts[0].rank - (weight.dim() - 1)
    if call.module is None:
        context.slots.freeze(read, f"{call} is given its number of groups as a number")
    slots = np.repeat(read, call.shape[channel] // len(read))
    context.enter(weight, 0, slots, "vector", str(call))
    context.enter(bias, 0, slots, "vector", str(call))
    return produced(context, slots, call, channel)


def batch_norm(context: Context, call: Call) -> Any:
    """Norms over positions: every channel on its own."""
    layout = call.argument(0, "input")
    if not isinstance(layout, Layout) or layout.rank < 2:
        return no_rule(context, call)
    unbatched = "InstanceNorm" in type(call.module).__name__ and _unbatched(call.module, layout)
    channel = 0 if unbatched else 1
    slots = context.channels(layout, channel, f"{call} mixes channels of several dimensions")
    if call.module is not None:
        names = "weight bias running_mean running_var"
        context.enter_layer(call.module, names, slots, "vector", str(call))
    else:
        vectors = ("running_mean", "running_var", "weight", "bias")
        given = [call.argument(i + 1, name) for i, name in enumerate(vectors)]
        for value in given:
            tensor = _parameter(value)
            if tensor is not None:
                context.enter(tensor, 0, slots, "vector", str(call))
            elif value is not None:
                return no_rule(context, call)
    return produced(context, slots, call, channel)


def _unbatched(layer: nn.Module, layout: Layout) -> bool:
    return layout.rank == int(type(layer).__name__[-2]) + 1


def group_norm(context: Context, call: Call) -> Any:
    """`nn.GroupNorm`: whole groups of the norm can go."""
    layout, layer = call.layouts[0], call.module
    slots = context.channels(layout, 1, f"{call} mixes channels of several dimensions")
    if layer.num_groups == 1:
        context.slots.freeze(slots, f"{call} normalises over all channels")
    why = f"meets channels that always stay in {call}"
    size = layer.num_channels // layer.num_groups
    firsts = context.slots.couple(slots.reshape(-1, size), 1, why).reshape(-1)
    united = np.repeat(firsts, size)
    context.enter_layer(layer, "weight bias", united, "vector", str(call))
    return produced(context, united, call, 1)


def over_channels(context: Context, call: Call) -> Any:
    """`LayerNorm` and its kind: every channel depends on all others, so all stay."""
    layout = call.argument(0, "input")
    if not isinstance(layout, Layout):
        return no_rule(context, call)
    normalized = call.module.normalized_shape if call.module is not None else call.argument(1, "")
    if not isinstance(normalized, tuple | list):
        return no_rule(context, call)
    last = set(range(layout.rank - len(normalized), layout.rank))
    kept = context.passes(layout, last, f"{call} normalises over all channels")
    for other in call.layouts:
        if other is not layout:
            context.pin(other, f"belongs to {call}")
    if call.module is not None:
        tables = [
            t for t in (call.module.weight, getattr(call.module, "bias", None)) if t is not None
        ]
        context.pinned += [(t, f"belongs to {call}") for t in tables]
    return kept


def prelu(context: Context, call: Call) -> Any:
    """`nn.PReLU`: one slope, or one for every channel."""
    layout = call.layouts[0]
    if call.module is None:
        return no_rule(context, call)
    slots = context.known(layout, str(call))
    if call.module.num_parameters > 1:
        line = context.channels(layout, 1, f"{call} has slopes for another dimension")
        context.enter(call.module.weight, 0, line, "vector", str(call))
        return produced(context, line, call, 1)
    return Layout(call.shape, slots)


def embedding(context: Context, call: Call) -> Any:
    """`nn.Embedding`: the columns of the table are channels."""
    layer = call.module
    for layout in call.layouts:
        context.freeze(layout, f"indexes {call}")
    fresh = context.slots.fresh(layer.embedding_dim)
    context.enter(layer.weight, 1, fresh, "out", str(call))
    if layer.max_norm is not None:
        context.slots.freeze(fresh, f"{call} renormalises its rows")
    return produced(context, fresh, call, -1)
