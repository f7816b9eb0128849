"""Loops that count what the energy model counts, as directly as it can be written."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from energy_model.shapes import LayerShape


def gather(shape: LayerShape, inputs: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """The padded support that windows slide over, the stride, and whether the kernel is flipped.

    A transposed convolution is written out: zeros inserted between the inputs, padding d(k-1) - p
    (cut off where negative), stride 1, kernel reversed.
    """
    support = inputs.astype(np.int64)
    if not shape.transposed:
        return np.pad(support, [(0, 0), *shape.padding]), shape.stride, False
    sizes = [(n - 1) * s + 1 for n, s in zip(shape.input_size, shape.stride, strict=True)]
    spaced = np.zeros((support.shape[0], *sizes), dtype=np.int64)
    spaced[(slice(None), *(slice(None, None, s) for s in shape.stride))] = support
    for axis, size in enumerate(shape.output_size):
        reach = shape.dilation[axis] * (shape.kernel[axis] - 1)
        before = reach - shape.padding[axis][0]
        width = [(0, 0)] * spaced.ndim
        # Enough zeros behind, also where a large padding crops everything before.
        width[axis + 1] = (max(before, 0), size + reach + max(-before, 0))
        spaced = np.pad(spaced, width)
        spaced = np.moveaxis(spaced, axis + 1, 0)[max(-before, 0) :][: size + reach]
        spaced = np.moveaxis(spaced, 0, axis + 1)
    return spaced, (1,) * len(shape.kernel), True


def naive_hits(shape: LayerShape, inputs: np.ndarray) -> np.ndarray:
    padded, stride, flipped = gather(shape, inputs)
    hits = np.zeros((shape.in_channels, *shape.kernel), dtype=np.int64)
    for channel in range(shape.in_channels):
        for offset in np.ndindex(*shape.kernel):
            taps = [k - 1 - o if flipped else o for k, o in zip(shape.kernel, offset, strict=True)]
            for position in np.ndindex(*shape.output_size):
                at = tuple(
                    o * s + t * d
                    for o, s, t, d in zip(position, stride, taps, shape.dilation, strict=True)
                )
                hits[(channel, *offset)] += padded[(channel, *at)]
    return hits


def naive_multiplications(shape: LayerShape, weights: np.ndarray, inputs: np.ndarray) -> int:
    """Nonzero weight times nonzero input, one by one; `weights` is (d, c/g, *kernel)."""
    hits, total = naive_hits(shape, inputs), 0
    per_group = shape.in_channels // shape.groups
    for out, inner in itertools.product(range(shape.out_channels), range(per_group)):
        channel = out // shape.out_per_group * per_group + inner
        for offset in np.ndindex(*shape.kernel):
            if weights[(out, inner, *offset)]:
                total += int(hits[(channel, *offset)])
    return total


def naive_rows(shape: LayerShape, inputs: np.ndarray) -> tuple[list[int], int]:
    """Nonzeros of every full row that windows slide over, and the stride of windows."""
    counts = inputs.reshape(shape.in_channels, shape.input_size[0], -1).sum(axis=(0, 2))
    line = replace(
        shape,
        **{f: getattr(shape, f)[:1] for f in ("kernel", "stride", "padding", "dilation")},
        **{f: getattr(shape, f)[:1] for f in ("input_size", "output_size")},
    )
    padded, stride, _ = gather(line, counts[np.newaxis])
    return padded[0].tolist(), stride[0]


def naive_refetch(shape: LayerShape, capacity: int, inputs: np.ndarray) -> int | None:
    """The strip loop, literally; None when a strip does not fit."""
    rows, stride = naive_rows(shape, inputs)
    span = (shape.kernel[0] - 1) * shape.dilation[0] + 1
    begin, words, previous = 0, 0, None
    while begin + span <= len(rows):
        if previous is not None and begin < previous:
            words += sum(rows[begin:previous])
        end = begin
        while end < len(rows) and sum(rows[begin : end + 1]) <= capacity:
            end += 1
        if end - begin < span:
            return None
        previous = end
        begin += ((end - begin - span) // stride + 1) * stride
    return words


def naive_row_by_row(shape: LayerShape, inputs: np.ndarray) -> int:
    rows, stride = naive_rows(shape, inputs)
    windows = [
        [row * stride + tap * shape.dilation[0] for tap in range(shape.kernel[0])]
        for row in range(shape.output_size[0])
    ]
    touched = {row for window in windows for row in window}
    return sum(rows[row] for window in windows for row in window) - sum(rows[r] for r in touched)


@dataclass(frozen=True)
class Layer:
    shape: LayerShape
    weights: np.ndarray
    inputs: np.ndarray


@st.composite
def shapes(draw: st.DrawFn, dims: int | None = None) -> LayerShape:
    dims = draw(st.integers(1, 3)) if dims is None else dims
    small = 6 if dims < 3 else 4

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    groups = draw(st.integers(1, 3))
    channels = (groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3)))
    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = tuple(zip(each(0, 3), each(0, 3), strict=True))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if draw(st.booleans()):
        least = [
            max(1, d * (k - 1) + 1 - sum(p))
            for k, p, d in zip(kernel, padding, dilation, strict=True)
        ]
        size = tuple(draw(st.integers(low, max(low, small))) for low in least)
        return LayerShape.conv(*channels, kernel, size, **geometry)
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    least = [
        max(1, 1 + -((d * (k - 1) - sum(p) + e) // s))
        for k, p, d, s, e in zip(kernel, padding, dilation, stride, extra, strict=True)
    ]
    size = tuple(draw(st.integers(low, max(low, small))) for low in least)
    return LayerShape.conv_transpose(*channels, kernel, size, output_padding=extra, **geometry)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    shape = draw(shapes())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    weight = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    return Layer(
        shape,
        random.random(weight) < density,
        random.random((shape.in_channels, *shape.input_size)) < draw(st.sampled_from([0.5, 1.0])),
    )
