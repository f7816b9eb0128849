"""References for the projection: a full sort, and enumerations of every choice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from passes.projection.allocate import Allocation
from passes.projection.ladder import Ladder, build_ladder
from passes.projection.magnitudes import histogram, top_mask

# Layer A: two prices around a cache of two weights; layer B: one price.
TABLE_WEIGHTS = ((1.0, 0.9, 0.8, 0.3), (0.7, 0.6, 0.5, 0.2))
TABLE_LADDERS = (build_ladder(4, [(2, (10,)), (4, (16,))]), build_ladder(4, [(4, (7,))]))


@dataclass(frozen=True, slots=True)
class Sorted:
    """What a sort of all items keeps."""

    counts: tuple[int, ...]
    masks: tuple[np.ndarray, ...]
    next_charges: tuple[int, ...] | None
    gap: float


def shares(charge: Sequence[int], capacities: Sequence[int]) -> float:
    if len(charge) == 1:
        return float(charge[0])
    return float(sum(c / max(k, 1) for c, k in zip(charge, capacities, strict=True)))


def sort_projection(
    weights: Sequence[Tensor],
    ladders: Sequence[Ladder],
    capacities: Sequence[int],
    order: str = "ratio",
) -> Sorted:
    """Sort every weight by value per price; ties by layer, then by flat index."""
    items = []  # (-ratio, layer, index, charges), sorted as tuples
    for layer, (weight, ladder) in enumerate(zip(weights, ladders, strict=True)):
        flat = np.abs(weight.to(torch.float64).reshape(-1).numpy())
        ranking = np.argsort(-flat, kind="stable")
        for rank, index in enumerate(ranking[: np.count_nonzero(flat)]):
            charge = ladder.charges_at(rank)
            price = 1.0 if order == "magnitude" else shares(charge, capacities)
            forced = next(step.forced for step in ladder.steps if rank < step.end)
            ratio = np.inf if forced else flat[index] ** 2 / price
            items.append((-ratio, layer, int(index), charge))
    items.sort()
    masks = [np.zeros(weight.numel(), dtype=bool) for weight in weights]
    left = list(capacities)
    for position, (ratio, layer, index, charge) in enumerate(items):
        if any(c > k for c, k in zip(charge, left, strict=True)):
            unused = left[0] if len(left) == 1 else shares(left, capacities)
            return _sorted(masks, items[position][3], -ratio * unused)
        left = [k - c for k, c in zip(left, charge, strict=True)]
        masks[layer][index] = True
    return _sorted(masks, None, 0.0)


def _sorted(masks: list[np.ndarray], charges: tuple[int, ...] | None, gap: float) -> Sorted:
    return Sorted(tuple(int(mask.sum()) for mask in masks), tuple(masks), charges, gap)


def squares(weight: Tensor) -> np.ndarray:
    """Squares in descending order."""
    return np.sort(weight.to(torch.float64).reshape(-1).numpy() ** 2)[::-1]


def kept_value(weights: Sequence[Tensor], counts: Sequence[int]) -> float:
    """Sum of squares of the largest `counts` weights of each layer."""
    pairs = zip(weights, counts, strict=True)
    return float(sum(squares(weight)[:count].sum() for weight, count in pairs))


def fits(ladders: Sequence[Ladder], counts: Sequence[int], capacities: Sequence[int]) -> bool:
    each = [ladder.used(count) for ladder, count in zip(ladders, counts, strict=True)]
    return all(sum(col) <= k for col, k in zip(zip(*each, strict=True), capacities, strict=True))


def best_by_counts(
    weights: Sequence[Tensor],
    ladders: Sequence[Ladder],
    capacities: Sequence[int],
    least: Sequence[int] | None = None,
) -> float:
    """Optimum over all numbers of weights per layer."""
    least = least or [0] * len(weights)
    ranges = [range(a, w.numel() + 1) for a, w in zip(least, weights, strict=True)]
    values = [np.concatenate([[0.0], np.cumsum(squares(weight))]) for weight in weights]
    feasible = (c for c in itertools.product(*ranges) if fits(ladders, c, capacities))
    return max(sum(v[n] for v, n in zip(values, counts, strict=True)) for counts in feasible)


def best_by_supports(
    weights: Sequence[Tensor], ladders: Sequence[Ladder], capacities: Sequence[int]
) -> float:
    """Optimum over all 2^n supports; a support costs what its number of weights costs."""
    values = [w.to(torch.float64).reshape(-1).numpy() ** 2 for w in weights]
    per_layer = []
    for value, ladder in zip(values, ladders, strict=True):
        bits = np.arange(1 << len(value))[:, None] >> np.arange(len(value)) & 1
        used = np.array([ladder.used(int(n)) for n in bits.sum(axis=1)])
        per_layer.append((bits @ value, used))
    total, used = per_layer[0]
    for value, more in per_layer[1:]:
        total = np.add.outer(total, value).reshape(-1)
        used = (used[:, None, :] + more[None, :, :]).reshape(-1, len(capacities))
    return float(total[(used <= np.asarray(capacities)).all(axis=1)].max())


def masks_of(weights: Sequence[Tensor], allocation: Allocation) -> list[Tensor]:
    return [top_mask(w, n) for w, n in zip(weights, allocation.counts, strict=True)]


def project(weights: Sequence[Tensor], allocation: Allocation) -> list[Tensor]:
    """The projected weights."""
    masks = masks_of(weights, allocation)
    return [torch.where(m, w, torch.zeros_like(w)) for m, w in zip(masks, weights, strict=True)]


def histograms_of(weights: Sequence[Tensor]) -> list:
    return [histogram(weight) for weight in weights]


def lenet_like_ladders(sizes: Sequence[int], cache: int = 40) -> list[Ladder]:
    """One-limit ladders with unequal prices; layers are smaller or larger than the cache."""
    prices = [(3732, 17000), (654, 2300), (210, 210), (966, 3766)]
    return [
        build_ladder(n, [(cache, (prices[i % 4][0],)), (n, (prices[i % 4][1],))])
        for i, n in enumerate(sizes)
    ]


@dataclass(frozen=True, slots=True)
class Knapsack:
    weights: list[Tensor]
    ladders: list[Ladder]
    capacities: tuple[int, ...]
    forced: tuple[int, ...]


@st.composite
def knapsacks(draw, limits: int = 1, largest: int = 6, force: bool = False) -> Knapsack:
    """Two small layers with two prices each, values with ties and zeros, a binding capacity."""
    weights, ladders, forced = [], [], []
    for _ in range(2):
        size = draw(st.integers(1, largest))
        grid = st.integers(-8, 8).map(lambda n: n / 4)
        values = grid if draw(st.booleans()) else st.floats(-2, 2, width=32)
        weight = torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).double()
        first = draw(st.tuples(*[st.integers(1, 20)] * limits))
        extra = draw(st.tuples(*[st.integers(0, 20)] * limits))
        beyond = tuple(a + b for a, b in zip(first, extra, strict=True))
        cache = draw(st.integers(0, size + 1))
        least = draw(st.integers(0, int((weight != 0).sum()))) if force else 0
        weights.append(weight)
        ladders.append(build_ladder(size, [(cache, first), (size, beyond)], forced=least))
        forced.append(least)
    full = [ladder.used(w.numel()) for ladder, w in zip(ladders, weights, strict=True)]
    floor = [ladder.used(least) for ladder, least in zip(ladders, forced, strict=True)]
    most, need = ([sum(col) for col in zip(*rows, strict=True)] for rows in (full, floor))
    capacities = tuple(draw(st.integers(a, b + 2)) for a, b in zip(need, most, strict=True))
    return Knapsack(weights, ladders, capacities, tuple(forced))
