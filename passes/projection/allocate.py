"""Weighted sparse projection: which weights to keep when each has a price.

The problem (Yang, Zhu, Liu, ICLR 2019): the nearest point `W` to weights `Z` within linear budgets,

    min ||W - Z||^2   subject to   sum of charges of the nonzeros of W <= capacities.

A kept weight has no reason to move, so it is a 0/1 knapsack with values `Z_i^2`. The greedy answer
keeps the longest prefix in the order of value per price. Its distance to the optimum is at most
`ratio of the next item * unused share`, less than the square of one weight, and is reported.

Selection is O(n): weights are counted by magnitude bins, and only the items whose bins straddle the
critical ratio are looked at one by one. The result equals that of a full sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passes.projection.ladder import Ladder
from passes.projection.magnitudes import BINS, Histogram, bin_edges, gather, histogram

Order = Literal["ratio", "magnitude"]
# Relative slack for the rounding of `magnitude**2 / price` in float64.
_SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Allocation:
    """How many weights each layer keeps; always the largest of the layer.

    Attributes:
        counts: Kept weights per layer.
        used: Use of each limit, same units as `capacities`.
        capacities: What each limit allows.
        gap: Upper bound on how far the kept sum of squares lies below the optimum; 0 means exact.
            `None` when the order is not by ratio, so that nothing is claimed.
        next_charges: Charges of the first weight that did not fit; `None` when all were kept.
        exact: The bound proves optimality.
    """

    counts: tuple[int, ...]
    used: tuple[int, ...]
    capacities: tuple[int, ...]
    gap: float | None
    next_charges: tuple[int, ...] | None

    @property
    def residual(self) -> tuple[int, ...]:
        """What is left of each limit."""
        return tuple(k - u for k, u in zip(self.capacities, self.used, strict=True))

    @property
    def exact(self) -> bool:
        """Whether the bound proves that no other choice keeps more."""
        return self.gap == 0.0


@dataclass(frozen=True, slots=True)
class _Groups:
    """Weights of one layer, one magnitude bin and one step; parallel arrays of shape `(g,)`."""

    layer: NDArray[np.int64]
    bin: NDArray[np.int64]
    charges: NDArray[np.int64]  # (g, limits), of the whole group
    low: NDArray[np.float64]  # bounds of the ratio
    high: NDArray[np.float64]


def _prices(
    charges: NDArray[np.int64], capacities: Sequence[int], order: Order
) -> NDArray[np.float64]:
    """The price that divides the value: the charge itself when there is one limit.

    With several limits it is the sum of the shares that the item takes of each capacity (the
    surrogate of a multi-dimensional knapsack), whose Lagrangian gives the same kind of bound.
    """
    if order == "magnitude":
        return np.ones(len(charges))
    if charges.shape[1] == 1:
        return charges[:, 0].astype(np.float64)
    shares = 1.0 / np.maximum(np.asarray(capacities, dtype=np.float64), 1.0)
    result: NDArray[np.float64] = charges @ shares
    return result


def _layer_groups(layer: int, ladder: Ladder, counts: Histogram, context: _Context) -> _Groups:
    bins = np.flatnonzero(counts.counts)[::-1].astype(np.int64)
    ends = np.cumsum(counts.counts[bins])
    starts = ends - counts.counts[bins]
    low, high = bin_edges(bins)
    parts = []
    step_start = 0
    for step in ladder.steps:
        n = np.minimum(ends, step.end) - np.maximum(starts, step_start)
        here = n > 0
        unit = np.asarray([step.charges], dtype=np.int64)
        price = float(_prices(unit, context.capacities, context.order)[0])
        ratio_low = low[here] ** 2 / price * (1 - _SLACK)
        ratio_high = high[here] ** 2 / price * (1 + _SLACK)
        if step.forced:
            ratio_low = ratio_high = np.full(int(here.sum()), np.inf)
        parts.append((bins[here], n[here, None] * unit, ratio_low, ratio_high))
        step_start = step.end
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _Groups(np.full(len(joined[0]), layer, dtype=np.int64), *joined)


@dataclass(frozen=True, slots=True)
class _Context:
    weights: Sequence[Tensor]
    ladders: Sequence[Ladder]
    histograms: Sequence[Histogram]
    capacities: tuple[int, ...]
    order: Order


def _crossing(
    groups: _Groups, by: NDArray[np.float64], capacities: NDArray[np.int64]
) -> int | None:
    """Index of the first group, in descending order of `by`, at which a limit is exceeded."""
    if not len(by):
        return None
    order = np.argsort(-by, kind="stable")
    total: NDArray[np.int64] = np.cumsum(groups.charges[order], axis=0)
    over: NDArray[np.bool_] = np.any(total > capacities, axis=1)
    position = int(np.argmax(over))
    return int(order[position]) if over[position] else None


def _critical_bins(groups: _Groups, capacities: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Per layer, the first and last bin in which the fate of a weight is still open."""
    limit = np.asarray(capacities, dtype=np.int64)
    lower = _crossing(groups, groups.low, limit)
    upper = _crossing(groups, groups.high, limit)
    if lower is None or upper is None:
        return {}
    open_ = (groups.high >= groups.low[lower]) & (groups.low <= groups.high[upper])
    # A bin that a step divides between kept and dropped must be looked into as well.
    kept = groups.low > groups.high[upper]
    keys = groups.layer * BINS + groups.bin
    open_ |= np.isin(keys, np.intersect1d(keys[kept], keys[~kept]))
    result: dict[int, tuple[int, int]] = {}
    for layer in np.unique(groups.layer[open_]):
        bins = groups.bin[open_ & (groups.layer == layer)]
        result[int(layer)] = (int(bins.min()), int(bins.max()))
    return result


@dataclass(frozen=True, slots=True)
class _Items:
    """Single weights, in order of layer and flat index; parallel arrays."""

    layer: NDArray[np.int64]
    charges: NDArray[np.int64]
    ratio: NDArray[np.float64]


def _open_items(context: _Context, open_bins: dict[int, tuple[int, int]]) -> _Items:
    layers, charges, ratios = [], [], []
    for layer, (first, last) in sorted(open_bins.items()):
        _, magnitude = gather(context.weights[layer], first, last)
        order = torch.argsort(magnitude, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        ranks = rank.cpu().numpy() + int(context.histograms[layer].counts[last + 1 :].sum())
        steps = context.ladders[layer].steps
        at = np.searchsorted([step.end for step in steps], ranks, side="right")
        charge = np.asarray([step.charges for step in steps], dtype=np.int64)[at]
        price = _prices(charge, context.capacities, context.order)
        ratio = magnitude.cpu().numpy() ** 2 / price
        ratio[np.asarray([step.forced for step in steps])[at]] = np.inf
        layers.append(np.full(len(ratio), layer, dtype=np.int64))
        charges.append(charge)
        ratios.append(ratio)
    return _Items(np.concatenate(layers), np.concatenate(charges), np.concatenate(ratios))


def _surely_kept(
    context: _Context, groups: _Groups, open_bins: dict[int, tuple[int, int]]
) -> list[int]:
    """Weights per layer that lie above every open bin and above the critical ratio."""
    limit = np.asarray(context.capacities, dtype=np.int64)
    upper = _crossing(groups, groups.high, limit)
    kept = groups.low > (groups.high[upper] if upper is not None else -1.0)
    counts = []
    for layer, histogram_ in enumerate(context.histograms):
        if layer in open_bins:
            counts.append(int(histogram_.counts[open_bins[layer][1] + 1 :].sum()))
        else:
            bins = groups.bin[kept & (groups.layer == layer)]
            counts.append(int(histogram_.counts[np.unique(bins)].sum()))
    return counts


def _use(context: _Context, counts: Sequence[int]) -> tuple[int, ...]:
    each = [ladder.used(n) for ladder, n in zip(context.ladders, counts, strict=True)]
    return tuple(sum(column) for column in zip(*each, strict=True))


def allocate(
    weights: Sequence[Tensor],
    ladders: Sequence[Ladder],
    capacities: Sequence[int],
    *,
    order: Order = "ratio",
    histograms: Sequence[Histogram] | None = None,
) -> Allocation:
    """Keep the longest prefix of all weights, in the given order, that fits every capacity.

    Args:
        weights: One tensor per layer, any shape; read only.
        ladders: What the weights of each layer are charged, by rank.
        capacities: One limit per charge, in its unit.
        order: `"ratio"`: value per price, the weighted projection. `"magnitude"`: the baseline
            that ranks all weights by size alone and is charged all the same.
        histograms: Those of `weights`, if they are at hand.

    Returns:
        The counts per layer. Weights that are zero already are never counted as kept.
    """
    counted = histograms or [histogram(w) for w in weights]
    context = _Context(weights, ladders, counted, tuple(capacities), order)
    each = [_layer_groups(i, ladders[i], counted[i], context) for i in range(len(weights))]
    groups = _Groups(
        *(np.concatenate([getattr(g, f) for g in each]) for f in _Groups.__dataclass_fields__)
    )
    open_bins = _critical_bins(groups, context.capacities)
    counts = _surely_kept(context, groups, open_bins)
    base = _use(context, counts)
    if not open_bins:
        gap = 0.0 if order == "ratio" else None
        return Allocation(tuple(counts), base, context.capacities, gap, None)
    items = _open_items(context, open_bins)
    sequence = np.argsort(-items.ratio, kind="stable")
    total = np.asarray(base) + np.cumsum(items.charges[sequence], axis=0)
    taken = int((total <= np.asarray(capacities)).all(axis=1).sum())
    kept = np.bincount(items.layer[sequence[:taken]], minlength=len(weights))
    final = tuple(int(c + k) for c, k in zip(counts, kept, strict=True))
    result = Allocation(final, _use(context, final), context.capacities, None, None)
    first_out = sequence[taken]
    charges = tuple(int(c) for c in items.charges[first_out])
    gap = _gap(float(items.ratio[first_out]), result) if order == "ratio" else None
    return replace(result, gap=gap, next_charges=charges)


def _gap(ratio: float, allocation: Allocation) -> float:
    """`ratio * unused`: the fraction of the next item that the linear relaxation would add."""
    residual = allocation.residual
    if len(residual) == 1:
        return ratio * residual[0]
    return ratio * sum(r / max(k, 1) for r, k in zip(residual, allocation.capacities, strict=True))
