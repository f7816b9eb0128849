"""Which inputs each kernel offset meets: counting multiplications without materialising im2col.

Source: the model of Yang, Zhu, Liu, ICLR 2019. Counts are int64, so they are exact; a float32
convolution of supports would lose units above 2^24.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError
from energy_model.geometry import steps_inside
from energy_model.shapes import LayerShape


def window_hits(shape: LayerShape, inputs: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Number of nonzero inputs that each kernel offset meets, over all output positions.

    Padding and the zeros between the inputs of a transposed convolution never count.

    Args:
        shape: The layer.
        inputs: Support of the input, `(c, *input_size)`; all ones when absent.

    Returns:
        T of shape `(c, *kernel)`; `(1, *kernel)`, equal for all channels, when `inputs` is absent.

    Raises:
        ArgumentError: `inputs` has another shape.
    """
    axes = range(len(shape.kernel))
    if inputs is None:
        # A dense input is separable: the count is a product of one count per dimension.
        lines = [_dense_counts(shape, axis) for axis in axes]
        return reduce(np.multiply.outer, lines)[np.newaxis]
    hits: NDArray[np.int64] = input_support(shape, inputs).astype(np.int64)
    for axis in axes:
        hits = _sum_taps(hits, shape, axis)
    return hits


def unfolded_nonzeros(shape: LayerShape, inputs: NDArray[np.bool_] | None = None) -> int:
    """Nonzeros of the unfolded (im2col) input matrix: U_X, the sum of `window_hits`.

    Args:
        shape: The layer.
        inputs: Support of the input, `(c, *input_size)`; all ones when absent.

    Raises:
        ArgumentError: `inputs` has another shape.
    """
    hits = int(window_hits(shape, inputs).sum())
    return hits * shape.in_channels if inputs is None else hits


def input_support(shape: LayerShape, inputs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The input mask as booleans of shape `(c, *input_size)`.

    Args:
        shape: The layer.
        inputs: The mask; nonzero means used. `(c,)` is enough for one position.

    Raises:
        ArgumentError: It has another shape.
    """
    expected = (shape.in_channels, *shape.input_size)
    given = np.shape(inputs)
    if given != expected and not (given == expected[:1] and shape.is_fully_connected):
        raise ArgumentError(
            f"an input mask of shape {given} does not fit inputs of shape {expected}",
            where=str(shape),
            remedy="Give one entry per channel and input position of one sample.",
        )
    support: NDArray[np.bool_] = np.asarray(inputs).reshape(expected) != 0
    return support


def taps(shape: LayerShape, axis: int) -> list[slice]:
    """For every kernel offset along `axis`, the inputs that it meets, each once."""
    stride, dilation = shape.stride[axis], shape.dilation[axis]
    padding = shape.padding[axis]
    inputs, outputs = shape.input_size[axis], shape.output_size[axis]
    taps = []
    for offset in range(shape.kernel[axis]):
        if shape.transposed:
            steps = steps_inside(offset, inputs, stride, padding, dilation, outputs)
            taps.append(slice(steps.start, steps.stop))
        else:
            steps = steps_inside(offset, outputs, stride, padding, dilation, inputs)
            start = steps.start * stride + offset * dilation - padding[0]
            taps.append(slice(start, start + len(steps) * stride, stride))
    return taps


def _dense_counts(shape: LayerShape, axis: int) -> NDArray[np.int64]:
    size = shape.input_size[axis]
    return np.array([len(range(*hits.indices(size))) for hits in taps(shape, axis)], dtype=np.int64)


def _sum_taps(support: NDArray[np.int64], shape: LayerShape, axis: int) -> NDArray[np.int64]:
    """Replaces one input dimension of `support` by the kernel's, summing what each offset meets."""
    before = (slice(None),) * (axis + 1)
    sums = [support[(*before, hits)].sum(axis=axis + 1) for hits in taps(shape, axis)]
    return np.stack(sums, axis=axis + 1)
