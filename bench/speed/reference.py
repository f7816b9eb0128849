"""The weighted projection by sorting everything: slow, short, and the judge of the fast one.

Greedy by value per price, ties by layer and flat index, then whatever later weight still fits
(Yang, Zhu, Liu, ICLR 2019, weighted sparse projection). Every weight becomes an item; nothing is
counted by bins, and no layer is assumed to keep a prefix of its ranking. O(n log n) time; about 50
bytes of memory per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passes.projection.ladder import Ladder

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class _Items:
    """Every nonzero weight, by layer and rank; arrays of shape `(n,)`, charges `(n, limits)`."""

    charges: NDArray[np.int64]
    ratio: NDArray[np.float64]
    counts: tuple[int, ...]  # per layer


class SortedWeights:
    """Weights with the full ranking of every layer, to be projected onto any budget.

    Args:
        weights: One tensor per layer, any shape and floating dtype; read only.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.shapes = [weight.shape for weight in weights]
        self.orders: list[Tensor] = []
        self.magnitudes: list[NDArray[np.float64]] = []
        for weight in weights:
            flat = weight.detach().reshape(-1).abs()
            found = torch.sort(flat, stable=True, descending=True)
            nonzeros = int(torch.count_nonzero(flat))
            self.orders.append(found.indices[:nonzeros])
            self.magnitudes.append(found.values[:nonzeros].to(torch.float64).numpy())

    def project(self, ladders: Sequence[Ladder], capacities: Sequence[int]) -> tuple[Tensor, ...]:
        """Which weights a budget keeps.

        Args:
            ladders: What the weights of each layer are charged, by rank.
            capacities: One limit per charge, in its unit.

        Returns:
            One boolean tensor per layer, of its shape.
        """
        items = self._items(ladders, capacities)
        sequence = np.argsort(-items.ratio, kind="stable")
        kept = _taken(items.charges[sequence], np.asarray(capacities, dtype=np.int64))
        chosen = np.zeros(len(sequence), dtype=bool)
        chosen[sequence[kept]] = True
        parts = np.split(chosen, np.cumsum(items.counts)[:-1])
        masks = []
        for shape, order, part in zip(self.shapes, self.orders, parts, strict=True):
            mask = torch.zeros(shape.numel(), dtype=torch.bool)
            mask[order[torch.from_numpy(part)]] = True
            masks.append(mask.view(shape))
        return tuple(masks)

    def _items(self, ladders: Sequence[Ladder], capacities: Sequence[int]) -> _Items:
        charges, ratios = [], []
        for magnitude, ladder in zip(self.magnitudes, ladders, strict=True):
            start = 0
            for step in ladder.steps:
                run = magnitude[start : step.end]
                price = _price(step.charges, capacities)
                ratios.append(np.full(len(run), np.inf) if step.forced else run**2 / price)
                charges.append(np.tile(np.asarray(step.charges, dtype=np.int64), (len(run), 1)))
                start = step.end
        counts = tuple(len(magnitude) for magnitude in self.magnitudes)
        return _Items(np.concatenate(charges), np.concatenate(ratios), counts)


def _price(charges: Sequence[int], capacities: Sequence[int]) -> float:
    """The charge, or with several limits the sum of the shares of their capacities."""
    if len(charges) == 1:
        return float(charges[0])
    return sum(c / max(k, 1) for c, k in zip(charges, capacities, strict=True))


def _taken(charges: NDArray[np.int64], capacities: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the longest prefix that fits, and of all that fits into the rest, in order."""
    total = np.cumsum(charges, axis=0)
    prefix = int((total <= capacities).all(axis=1).sum())
    residual = capacities - total[prefix - 1] if prefix else capacities.copy()
    del total
    extra, position = [], prefix
    while position < len(charges):
        fits: NDArray[np.bool_] = np.all(charges[position : position + _CHUNK] <= residual, axis=1)
        first = int(np.argmax(fits))
        if not fits[first]:
            position += len(fits)
            continue
        position += first + 1
        extra.append(position - 1)
        residual -= charges[position - 1]
    return np.concatenate([np.arange(prefix), np.asarray(extra, dtype=np.int64)])
