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
    groups = range(len(energy.layout.names))
    best = [_best(energy, state, fields, group) for group in groups]
    taken = 0
    while best and (moves is None or taken < moves):
        group = min(groups, key=lambda g: best[g][0])
        change, out, into = best[group]
        if not change < -least:
            break
        for node, sign in ((out, -1.0), (into, 1.0)):
            state[node] ^= True
            energy.shift_fields(fields, node, torch.tensor([sign], dtype=torch.float64))
        best[group] = _best(energy, state, fields, group)
        taken += 1
    return state


def _best(energy: IsingEnergy, state: Tensor, fields: Tensor, group: int) -> tuple[float, int, int]:
    """Of a group the best swap: what it changes, the node that goes and the one that returns."""
    part, pairs = energy.block(group)
    own = fields[0, part]
    kept, gone = state[part].nonzero()[:, 0], (~state[part]).nonzero()[:, 0]
    if not len(kept) or not len(gone):
        return math.inf, -1, -1
    changes = own[gone][None, :] - own[kept][:, None] + pairs[kept][:, gone]
    place = int(changes.argmin())
    out, into = kept[place // len(gone)], gone[place % len(gone)]
    return float(changes.flatten()[place]), part.start + int(out), part.start + int(into)
