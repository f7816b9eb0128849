"""The last items of a 0/1 knapsack whose items have few different weights.

    max sum of profits  s.t.  sum of weights <= capacity

Items of one weight are taken in order of profit, so only how many of each weight is open. Greedy by
profit per weight gives counts that are the rounded vertex of the linear relaxation; an optimal
choice differs from them by at most 2 D + 1 items, D the largest weight (Eisenbrand and Weismantel,
SODA 2018, for one constraint). So the exact answer is a small dynamic programme over the weights,
with as many items of each on either side of the greedy count: `reach`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passes.joint.points import Floats


def reach(weights: Sequence[int]) -> int:
    """How many items of a weight may have to be added to, or taken from, the greedy count."""
    largest = max(weights, default=0) // max(math.gcd(*weights), 1)
    return 2 * largest + 2


@dataclass(frozen=True, slots=True, eq=False)
class Margin:
    """Items of one weight around the greedy count.

    Attributes:
        weight: Of each, positive.
        kept: Profits of the last items that greedy took, the least one last.
        rest: Profits of the first items that it left, the largest one first.
    """

    weight: int
    kept: Floats
    rest: Floats

    def gains(self) -> tuple[Floats, int]:
        """Gain of every change of the count, from the lowest on, and the lowest change."""
        down = -np.cumsum(self.kept[::-1])[::-1]
        return np.concatenate([down, [0.0], np.cumsum(self.rest)]), -len(self.kept)


def best_changes(margins: Sequence[Margin], slack: int) -> list[int]:
    """By how much the count of each weight is to change for the largest profit.

    Args:
        margins: One for each weight; with `reach` items on both sides, or all there are.
        slack: Capacity that greedy left, not negative.

    Returns:
        The changes, in the order of `margins`. Of equal profits that which uses less.
    """
    if not margins:
        return []
    unit = math.gcd(*(margin.weight for margin in margins))
    slack //= unit
    most = reach([margin.weight for margin in margins])
    span = most * max(margin.weight for margin in margins) // unit
    # Index of a use of the capacity, from -span to span + slack; only the changed part is kept.
    slack = min(slack, span)
    best = np.full(2 * span + 1, -np.inf)
    best[span] = 0.0
    steps = []
    for margin in margins:
        best, chosen = _with(best, margin, margin.weight // unit)
        steps.append(chosen)
    at = int(np.argmax(best[: span + slack + 1]))
    changes = []
    for margin, chosen in zip(reversed(margins), reversed(steps), strict=True):
        changes.append(int(chosen[at]))
        at -= changes[-1] * (margin.weight // unit)
    return changes[::-1]


def _with(before: Floats, margin: Margin, weight: int) -> tuple[Floats, np.ndarray]:
    """The best profit for every use of the capacity after one more weight, and its change."""
    gains, lowest = margin.gains()
    best = np.full(len(before), -np.inf)
    chosen = np.zeros(len(before), dtype=np.int32)
    order = sorted(range(len(gains)), key=lambda i: (abs(i + lowest), i))
    for index in order:
        change = index + lowest
        shift = change * weight
        if abs(shift) >= len(before):
            continue
        into = slice(max(shift, 0), len(before) + min(shift, 0))
        source = slice(max(-shift, 0), len(before) - max(shift, 0))
        found = before[source] + gains[index]
        better = found > best[into]
        best[into][better] = found[better]
        chosen[into][better] = change
    return best, chosen
