"""Masks and bits for an energy budget, for weights as they are: what one shot writes.

    min  sum_l |W_l - Q_l|^2   s.t.  sum_l energy_l(nonzeros of Q_l, b_l) <= B

with every Q_l on a uniform grid of b_l bits.

First a multiple-choice knapsack over pairs of width and nonzero count, which is the optimum for
layers of at most 64 nonzeros. Then, as for bits (Yang, Gui, Zhu, Liu, CVPR 2020), widths and masks
in turn, from every uniform width and from the best so far. The best of all counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passes.joint.choice import Group, choose
from passes.joint.codebook import WIDTHS, Codebook
from passes.joint.fit import fit_codebook
from passes.methods.joint.energy_options import grid_options
from passes.methods.joint.energy_rate import EnergyRate
from passes.methods.joint.rates import Layer
from passes.projection.magnitudes import top_mask

# Of widths and masks in turn from every start; of masks and grids at fixed widths.
_TURNS, _ROUNDS = 2, 4
# So many of the best choices are improved at fixed widths.
_FINALISTS = 3
# Rounds end when they gain less than this, relative to the error.
_GAIN = 1e-6
# Above so many weights, widths and masks alternate from the best start only.
_CHEAP = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A choice and what it costs.

    Attributes:
        bits: Of every layer.
        masks: Weights that are neither pruned nor rounded to zero.
        grids: Of every layer; `None` where weights keep their type, or none is left.
        error: Sum of squared changes of all weights.
        missing: Weights that must stay and are rounded to zero.
        over: It exceeds the budget.
    """

    bits: tuple[int, ...]
    masks: tuple[Tensor, ...]
    grids: tuple[Codebook | None, ...]
    error: float
    missing: int
    over: bool

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Less is better."""
        return self.over, self.missing, self.error


@dataclass(frozen=True, slots=True)
class EnergySearch:
    """The problem: which weights stay, and the width of every layer.

    Attributes:
        weights: One tensor per layer; read only.
        layers: Their bounds.
        rate: Counts energy, at full weight of the quantization error.
        budget: In 1/256 units of energy.
    """

    weights: list[Tensor]
    layers: Sequence[Layer]
    rate: EnergyRate
    budget: int

    def best(self, bits: Sequence[int]) -> Found:
        """The best choice found; no uniform width and not the given bits do better.

        Args:
            bits: Of every layer, where to begin beside the uniform widths.
        """
        found = [self.kept(start) for start in self._starts(bits)]
        found += self._paired()
        cheap = sum(w.numel() for w in self.weights) <= _CHEAP
        starts = sorted(found, key=lambda f: f.rank)
        seen = {start.bits for start in starts}
        for start in starts if cheap else starts[:1]:
            found += self._alternated(start, seen)
        finalists = sorted(found, key=lambda f: f.rank)[: _FINALISTS if cheap else 1]
        return min(map(self._refined, finalists), key=lambda f: f.rank)

    def kept(self, bits: Sequence[int]) -> Found:
        """What a projection keeps at given bits."""
        masks = self.rate.project(self.weights, list(bits), self.budget, self.layers)
        return self._fitted(bits, masks)

    def _starts(self, bits: Sequence[int]) -> list[tuple[int, ...]]:
        every = sorted({b for layer in self.layers for b in layer.widths if b in WIDTHS})
        uniform = [
            tuple(b if b in layer.widths else layer.widths[0] for layer in self.layers)
            for b in every
        ]
        return list(dict.fromkeys([*uniform, tuple(bits)]))

    def _paired(self) -> Iterator[Found]:
        """The knapsack over widths and counts together."""
        options = [
            grid_options(w, layer.widths, min(layer.least, int(torch.count_nonzero(w))))
            for w, layer in zip(self.weights, self.layers, strict=True)
        ]
        groups = []
        for place, option in enumerate(options):
            size = np.zeros(len(option.bits), dtype=np.int64)
            for width in np.unique(option.bits):
                at = option.bits == width
                size[at] = self.rate.energy(place, int(width), option.kept[at])
            groups.append(Group.of(size, option.error))
        if sum(int(g.size[0]) for g in groups) > self.budget:
            return
        places = choose(groups, self.budget).options
        bits = [int(o.bits[p]) for o, p in zip(options, places, strict=True)]
        rows = zip(self.weights, options, places, strict=True)
        yield self.kept(bits)
        yield self._fitted(bits, [top_mask(w, int(o.kept[p])) for w, o, p in rows])

    def _alternated(self, start: Found, seen: set[tuple[int, ...]]) -> Iterator[Found]:
        """Widths for what is kept, masks for the widths, and so on, up to widths seen before."""
        now = start
        for _ in range(_TURNS):
            # The rate must know what a projection pays at these bits.
            self.rate.project(self.weights, list(now.bits), self.budget, self.layers)
            pairs = zip(self.weights, now.masks, strict=True)
            kept = [w.detach().masked_fill(~m, 0.0) for w, m in pairs]
            bits = tuple(self.rate.choose(kept, kept, list(now.bits), self.budget, self.layers))
            if bits in seen:
                return
            seen.add(bits)
            now = self.kept(bits)
            yield now

    def _refined(self, start: Found) -> Found:
        """Keep what saves most on the grids, fit these again, while that gains something."""
        best = start
        for _ in range(_ROUNDS):
            savings = [_savings(w, grid) for w, grid in zip(self.weights, best.grids, strict=True)]
            masks = self.rate.project(savings, list(best.bits), self.budget, self.layers)
            found = self._fitted(best.bits, masks)
            if found.rank[:2] > best.rank[:2] or found.error >= best.error * (1 - _GAIN):
                break
            best = found
        return best

    def _fitted(self, bits: Sequence[int], masks: Sequence[Tensor]) -> Found:
        """Fit the grids to what is kept."""
        final, grids, error, missing = [], [], 0.0, 0
        for w, width, mask, layer in zip(self.weights, bits, masks, self.layers, strict=True):
            weight, grid = w.detach(), None
            if width in WIDTHS and bool(mask.any()):
                grid = fit_codebook(weight[mask], width, reserved_zero=False, kind="uniform")
                error += grid.sse
            error += _squares(weight[~mask])
            if grid is not None:
                mask = mask & (grid.nearest(weight) != 0)
            must = min(layer.least, int(torch.count_nonzero(weight)))
            missing += max(0, must - int(mask.sum()))
            final.append(mask)
            grids.append(grid)
        over = not self.rate.within(final, list(bits), self.budget)
        return Found(tuple(bits), tuple(final), tuple(grids), error, missing, over)


def _squares(values: Tensor) -> float:
    # numpy's sum, whose order does not depend on the number of threads.
    return float(np.square(values.double().cpu().numpy()).sum())


def _savings(weight: Tensor, grid: Codebook | None) -> Tensor:
    """Roots of what the squared error falls by when a weight is not pruned; float64."""
    exact = weight.detach().double()
    if grid is None:
        return exact.abs()
    difference = exact - grid.nearest(weight.detach()).double()
    return (exact.square() - difference.square()).clamp_min_(0.0).sqrt_()
