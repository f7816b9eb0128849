"""From widths and supports to codebooks and errors, and rounds that improve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import BoolTensor, Tensor

from passes.joint.codebook import Codebook, Kind
from passes.joint.fit import fit_codebook
from passes.joint.layer_options import layer_size
from passes.joint.points import Floats
from passes.joint.sparsity import project_sparsity
from passes.projection.magnitudes import top_mask

_ROUNDS = 8
_BISECTIONS = 60
# Rounds end when they gain less than this, relative to the error.
_GAIN = 1e-9
# Of one more nonzero: its position is never counted as a saving.
_LEAST_PRICE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A joint allocation to be solved.

    Attributes:
        weights: One tensor per layer.
        budget: Limit of the size, in bits.
        widths: Allowed widths of every layer, ascending.
        least: Nonzeros that every layer keeps at least, where it has so many.
        kind: Of the codebooks.
        honest: Whether positions and codebooks count.
    """

    weights: Sequence[Tensor]
    budget: int
    widths: Sequence[Sequence[int]]
    least: Sequence[int]
    kind: Kind
    honest: bool


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Widths, supports and codebooks, with what they cost; one entry per layer."""

    bits: list[int]
    masks: list[BoolTensor]
    codebooks: list[Codebook]
    error: float
    size: int

    @property
    def nonzeros(self) -> list[int]:
        """Weights that are not coded as zero."""
        return [int(mask.sum()) for mask in self.masks]


def realise(problem: Problem, bits: Sequence[int], masks: Sequence[Tensor]) -> Solution:
    """Fit codebooks to the kept weights; those that are coded as zero are not kept any more."""
    final, codebooks, error, size = [], [], 0.0, 0
    for weight, width, mask in zip(problem.weights, bits, masks, strict=True):
        values = weight.detach()[mask]
        codebook = fit_codebook(values, width, kind=problem.kind)
        coded = codebook.codes(values) != 0
        kept = torch.zeros_like(mask)
        kept[mask] = coded
        error += _squares(weight.detach()[~mask]) + codebook.sse
        count = int(coded.sum())
        levels = len(codebook.levels) if problem.kind == "free" else 1
        size += _size(problem, weight, width, count, min(levels, count))
        final.append(kept)
        codebooks.append(codebook)
    return Solution(list(bits), final, codebooks, error, size)  # type: ignore[arg-type]


def refine(problem: Problem, start: Solution) -> Solution:
    """Keep what gains most under the codebooks, fit again, and so on while the error falls."""
    best = start
    for _ in range(_ROUNDS):
        gains = [_gain_roots(w, c) for w, c in zip(problem.weights, best.codebooks, strict=True)]
        if problem.honest:
            masks = _kept_honestly(problem, best, gains)
        else:
            masks = list(project_sparsity(gains, best.bits, problem.budget, least=problem.least))
        found = realise(problem, best.bits, masks)
        if found.size > problem.budget or found.error >= best.error * (1 - _GAIN):
            break
        best = found
    return best


def _squares(values: Tensor) -> float:
    # numpy's sum, whose order does not depend on the number of threads.
    return float(np.square(values.double().cpu().numpy()).sum())


def _size(problem: Problem, weight: Tensor, bits: int, kept: int, levels: int) -> int:
    counts = (np.asarray(kept), np.asarray(levels))
    return int(layer_size(weight.numel(), bits, *counts, honest=problem.honest))


def _gain_roots(weight: Tensor, codebook: Codebook) -> Tensor:
    """Roots of what the squared error falls by when a weight is coded and not pruned."""
    exact = weight.detach().double()
    difference = exact - codebook.nearest(weight.detach()).double()
    return (exact.square() - difference.square()).clamp_min_(0.0).sqrt_()


def _kept_honestly(problem: Problem, now: Solution, gains: Sequence[Tensor]) -> list[Tensor]:
    """Weights whose gain exceeds a multiple of what one more of their layer takes at present."""
    layers = []
    for weight, bits, kept, codebook in zip(
        problem.weights, now.bits, now.nonzeros, now.codebooks, strict=True
    ):
        odds = (weight.numel() - kept) / max(kept, 1)
        price = max(bits + float(np.log2(max(odds, 1e-9))), _LEAST_PRICE)
        levels = len(codebook.levels) if problem.kind == "free" else 1
        layers.append((price, bits, levels))
    ranked = [np.sort(g.cpu().numpy().ravel() ** 2)[::-1] for g in gains]
    low, high = 0.0, max(float(r[0]) if len(r) else 0.0 for r in ranked) * 4 + 1e-300

    def counts(rate: float) -> list[int]:
        return [
            max(_above(r, rate * price), min(least, _above(r, 0.0)))
            for r, (price, _, _), least in zip(ranked, layers, problem.least, strict=True)
        ]

    def fits(rate: float) -> bool:
        sizes = (
            _size(problem, w, bits, k, min(levels, k))
            for w, k, (_, bits, levels) in zip(problem.weights, counts(rate), layers, strict=True)
        )
        return sum(sizes) <= problem.budget

    for _ in range(_BISECTIONS):
        middle = (low + high) / 2 if low > high / 4 else high / 16
        low, high = (low, middle) if fits(middle) else (middle, high)
    return [top_mask(g, k) for g, k in zip(gains, counts(high), strict=True)]


def _above(descending: Floats, limit: float) -> int:
    return int(np.searchsorted(-descending, -limit, side="left"))
