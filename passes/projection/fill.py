"""Fill what a prefix leaves: take any later weight that still fits."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from passes.projection.allocate import Allocation, Order, _prices
from passes.projection.ladder import Ladder
from passes.projection.magnitudes import Histogram, ranked


@dataclass(slots=True)
class _Queue:
    """The next weights of one layer, in descending order of magnitude."""

    ladder: Ladder
    magnitudes: list[float]
    rank: int
    taken: int = 0


def fill(
    allocation: Allocation,
    weights: Sequence[Tensor],
    ladders: Sequence[Ladder],
    histograms: Sequence[Histogram],
    order: Order = "ratio",
) -> Allocation:
    """Continue after the prefix: in the same order, take whatever fits into the residual.

    The result is feasible, never worse than the prefix, and every layer still keeps its largest
    weights: charges never fall within a layer, so when one weight does not fit no later one does.

    Args:
        allocation: The prefix.
        weights: As given to `allocate`.
        ladders: As given to `allocate`.
        histograms: Those of `weights`.
        order: As given to `allocate`.
    """
    residual = list(allocation.residual)
    queues = [
        _queue(weights[i], ladders[i], histograms[i], allocation.counts[i], residual)
        for i in range(len(weights))
    ]
    heap: list[tuple[float, int]] = []
    added = 0.0

    def push(layer: int) -> None:
        queue = queues[layer]
        if queue.taken < len(queue.magnitudes):
            charges = np.asarray([queue.ladder.charges_at(queue.rank)], dtype=np.int64)
            price = float(_prices(charges, allocation.capacities, order)[0])
            heapq.heappush(heap, (-(queue.magnitudes[queue.taken] ** 2) / price, layer))

    for layer in range(len(queues)):
        push(layer)
    while heap:
        _, layer = heapq.heappop(heap)
        charges = queues[layer].ladder.charges_at(queues[layer].rank)
        if all(c <= r for c, r in zip(charges, residual, strict=True)):
            residual = [r - c for r, c in zip(residual, charges, strict=True)]
            added += queues[layer].magnitudes[queues[layer].taken] ** 2
            queues[layer].rank += 1
            queues[layer].taken += 1
            push(layer)
    counts = tuple(queue.rank for queue in queues)
    used = tuple(k - r for k, r in zip(allocation.capacities, residual, strict=True))
    gap = None if allocation.gap is None else max(0.0, allocation.gap - added)
    return replace(allocation, counts=counts, used=used, gap=gap)


def _queue(
    weight: Tensor, ladder: Ladder, counts: Histogram, rank: int, residual: Sequence[int]
) -> _Queue:
    if rank >= counts.nonzeros:
        return _Queue(ladder, [], rank)
    charges = ladder.charges_at(rank)
    fits = min(
        (r // c for r, c in zip(residual, charges, strict=True) if c), default=counts.nonzeros
    )
    _, magnitude = ranked(weight, counts, rank, rank + fits)
    return _Queue(ladder, magnitude.tolist(), rank)
