"""Input words that are fetched again because strips of rows overlap in the input cache.

A strip of consecutive full rows, as many as fit into the input cache, is loaded; the output rows
it allows are produced; the next strip begins at the first row still needed. Rows shared by two
strips are fetched twice. Source: the model of Yang, Zhu, Liu, ICLR 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_model.shapes import LayerShape
from energy_model.support import input_support


@dataclass(frozen=True, slots=True)
class Refetch:
    """Words fetched more than once.

    Attributes:
        words: Nonzero input words fetched again (R).
        fallback: Whether the rows of one output row did not fit into the cache, so that `words` is
            what it takes when every output row fetches its window's rows again.
    """

    words: int
    fallback: bool = False


def refetch(
    shape: LayerShape, capacity_words: int, inputs: NDArray[np.bool_] | None = None
) -> Refetch:
    """Counts the input words that overlapping strips fetch again.

    Masking an input may raise the count, because strips then pack differently.

    Args:
        shape: The layer; strips run along its first spatial dimension.
        capacity_words: Nonzero inputs that the input cache holds.
        inputs: Support of the input, `(c, *input_size)`; all ones when absent.

    Raises:
        ArgumentError: `inputs` has another shape.
    """
    rows = _padded_rows(shape, inputs)
    stride = 1 if shape.transposed else shape.stride[0]
    span = (shape.kernel[0] - 1) * shape.dilation[0] + 1
    before = np.concatenate(([0], np.cumsum(rows)))
    begin = previous_end = words = 0
    while begin + span <= len(rows):
        if begin < previous_end:
            words += int(before[previous_end] - before[begin])
        # Rows of zeros take no room, hence the last end that still fits.
        end = int(np.searchsorted(before, before[begin] + capacity_words, side="right")) - 1
        if end - begin < span:
            return Refetch(_row_by_row(shape, rows, stride), fallback=True)
        previous_end = end
        begin += ((end - begin - span) // stride + 1) * stride
    return Refetch(words)


def _padded_rows(shape: LayerShape, inputs: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Nonzeros per row over all channels and other dimensions, with the zeros of the padding.

    A transposed convolution gathers, at stride 1, from its inputs with `stride - 1` zeros between
    them and as much padding as lets the first and last window reach them.
    """
    span = (shape.kernel[0] - 1) * shape.dilation[0] + 1
    size, (before, after) = shape.input_size[0], shape.padding[0]
    if inputs is None:
        counts = np.full(size, shape.in_channels * math.prod(shape.input_size[1:]), dtype=np.int64)
    else:
        support = input_support(shape, inputs)
        counts = support.sum(axis=(0, *range(2, support.ndim)), dtype=np.int64)
    if not shape.transposed:
        return np.pad(counts, (before, after))
    rows = np.zeros(shape.output_size[0] + span - 1, dtype=np.int64)
    places = np.arange(size) * shape.stride[0] + span - 1 - before
    used = (places >= 0) & (places < len(rows))
    rows[places[used]] = counts[used]
    return rows


def _row_by_row(shape: LayerShape, rows: NDArray[np.int64], stride: int) -> int:
    """Words fetched again when every output row fetches the rows of its window anew.

    R = sum over output rows of its window's nonzeros, less the first touch of every row.
    """
    touches = np.zeros(len(rows), dtype=np.int64)
    reach = stride * (shape.output_size[0] - 1) + 1
    for offset in range(shape.kernel[0]):
        start = offset * shape.dilation[0]
        touches[start : start + reach : stride] += 1
    return int((rows * np.maximum(touches - 1, 0)).sum())
