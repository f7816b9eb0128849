"""What one layer can do with its share of a budget: pairs of a width and a number of nonzeros.

E(b, k) is the least sum of squared changes of a layer of which at most `k` weights are not zero and
have at most 2^b different values; pruned weights count with their squares. For given levels the
weights that gain most from not being zero are the largest of each sign, so that with free levels

    E(b, k_neg + k_pos) = min over c of  D_neg[c][k_neg] + D_pos[2^b - c][k_pos] + what is pruned

with the rows D of `Clusters`. On a uniform grid the largest magnitudes are kept. Small layers get
every pair, exactly; large ones a geometric grid of `k` over weights that are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from passes.joint.codebook import Kind
from passes.joint.free_levels import Side, coarse_places, split
from passes.joint.points import Floats, Places, Run, SortedValues
from passes.joint.sizes import LEVEL_BITS
from passes.joint.uniform_levels import UniformLevels, largest_code
from passes.projection.magnitudes import top_mask

SMALL = 64
"""Layers of at most so many nonzeros get all their options."""

BY_MAGNITUDE = -1
"""In place of a number of negative weights: the largest of both signs are kept."""

_POINTS = 2048
# More distinct values are put together to so many points.
_DISTINCT = 4096
# Numbers of nonzeros and scales that are tried.
_COUNTS, _SCALES = 192, 64


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """Options of one layer; parallel arrays of shape `(n,)`.

    Attributes:
        bits: Width, int64.
        kept: Number of nonzeros, int64.
        negative: How many of them are negative, or `BY_MAGNITUDE`.
        error: Sum of squared changes, float64.
    """

    bits: Places
    kept: Places
    negative: Places
    error: Floats

    def sizes(self, n: int, *, honest: bool, kind: Kind) -> Places:
        """Bits of every option; see `layer_size`."""
        levels = np.minimum(2**self.bits, self.kept) if kind == "free" else np.minimum(self.kept, 1)
        return layer_size(n, self.bits, self.kept, levels, honest=honest)

    def some(self, places: Places) -> Options:
        """The options at some places, or where a mask says."""
        bits, kept, negative, error = _columns(self)
        return Options(bits[places], kept[places], negative[places], error[places])

    def mask(self, weight: Tensor, place: int) -> Tensor:
        """The weights that an option keeps."""
        kept, negative = int(self.kept[place]), int(self.negative[place])
        if negative == BY_MAGNITUDE:
            return top_mask(weight, kept)
        flat = weight.detach()
        return top_mask(flat.clamp(max=0), negative) | top_mask(flat.clamp(min=0), kept - negative)


def layer_size(n: int, bits: Places | int, kept: Places, levels: Places, *, honest: bool) -> Places:
    """Bits of a layer: nominal, or with the entropy of the positions and the codebook.

    Args:
        n: Number of weights.
        bits: Width of a code.
        kept: Number of nonzeros.
        levels: Floats in the codebook: of a uniform grid only its scale.
        honest: Whether positions and codebook count.
    """
    nominal = bits * kept
    if not honest:
        return np.asarray(nominal, dtype=np.int64)
    k = np.asarray(kept, dtype=np.float64)
    inside = (k > 0) & (k < n)
    share = np.where(inside, k / max(n, 1), 0.5)
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    positions = np.where(inside, n * entropy, 0.0)
    return (np.ceil(positions) + nominal + LEVEL_BITS * levels).astype(np.int64)


def layer_options(weight: Tensor, widths: Sequence[int], most: int, kind: Kind) -> Options:
    """Options of a layer, none kept among them.

    Args:
        weight: Any shape; read only.
        widths: Allowed widths, ascending.
        most: No more weights than this can be kept.
        kind: Of the codebook.
    """
    top = weight.detach().reshape(-1)
    # Of few weights all matter: the best ones of both signs need not be the largest ones.
    if int(top.count_nonzero()) > SMALL:
        top = weight.detach()[top_mask(weight, most)]
    if kind == "uniform":
        found = _uniform(SortedValues.of(top, zeros=False, magnitudes=True), widths)
    else:
        found = _free(SortedValues.of(top, zeros=False), widths)
    nothing = np.zeros(1, dtype=np.int64)
    none = Options(np.asarray(widths[:1]), nothing, nothing, np.zeros(1))
    found.insert(0, none)
    bits, kept, negative, change = (
        np.concatenate(column) for column in zip(*map(_columns, found), strict=True)
    )
    energy = float(np.square(weight.detach().double().cpu().numpy()).sum())
    return Options(bits, kept, negative, np.maximum(energy + change, 0.0))


def _columns(part: Options) -> tuple[Places, Places, Places, Floats]:
    return part.bits, part.kept, part.negative, part.error


def _free(values: SortedValues, widths: Sequence[int]) -> list[Options]:
    if not values.size:
        return []
    small = values.size <= SMALL
    if small:
        run = Run.of_values(values.at(np.arange(values.size)), np.ones(values.size, dtype=np.int64))
    else:
        distinct = values.distinct(_DISTINCT)
        run = Run.of_values(*distinct) if distinct else values.run(coarse_places(values, _POINTS))
    sides = split(run)
    places = _every_pair(sides) if small else _by_magnitude(sides, values.size)
    counts = [side.rows.run.values_before()[at] for side, at in zip(sides, places, strict=True)]
    kept = counts[0] + counts[1]
    scale = 4.0**values.exponent
    saved = sum(side.tail()[0] for side in (s.rows.run for s in sides))
    result = []
    for bits in widths:
        error = (_pair_errors(sides, places, 1 << bits) - saved) * scale
        best = _best_of_each(kept, error) if small else np.arange(len(kept))
        width = np.full(len(best), bits)
        result.append(Options(width, kept[best], counts[0][best], error[best]))
    return result


def _every_pair(sides: Sequence[Side]) -> tuple[Places, Places]:
    grid = np.meshgrid(*(np.arange(side.rows.run.size + 1) for side in sides), indexing="ij")
    return grid[0].ravel(), grid[1].ravel()


def _by_magnitude(sides: Sequence[Side], n: int) -> tuple[Places, Places]:
    """Points of both sides above thresholds that keep about a geometric grid of counts."""
    means = [np.abs(side.rows.run.first / side.rows.run.count) for side in sides]
    counts = np.concatenate([side.rows.run.count for side in sides])
    every = np.concatenate(means)
    order = np.argsort(-every, kind="stable")
    wanted = np.unique(np.geomspace(1, n, _COUNTS).astype(np.int64))
    at = np.searchsorted(np.cumsum(counts[order]), wanted).clip(max=len(every) - 1)
    limits = np.unique(every[order][at])
    below = [np.searchsorted(-mean, -limits, side="right") for mean in means]
    return below[0].astype(np.int64), below[1].astype(np.int64)


def _pair_errors(sides: Sequence[Side], places: tuple[Places, Places], levels: int) -> Floats:
    """Least errors with so many levels, of the points before the places of both sides."""
    low, high = sides
    sizes = [side.rows.run.size for side in sides]
    for side, size in zip(sides, sizes, strict=True):
        side.rows.extend(max(1, min(levels, size)))
    best = np.full(len(places[0]), np.inf)
    for share in range(min(levels, sizes[0]) + 1):
        other = min(levels - share, sizes[1])
        error = low.rows.errors[share][places[0]] + high.rows.errors[other][places[1]]
        np.minimum(best, error, out=best)
    tails = [side.rows.run.tail()[at] for side, at in zip(sides, places, strict=True)]
    return np.asarray(best + tails[0] + tails[1])


def _best_of_each(kept: Places, error: Floats) -> Places:
    """The entry of least error for every number of nonzeros."""
    order = np.lexsort((error, kept))
    first = np.append(True, np.diff(kept[order]) > 0)
    result: Places = order[first]
    return result[np.isfinite(error[result])]


def _uniform(values: SortedValues, widths: Sequence[int]) -> list[Options]:
    if not values.size:
        return []
    every = _uniform_small if values.size <= SMALL else _uniform_large
    result = []
    for bits in widths:
        kept, error = every(values, bits)
        width = np.full(len(kept), bits)
        by_magnitude = np.full(len(kept), BY_MAGNITUDE)
        result.append(Options(width, kept, by_magnitude, error * 4.0**values.exponent))
    return result


def _uniform_small(values: SortedValues, bits: int) -> tuple[Places, Floats]:
    magnitudes = values.at(np.arange(values.size))[::-1]
    kept = np.arange(1, values.size + 1)
    errors = []
    for k in kept:
        top = SortedValues.of_divided(magnitudes[:k])
        errors.append(UniformLevels(top, True).error(bits) - float(np.square(magnitudes[:k]).sum()))
    return kept, np.asarray(errors)


def _uniform_large(values: SortedValues, bits: int) -> tuple[Places, Floats]:
    """For a grid of scales the gains of all points, largest magnitudes first."""
    places = coarse_places(values, _POINTS)
    run = values.run(places)
    count, first = run.count[::-1], run.first[::-1]
    mean, top = first / count, largest_code(bits, reserved_zero=True)
    scales = np.geomspace(mean[0] / top, mean[0] / top / 64, _SCALES)[:, None]
    codes = np.clip(np.round(mean / scales), 1, top)
    gains = np.cumsum(scales * codes * (2 * first - scales * codes * count), axis=1).max(axis=0)
    kept = np.cumsum(count).astype(np.int64)
    wanted = np.searchsorted(kept, np.geomspace(1, kept[-1], _COUNTS).astype(np.int64))
    some = np.unique(wanted)
    return kept[some], -gains[some]
