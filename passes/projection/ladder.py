"""What each further weight of a layer costs, as steps over its rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A run of ranks with one cost.

    Attributes:
        end: The first rank beyond this step.
        charges: What one weight uses of each limit, integers in the limits' units.
        forced: The weights of this step are kept whatever their value.
    """

    end: int
    charges: tuple[int, ...]
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Ladder:
    """The steps of one layer, by rank of magnitude; rank 0 is the largest weight.

    Charges never fall from step to step. Therefore an optimal support of the layer is a prefix of
    its ranking, and a knapsack over items with these fixed charges has the same feasible sets and
    values as the original problem (Yang, Zhu, Liu, ICLR 2019, section on weighted projection).
    """

    steps: tuple[Step, ...]

    @property
    def size(self) -> int:
        """Number of weights in the layer."""
        return self.steps[-1].end if self.steps else 0

    def used(self, count: int) -> tuple[int, ...]:
        """What the `count` largest weights use of each limit."""
        start, totals = 0, [0] * len(self.steps[0].charges)
        for step in self.steps:
            n = max(0, min(count, step.end) - start)
            totals = [t + n * c for t, c in zip(totals, step.charges, strict=True)]
            start = step.end
        return tuple(totals)

    def charges_at(self, rank: int) -> tuple[int, ...]:
        """What the weight at `rank` uses of each limit."""
        for step in self.steps:
            if rank < step.end:
                return step.charges
        raise IndexError(rank)


def build_ladder(
    size: int, charges: Sequence[tuple[int, tuple[int, ...]]], forced: int = 0
) -> Ladder:
    """Build the ladder of a layer of `size` weights.

    Args:
        size: Number of weights.
        charges: `(end, charges)` pairs with ascending ends; the last one reaches at least `size`.
        forced: How many of the largest weights are kept whatever happens.
    """
    forced = min(forced, size)
    steps, start = [], 0
    for end, charge in charges:
        for cut in sorted({min(max(forced, start), end), end}):
            stop = min(cut, size)
            if stop > start:
                steps.append(Step(stop, charge, forced=stop <= forced))
                start = stop
    return Ladder(tuple(steps))
