"""Which weights to keep when those of each layer cost its bits.

W-step of Yang, Gui, Zhu, Liu, CVPR 2020: the nearest point to W within the size budget,

    max  sum of W_j^2 over the kept j   s.t.   sum of bits of their layers <= S,

a 0/1 knapsack. Their greedy keeps the longest prefix by W_j^2 / bits (and one fewer, by an error);
this is the exact optimum. Weights are counted by magnitude, never sorted as a whole: O(n).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import BoolTensor, Tensor

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.joint.knapsack import Margin, best_changes, reach
from passes.joint.points import Floats
from passes.projection.allocate import allocate
from passes.projection.ladder import build_ladder
from passes.projection.magnitudes import Histogram, histogram, ranked, top_mask

MOST_BITS = 32


def project_sparsity(
    weights: list[Tensor],
    bits: list[int],
    budget_bits: int,
    *,
    least: Sequence[int] | None = None,
) -> list[BoolTensor]:
    """Keep the weights with the largest sum of squares whose bits fit a budget.

    Args:
        weights: One tensor per layer, any shape and floating dtype; read only.
        bits: Of every kept weight of each layer, 1 to 32.
        budget_bits: Their sum is to be at most this.
        least: Weights that each layer keeps at least, its largest; fewer where fewer are not zero.

    Returns:
        Masks of the shapes of `weights`: an exact optimum. Zeros are never kept. Of equal weights
        of layers with equal bits that of the first layer is kept, within a layer the first.

    Raises:
        ArgumentError: Lengths differ, or a number is negative or no whole one.
        InfeasibleBudget: What every layer keeps at least does not fit.
        PreconditionError: A weight is not finite or beyond float32.
    """
    widths, budget, minimums = check_sizes(weights, bits, budget_bits, least, "project_sparsity")
    counted = [histogram(w, f"layer {i}") for i, w in enumerate(weights)]
    forced = [min(m, h.nonzeros) for m, h in zip(minimums, counted, strict=True)]
    tightest = sum(b * n for b, n in zip(widths, forced, strict=True))
    if tightest > budget:
        raise InfeasibleBudget(
            f"the weights that must stay take {tightest} bits of {budget}",
            limit="weight_bits",
            asked=budget,
            tightest=tightest,
            binding_layer=str(int(np.argmax(np.multiply(widths, forced)))),
            remedy="Raise the budget, or let layers keep fewer weights.",
        )
    layers = [
        _Layer(i, w, h, b, f)
        for i, (w, h, b, f) in enumerate(zip(weights, counted, widths, forced, strict=True))
        if h.nonzeros
    ]
    counts = dict(_counts(layers, budget))
    return [  # torch has no constructor of the type that its comparisons return
        top_mask(w, counts.get(i, 0), counted[i])  # type: ignore[misc]
        for i, w in enumerate(weights)
    ]


def check_sizes(
    weights: Sequence[Tensor],
    bits: Sequence[int],
    budget_bits: int,
    least: Sequence[int] | None,
    where: str,
) -> tuple[list[int], int, list[int]]:
    """Bits, budget and minimums as whole numbers.

    Raises:
        ArgumentError: Lengths differ, or a number is negative or no whole one.
    """
    minimums = [0] * len(weights) if least is None else list(least)
    for name, values in (("bits", bits), ("least", minimums)):
        if len(values) != len(weights):
            raise ArgumentError(
                f"{len(values)} numbers for {len(weights)} layers",
                where=f"{where}.{name}",
                remedy="Give one for each layer.",
            )
    widths = [_whole(b, 1, MOST_BITS, f"{where}.bits") for b in bits]
    budget = _whole(budget_bits, 0, None, f"{where}.budget_bits")
    return widths, budget, [_whole(m, 0, None, f"{where}.least") for m in minimums]


def _whole(value: int, low: int, high: int | None, where: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low or number > (high or number):
        upto = "" if high is None else f" to {high}"
        raise ArgumentError(
            f"{value!r} is not allowed",
            where=where,
            remedy=f"Give a whole number from {low}{upto}.",
        )
    return number


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    index: int
    weight: Tensor
    counted: Histogram
    bits: int
    forced: int

    def between(self, start: int, stop: int) -> Floats:
        """Magnitudes of some ranks, descending."""
        start, stop = max(start, self.forced), min(stop, self.counted.nonzeros)
        return ranked(self.weight, self.counted, start, stop)[1].cpu().numpy()


def _counts(layers: Sequence[_Layer], budget: int) -> list[tuple[int, int]]:
    """How many weights each layer keeps, by its index."""
    if not layers:
        return []
    greedy = allocate(
        [layer.weight for layer in layers],
        [build_ladder(x.weight.numel(), [(x.weight.numel(), (x.bits,))], x.forced) for x in layers],
        [budget],
        histograms=[layer.counted for layer in layers],
    )
    counts = list(greedy.counts)
    if greedy.next_charges is not None and greedy.residual[0]:
        classes = sorted({layer.bits for layer in layers})
        margins = [_Boundary.of(layers, counts, b, reach(classes)) for b in classes]
        scale = 2.0 ** -np.frexp(max(m.largest() for m in margins))[1]
        changes = best_changes([m.margin(scale) for m in margins], greedy.residual[0])
        for margin, change in zip(margins, changes, strict=True):
            for place in margin.moved(change):
                counts[place] += 1 if change > 0 else -1
    return [(layer.index, n) for layer, n in zip(layers, counts, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Boundary:
    """Weights of the layers with equal bits on both sides of the greedy counts, descending.

    Attributes:
        bits: Of those layers.
        kept: Magnitudes and layers of the last kept ones.
        rest: Likewise of the first that were left.
    """

    bits: int
    kept: tuple[Floats, np.ndarray]
    rest: tuple[Floats, np.ndarray]

    @classmethod
    def of(cls, layers: Sequence[_Layer], counts: Sequence[int], bits: int, most: int) -> _Boundary:
        mine = [i for i, layer in enumerate(layers) if layer.bits == bits]
        above = [layers[i].between(counts[i] - most, counts[i]) for i in mine]
        below = [layers[i].between(counts[i], counts[i] + most) for i in mine]
        kept, rest = _merged(above, mine), _merged(below, mine)
        return cls(bits, (kept[0][-most:], kept[1][-most:]), (rest[0][:most], rest[1][:most]))

    def largest(self) -> float:
        return max((float(m.max()) for m in (self.kept[0], self.rest[0]) if len(m)), default=0.0)

    def margin(self, scale: float) -> Margin:
        return Margin(self.bits, (self.kept[0] * scale) ** 2, (self.rest[0] * scale) ** 2)

    def moved(self, change: int) -> list[int]:
        """The layer of every weight that is added or taken away."""
        if change >= 0:
            return [int(i) for i in self.rest[1][:change]]
        return [int(i) for i in self.kept[1][change:]]


def _merged(parts: Sequence[Floats], layers: Sequence[int]) -> tuple[Floats, np.ndarray]:
    magnitudes = np.concatenate(parts)
    owners = np.repeat(layers, [len(part) for part in parts])
    order = np.argsort(-magnitudes, kind="stable")
    return magnitudes[order], owners[order]
