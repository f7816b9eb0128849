"""Swaps that lower an Ising energy: of one group a unit goes, and another returns.

No count changes, so a state stays within every budget that counts decide. Between groups, swaps do
not touch each other: an edge sees how many units of its target stay, and what a swap in its source
changes is the same for all units of the target. So each group is improved on its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.ising_energy import IsingEnergy
from passes.ising.population_checks import checked_population

# Swaps that lower the energy by less than this share of the largest field are rounding.
_ROUNDING = 1e-12
# Units whose swaps are looked at together.
_ROWS = 64


def descend_swaps(energy: IsingEnergy, row: Tensor, moves: int | None = None) -> Tensor:
    """Take the best swap of all groups until none lowers the energy: bool `(nodes,)`.

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
    fields = energy.local_fields(state[None])
    least = _ROUNDING * float(fields.abs().max()) if fields.numel() else 0.0
    groups = [_Group(energy, number) for number in range(len(energy.layout.names))]
    best = [group.best(state, fields) for group in groups]
    taken = 0
    while best and (moves is None or taken < moves):
        number = min(range(len(best)), key=lambda g: best[g][0])
        change, out, into = best[number]
        if not change < -least:
            break
        for node, sign in ((out, -1.0), (into, 1.0)):
            state[node] ^= True
            energy.shift_fields(fields, node, torch.tensor([sign], dtype=torch.float64))
        best[number] = groups[number].best(state, fields)
        taken += 1
    return state


class _Group:
    """The units of one group, and the best of their swaps.

    Args:
        energy: The energy.
        number: Of the group, in the layout.
    """

    def __init__(self, energy: IsingEnergy, number: int) -> None:
        self._part, self._pairs = energy.block(number)
        self._least = self._pairs.amin(1)

    def best(self, state: Tensor, fields: Tensor) -> tuple[float, int, int]:
        """What the best swap changes, the node that goes, and the one that returns.

        For `p` to go and `q` to return changes the energy by `field_q - field_p + pairs_pq`. With
        the least of its pairs in place of one of them each `p` has a lower bound: those of low
        bounds come first, and it ends where a bound is no lower than the best swap found.
        """
        own, keeps = fields[0, self._part], state[self._part]
        kept = keeps.nonzero()[:, 0]
        if not 0 < len(kept) < len(own):
            return math.inf, -1, -1
        returns = own.masked_fill(keeps, math.inf)
        bounds, order = (self._least[kept] - own[kept]).add_(returns.min()).sort()
        best, out, into = math.inf, -1, -1
        for some, bound in zip(
            torch.split(kept[order], _ROWS), bounds[::_ROWS].tolist(), strict=True
        ):
            if bound >= best:
                break
            changes = self._pairs[some].add_(returns).sub_(own[some][:, None])
            place = int(changes.argmin())
            change = float(changes.flatten()[place])
            if change < best:
                best, out, into = change, int(some[place // len(own)]), place % len(own)
        return best, self._part.start + out, self._part.start + into
