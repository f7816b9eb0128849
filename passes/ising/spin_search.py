"""States of low Ising energy: steepest descent and tabu search.

Both take a population and improve each state on its own; neither is ever worse than its start, and
both end in a local optimum, where no single flip lowers the energy. A flip costs `O(n_g)`.

The tabu search is the one-flip search of F. Glover, G. A. Kochenberger, B. Alidaee, "Adaptive
Memory Tabu Search for Binary Quadratic Programs", Management Science 44, 1998, with random tenures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from energy_model.errors import ArgumentError
from passes.ising.ising_energy import IsingEnergy

# Flips that lower the energy by less than this share of the largest field are rounding.
_ROUNDING = 1e-12


class _Spins:
    """One state on its way: its bits, and what each flip would change, kept up to date."""

    def __init__(self, energy: IsingEnergy, bits: Tensor, floors: NDArray[np.int64]) -> None:
        layout = energy.layout
        self.energy, self.floors = energy, floors
        self.group = np.repeat(np.arange(len(layout.sizes)), layout.sizes)
        self.bits = bits.clone()
        self.refresh()

    def refresh(self) -> None:
        """Compute the fields anew, without the rounding of many updates."""
        self.on = self.bits.numpy()
        self.kept = np.bincount(self.group[self.on], minlength=len(self.floors))
        self.fields = self.energy.local_fields(self.bits[None])
        self.row = self.fields[0].numpy()
        self.rounding = _ROUNDING * float(np.abs(self.row).max(initial=0.0))

    def deltas(self) -> NDArray[np.float64]:
        """What each flip changes; infinite where a group would keep too few."""
        found = np.where(self.on, -self.row, self.row)
        low = self.kept <= self.floors
        if low.any():
            found[self.on & low[self.group]] = math.inf
        return found

    def flip(self, node: int) -> None:
        """Flip one node."""
        change = -1 if self.on[node] else 1
        self.on[node] = not self.on[node]
        self.kept[self.group[node]] += change
        self.energy.shift_fields(self.fields, node, torch.tensor([change], dtype=torch.float64))

    def descend(self) -> None:
        """Take the best flip until none is left; ties go to the first node."""
        moved = self.on.size > 0
        while moved:
            moved = False
            deltas = self.deltas()
            while deltas[best := int(deltas.argmin())] < -self.rounding:
                self.flip(best)
                deltas, moved = self.deltas(), True
            self.refresh()


def descend(
    energy: IsingEnergy, population: Tensor, *, least: Mapping[str, int] | None = None
) -> Tensor:
    """Take the flip that lowers the energy most, until none does; there is nothing random in it.

    Args:
        energy: The energy.
        population: Where to start, bool `(states, nodes)`.
        least: Units that groups keep at least, by name; 1 for those that are absent.

    Returns:
        bool `(states, nodes)`: of every start a local optimum.

    Raises:
        ArgumentError: The population does not fit, or starts below the least units.
    """
    floors = _floors(energy, population, least)
    rows = []
    for bits in population:
        spins = _Spins(energy, bits, floors)
        spins.descend()
        rows.append(spins.bits)
    return _better(energy, population, rows)


def tabu_search(
    energy: IsingEnergy,
    population: Tensor,
    *,
    generator: Generator,
    patience: int | None = None,
    tenure: int | None = None,
    least: Mapping[str, int] | None = None,
) -> Tensor:
    """Take the best flip, upwards too, of the nodes that have not been flipped lately.

    Args:
        energy: The energy.
        population: Where to start, bool `(states, nodes)`.
        generator: Source of the random part of the tenures, on the CPU.
        patience: Flips without a new best state after which to stop; by default the number of
            nodes, and at least 100.
        tenure: Flips for which a node then stays, to which as many at random are added; by default
            a hundredth of the nodes and 10, at most a quarter of the nodes.
        least: Units that groups keep at least, by name; 1 for those that are absent.

    Returns:
        bool `(states, nodes)`: the best state on the way from every start, a local optimum.

    Raises:
        ArgumentError: The population does not fit, starts below the least units, or a number is
            negative.
    """
    floors = _floors(energy, population, least)
    nodes = energy.layout.nodes
    patience = max(100, nodes) if patience is None else patience
    tenure = min(nodes // 4, nodes // 100 + 10) if tenure is None else tenure
    if patience < 0 or tenure < 0:
        raise ArgumentError("is negative", where="patience" if patience < 0 else "tenure")
    rows = []
    for bits in population:
        spins = _Spins(energy, bits, floors)
        spins.descend()
        best = _tabu(spins, generator, patience, tenure) if nodes else spins.bits
        spins = _Spins(energy, best, floors)
        spins.descend()
        rows.append(spins.bits)
    return _better(energy, population, rows)


def _tabu(spins: _Spins, generator: Generator, patience: int, tenure: int) -> Tensor:
    free = np.zeros(spins.on.size, dtype=np.int64)  # the step from which a node may flip again
    energy = lowest = 0.0
    best, since, step = spins.bits.clone(), 0, 0
    jitter = torch.randint(tenure + 1, (1024,), generator=generator).tolist()
    while since < patience:
        deltas = spins.deltas()
        # A tabu is lifted where it would hide a new best state.
        deltas[(free > step) & (energy + deltas >= lowest - spins.rounding)] = math.inf
        node = int(deltas.argmin())
        step, since = step + 1, since + 1
        if deltas[node] == math.inf:
            continue  # until a tabu runs out
        energy += float(deltas[node])
        spins.flip(node)
        if step % len(jitter) == 0:
            jitter = torch.randint(tenure + 1, (1024,), generator=generator).tolist()
        free[node] = step + tenure + jitter[step % len(jitter)]
        if energy < lowest - spins.rounding:
            best, lowest, since = spins.bits.clone(), energy, 0
    return best


def _floors(
    energy: IsingEnergy, population: Tensor, least: Mapping[str, int] | None
) -> NDArray[np.int64]:
    """Units that each group keeps at least, `(groups,)`, if the population does."""
    given, layout = least or {}, energy.layout
    unknown = [name for name in given if name not in layout.names]
    if unknown:
        raise ArgumentError(f"there is no group {unknown[0]!r}", where="least")
    floors = np.array([given.get(name, 1) for name in layout.names], dtype=np.int64)
    energy(population[:0])  # whether it fits
    if layout.names:
        short = (layout.kept(population).numpy() < floors).any(axis=0)
        if short.any():
            name = layout.names[int(short.argmax())]
            raise ArgumentError(
                f"a state keeps fewer than {floors[short.argmax()]} units of {name!r}",
                where="population",
                remedy="Repair the population before the search.",
            )
    return floors


def _better(energy: IsingEnergy, start: Tensor, rows: list[Tensor]) -> Tensor:
    """Of every start the state that was found, or the start if that is lower, as by rounding."""
    if not rows:
        return start.clone()
    found = torch.stack(rows)
    return torch.where((energy(found) <= energy(start))[:, None], found, start)
