"""Swaps that lower an Ising energy: of one group a unit goes, and another returns.

No count changes, so a state stays within every budget that counts decide. Between groups, swaps do
not touch each other: an edge sees how many units of its target stay, and what a swap in its source
changes is the same for all units of the target. So each group is improved on its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.ising_energy import IsingEnergy
from passes.ising.population_checks import checked_population

# Swaps that lower the energy by less than this share of the largest field are rounding.
_ROUNDING = 1e-12
# Units whose swaps are looked at together: the memory that it takes.
_ROWS = 256


def descend_swaps(energy: IsingEnergy, row: Tensor, moves: int | None = None) -> Tensor:
    """Swap until no swap lowers the energy: bool `(nodes,)`.

    With a number of moves each is the best swap of all groups. Without, the best swap of every unit
    is looked for at once, and those that still lower the energy are taken, the best one first: of
    large groups most units are swapped in the first few passes.

    Args:
        energy: The energy.
        row: Where to start, bool `(nodes,)`; it is not changed.
        moves: How many swaps at most; `None` is until the end.

    Raises:
        ArgumentError: The row is malformed, or the number is negative.
    """
    state = checked_population(row[None], energy.layout.nodes)[0].clone()
    if moves is not None and moves < 0:
        raise ArgumentError(f"{moves!r} is no whole number from 0", where="moves")
    walk = _Walk(energy, state)
    groups = range(len(energy.layout.names))
    if moves is None:
        for group in groups:
            while walk.take(walk.swaps(group)):
                pass
        return state
    known = [walk.swaps(group)[:1] for group in groups]
    for _ in range(moves):
        best = min(groups, key=lambda g: known[g][0].change if known[g] else math.inf, default=None)
        if best is None or not walk.take(known[best]):
            break
        known[best] = walk.swaps(best)[:1]
    return state


class _Swap(NamedTuple):
    """What a swap changes, the node that goes and the one that returns."""

    change: float
    out: int
    into: int


class _Walk:
    """A state that is swapped in place, and its local fields."""

    def __init__(self, energy: IsingEnergy, state: Tensor) -> None:
        self._energy, self._state = energy, state
        self._fields = energy.local_fields(state[None])
        largest = float(self._fields.abs().max()) if self._fields.numel() else 0.0
        self._least = _ROUNDING * largest

    def swaps(self, group: int) -> list[_Swap]:
        """For every unit of a group that stays the best swap, if it lowers the energy; in order.

        For `p` to go and `q` to return changes the energy by `field_q - field_p + pairs_pq`.
        """
        part, pairs = self._energy.block(group)
        own, keeps = self._fields[0, part], self._state[part]
        kept = keeps.nonzero()[:, 0]
        if not 0 < len(kept) < len(own):
            return []
        returns = own.masked_fill(keeps, math.inf)
        found = [(pairs[some] + returns).min(1) for some in torch.split(kept, _ROWS)]
        changes = torch.cat([each.values for each in found]) - own[kept]
        others = torch.cat([each.indices for each in found])
        order = changes.argsort(stable=True)
        order = order[changes[order] < -self._least]
        nodes = (kept[order] + part.start, others[order] + part.start)
        columns = (changes[order].tolist(), *(column.tolist() for column in nodes))
        return list(map(_Swap, *columns))

    def take(self, swaps: list[_Swap]) -> bool:
        """Take those that lower the energy, after those before them; whether any did."""
        taken = False
        for swap in swaps:
            if self._state[swap.out] and not self._state[swap.into] and self._lowers(swap):
                for node, sign in ((swap.out, -1.0), (swap.into, 1.0)):
                    self._state[node] ^= True
                    change = torch.tensor([sign], dtype=torch.float64)
                    self._energy.shift_fields(self._fields, node, change)
                taken = True
        return taken

    def _lowers(self, swap: _Swap) -> bool:
        part, pairs = self._energy.block(self._energy.group_of(swap.out))
        common = pairs[swap.out - part.start, swap.into - part.start]
        change = self._fields[0, swap.into] - self._fields[0, swap.out] + common
        return bool(change < -self._least)
