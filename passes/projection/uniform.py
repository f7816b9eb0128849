"""The same share of every layer: the per-layer magnitude baseline."""

from __future__ import annotations

from collections.abc import Sequence

from passes.projection.allocate import Allocation
from passes.projection.ladder import Ladder

_STEPS = 1 << 40  # resolution of the share; finer than one weight of any layer


def allocate_uniform(
    ladders: Sequence[Ladder],
    nonzeros: Sequence[int],
    minimums: Sequence[int],
    capacities: Sequence[int],
) -> Allocation:
    """Keep the largest common share of every layer that fits every capacity.

    Args:
        ladders: What the weights of each layer are charged, by rank.
        nonzeros: Weights that each layer can keep at most.
        minimums: Weights that each layer keeps at least.
        capacities: One limit per charge, in its unit.
    """

    def counts(step: int) -> list[int]:
        shares = ((ladder.size * step) // _STEPS for ladder in ladders)
        return [
            min(max(share, least), most)
            for share, least, most in zip(shares, minimums, nonzeros, strict=True)
        ]

    def used(chosen: Sequence[int]) -> tuple[int, ...]:
        each = [ladder.used(n) for ladder, n in zip(ladders, chosen, strict=True)]
        return tuple(sum(column) for column in zip(*each, strict=True))

    low, high = 0, _STEPS
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(u <= k for u, k in zip(used(counts(middle)), capacities, strict=True))
        low, high = (middle, high) if fits else (low, middle - 1)
    chosen = counts(low)
    return Allocation(tuple(chosen), used(chosen), tuple(capacities), None, None)
