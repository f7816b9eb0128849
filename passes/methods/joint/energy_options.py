"""What a layer can do with its share of an energy budget: pairs of a width and a nonzero count.

On a uniform grid `D * q` with zero among its codes, not pruning a weight saves `Dq (2|w| - Dq)` of
the squared error, which never falls with |w|: of each number of nonzeros the largest are best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from passes.joint.codebook import WIDTHS
from passes.joint.free_levels import coarse_places
from passes.joint.layer_options import SMALL
from passes.joint.points import Floats, Places, SortedValues
from passes.joint.uniform_levels import UniformLevels, largest_code

_POINTS = 2048
# Numbers of nonzeros, scales between the largest magnitude and its part that are tried.
_COUNTS, _SCALES, _SMALLEST = 192, 96, 256


@dataclass(frozen=True, slots=True, eq=False)
class GridOptions:
    """Options of one layer; parallel arrays of shape `(n,)`.

    Attributes:
        bits: Width, int64.
        kept: How many of the largest weights stay, int64.
        error: Sum of squared changes of all weights, float64.
    """

    bits: Places
    kept: Places
    error: Floats


def grid_options(weight: Tensor, widths: Sequence[int], least: int) -> GridOptions:
    """Options of a layer: all of them for at most 64 nonzeros, else estimates for many counts.

    Args:
        weight: Any shape; read only.
        widths: Allowed widths; one that no grid has stands for weights that are not rounded.
        least: Weights that stay at least, no more than the nonzeros.
    """
    values = SortedValues.of(weight, zeros=False, magnitudes=True)
    if not values.size:
        none = np.zeros(1, dtype=np.int64)
        return GridOptions(np.asarray(widths[:1]), none, np.zeros(1))
    total = float(values.blocks[1][-1])
    saved = _saved_exactly if values.size <= SMALL else _saved
    bits, kept, errors = [], [], []
    for width in widths:
        counts, gains = saved(values, width)
        counts, gains = np.append(0, counts), np.append(0.0, gains)
        allowed = counts >= least
        bits.append(np.full(int(allowed.sum()), width))
        kept.append(counts[allowed])
        errors.append(np.maximum(total - gains[allowed], 0.0) * 4.0**values.exponent)
    return GridOptions(np.concatenate(bits), np.concatenate(kept), np.concatenate(errors))


def _saved_exactly(values: SortedValues, width: int) -> tuple[Places, Floats]:
    """What every number of largest weights saves against pruning all."""
    magnitudes = values.at(np.arange(values.size))[::-1]
    squares = np.cumsum(magnitudes**2)
    if width not in WIDTHS:
        return np.arange(1, values.size + 1), squares
    tops = (SortedValues.of_divided(magnitudes[: k + 1]) for k in range(values.size))
    errors = np.asarray([UniformLevels(top, False).error(width) for top in tops])
    return np.arange(1, values.size + 1), squares - errors


def _saved(values: SortedValues, width: int) -> tuple[Places, Floats]:
    """Likewise for a geometric grid of numbers, of weights that are put together to points."""
    run = values.run(coarse_places(values, _POINTS))
    count, first = run.count[::-1], run.first[::-1]
    if width in WIDTHS:
        mean, top = first / count, largest_code(width, reserved_zero=False)
        scales = np.geomspace(mean[0] / top, mean[0] / top / _SMALLEST, _SCALES)[:, None]
        levels = scales * np.clip(np.round(mean / scales), 0, top)
        saved = np.cumsum(levels * (2 * first - levels * count), axis=1).max(axis=0)
    else:
        saved = np.cumsum(run.second[::-1])
    kept = np.cumsum(count).astype(np.int64)
    wanted = np.unique(np.geomspace(1, kept[-1], _COUNTS).astype(np.int64))
    some = np.unique(np.searchsorted(kept, wanted).clip(max=len(kept) - 1))
    return kept[some], saved[some]
