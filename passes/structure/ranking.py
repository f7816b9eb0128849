"""The units of one channel group in the order in which they go, and come back."""

from __future__ import annotations

from bisect import insort

import numpy as np
from numpy.typing import NDArray

from passes.structure.groups import ChannelGroup
from passes.structure.state import least_units, unit_step


class Ranking:
    """Units by score: the lowest of those that stay goes first, the highest of the others returns.

    They move in blocks, so that the number that stays is a multiple of the group's step, or all.

    Args:
        group: The group.
        scores: A number for each unit, `(units,)`; ties go by index, the first one goes first.
        keep: Whether each unit stays now; a number that is not allowed is raised to the next.
        multiple: Channel counts are to be multiples of this.
    """

    def __init__(
        self,
        group: ChannelGroup,
        scores: NDArray[np.float64],
        keep: NDArray[np.bool_],
        multiple: int,
    ) -> None:
        self.group = group
        self._step = unit_step(group, multiple)
        self._least = least_units(group, multiple)
        self._scores = scores
        self._order = np.argsort(scores, kind="stable")
        stays = keep[self._order]
        # Ranks, the next to move at the end; kept ones are negated so that both lists ascend.
        self._kept: list[int] = (-np.flatnonzero(stays)[::-1]).tolist()
        self._gone: list[int] = np.flatnonzero(~stays).tolist()
        wanted = -(-max(len(self._kept), self._least) // self._step) * self._step
        self._move_in(min(wanted, group.units) - len(self._kept))

    @property
    def kept(self) -> int:
        """How many units stay."""
        return len(self._kept)

    def keep(self) -> NDArray[np.bool_]:
        """Whether each unit stays: `(units,)`."""
        keep = np.zeros(self.group.units, dtype=bool)
        keep[self._order[[-rank for rank in self._kept]]] = True
        return keep

    def next_out(self) -> NDArray[np.int64] | None:
        """The block that goes next; `None` at the minimum."""
        size = self._size_out()
        ranks = [-rank for rank in self._kept[len(self._kept) - size :]]
        return self._order[ranks] if size else None

    def next_in(self) -> NDArray[np.int64] | None:
        """The block that returns next; `None` if none has gone."""
        size = self._size_in()
        return self._order[self._gone[len(self._gone) - size :]] if size else None

    def score(self, units: NDArray[np.int64]) -> float:
        """The mean score of a block."""
        return float(self._scores[units].mean())

    def move_out(self) -> None:
        """Let the next block go."""
        for _ in range(self._size_out()):
            insort(self._gone, -self._kept.pop())

    def move_in(self) -> None:
        """Let the next block return."""
        self._move_in(self._size_in())

    def _move_in(self, count: int) -> None:
        for _ in range(count):
            insort(self._kept, -self._gone.pop())

    def _size_out(self) -> int:
        size = len(self._kept) % self._step or self._step
        return size if len(self._kept) - size >= self._least else 0

    def _size_in(self) -> int:
        return min(len(self._gone), self._step - len(self._kept) % self._step)


def allowed_counts(group: ChannelGroup, multiple: int) -> tuple[int, ...]:
    """The numbers of units that a group may keep, from all to the fewest.

    All, and the multiples of its step that are not below its minimum.
    """
    step = unit_step(group, multiple)
    first = -(-group.units // step) * step - step
    multiples = range(first, least_units(group, multiple) - 1, -step)
    return (group.units, *(count for count in multiples if count > 0))
