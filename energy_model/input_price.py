"""What one more nonzero input costs: the item costs of the energy-weighted mask projection.

The part of a layer's activation energy that an input's presence causes (Yang, Zhu, Liu, ICLR 2019,
energy model):

    a = DRAM + u (cache tD + RF d/g)

where u counts the windows that read the input, tD = ceil((d/g) / n), and the prices are those of
the input's width. Rows that are fetched again
where a strip ends are left out: what they add depends on all inputs together, and is not even
monotone in them. After a mask has changed, the energy is therefore always computed anew.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

from energy_model.hardware import Hardware
from energy_model.shapes import LayerShape
from energy_model.support import taps
from energy_model.unit_prices import PARTS, unit_prices
from energy_model.widths import WORDS, Widths


def input_prices(
    shape: LayerShape, hardware: Hardware, *, widths: Widths = WORDS
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Energy of each input of one use of a layer, in the hardware's unit.

    Args:
        shape: The layer.
        hardware: The accelerator.
        widths: Bits of the operands.

    Returns:
        Array `(in_channels, *input_size)`: int64 if all prices are whole, otherwise float64 with
        multiples of 1/256.
    """
    tiles = -(-shape.out_per_group // hardware.array_columns)
    price = unit_prices(hardware, widths).inputs
    each = price.cache * tiles + price.rf * shape.out_per_group
    parts = price.dram + each * window_counts(shape)
    size = (shape.in_channels, *shape.input_size)
    if (parts % PARTS).any():
        return np.broadcast_to(parts / PARTS, size).copy()
    return np.broadcast_to(parts // PARTS, size).copy()


def window_counts(shape: LayerShape) -> NDArray[np.int64]:
    """How many windows read each input position; int64 array `input_size`."""
    lines = []
    for axis, size in enumerate(shape.input_size):
        line = np.zeros(size, dtype=np.int64)
        for inputs in taps(shape, axis):
            line[inputs] += 1
        lines.append(line)
    return reduce(np.multiply.outer, lines)


def inputs_met(shape: LayerShape, weights: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Inputs that some nonzero weight reads; masking any other changes nothing.

    Args:
        shape: The layer.
        weights: Whether a weight is nonzero, `(in_channels, *kernel)`: for any output channel.

    Returns:
        Boolean array `(in_channels, *input_size)`.
    """
    met = np.zeros((shape.in_channels, *shape.input_size), dtype=np.bool_)
    each = [taps(shape, axis) for axis in range(len(shape.kernel))]
    for offset in np.ndindex(*shape.kernel):
        window = tuple(each[axis][place] for axis, place in enumerate(offset))
        met[(slice(None), *window)] |= weights[(slice(None), *offset)].reshape(
            -1, *[1] * len(window)
        )
    return met
