"""Interleaved rounds: what is compared takes turns, so that a busy moment meets all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from energy_model.errors import ArgumentError

Turn = Callable[[], float]
"""Does something once and returns how long it took, in seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: Rounds of the heavy benchmarks; light ones take three times as many.
        threads: Threads of torch inside an operator.
    """

    rounds: int = 5
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise ArgumentError(
                    f"{getattr(self, name)} is too few", where=name, remedy="Give at least 1."
                )

    @property
    def light_rounds(self) -> int:
        """Rounds of what takes less than a few seconds."""
        return 3 * self.rounds


def clocked(action: Callable[[], object]) -> Turn:
    """A turn that times `action`; freeing its result and earlier garbage are not timed."""

    def turn() -> float:
        gc.collect()
        start = time.perf_counter()
        result = action()
        seconds = time.perf_counter() - start
        del result
        return seconds

    return turn


def interleave(turns: Sequence[Turn], rounds: int) -> tuple[tuple[float, ...], ...]:
    """Let every turn come once per round, in reversed order every other round.

    Args:
        turns: What takes turns.
        rounds: How often each comes.

    Returns:
        One tuple per round: the seconds of every turn, in the order of `turns`.
    """
    found = []
    for number in range(rounds):
        order = range(len(turns)) if number % 2 == 0 else reversed(range(len(turns)))
        seconds = {index: turns[index]() for index in order}
        found.append(tuple(seconds[index] for index in range(len(turns))))
    return tuple(found)


def over_first(rounds: Sequence[Sequence[float]], position: int) -> tuple[tuple[float, float], ...]:
    """Pairs `(seconds of the turn at position, seconds of the first turn)`, round by round."""
    return tuple((seconds[position], seconds[0]) for seconds in rounds)
