"""The Ising energy of keep-states, in block form.

    E(s) = sum_g [- s_g' J_g s_g + lambda_g b_g . s_g] - sum_{g -> g'} (e_g . s_g) (1 . s_g')
    b_p  = row sum at p of all couplings: of the block, and of the edges that leave its group

With every lambda 1 it is minus a cut: `E(s) = sum_pq J_pq s_p (1 - s_q)`, which for couplings below
0 is lowest where alike units are on different sides. `2 rho` moves the lowest energy of uniform
blocks to a share `rho` of kept units.

Complexity: `O(n_g^2)` for each state and group, `O(n_g)` for each flip.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError
from passes.ising.couplings import Couplings
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_population


class IsingEnergy:
    """Maps a population to energies; lower is better.

    Args:
        layout: Where the nodes of every group lie.
        couplings: Couplings of these groups, finite. A block that is not symmetric counts as its
            mean with its transpose; its row sums are taken as they are.

    Raises:
        ArgumentError: The couplings are not of the layout's shapes.
        PreconditionError: They are not finite.
    """

    def __init__(self, layout: Layout, couplings: Couplings) -> None:
        _check(layout, couplings)
        self.layout = layout
        parts = layout.parts if layout.names else {}
        self._parts = [parts[name] for name in layout.names]
        blocks = [couplings.blocks[n].weight * couplings.blocks[n].spins for n in layout.names]
        self._own = _joined([block.diagonal() for block in blocks])
        rows = [block.sum(1) for block in blocks]
        # What two units of a group have in common, both ways, and nothing of a unit with itself.
        self._pairs = [(block + block.T).fill_diagonal_(0) for block in blocks]
        self._edges = [
            (layout.names.index(e.source), layout.names.index(e.target), e.weight * e.spins)
            for e in couplings.edges
        ]
        for source, target, spins in self._edges:
            rows[source] = rows[source] + layout.sizes[target] * spins
        self._rows = rows
        self._bias = self._scaled(couplings.bias)
        self._group = [g for g, size in enumerate(layout.sizes) for _ in range(size)]

    def biased(self, bias: Mapping[str, float]) -> IsingEnergy:
        """The same couplings under another bias, by name of the group."""
        other = copy.copy(self)
        other._bias = self._scaled(bias)
        return other

    def _scaled(self, bias: Mapping[str, float]) -> Tensor:
        return _joined(
            [bias[n] * row for n, row in zip(self.layout.names, self._rows, strict=True)]
        )

    def __call__(self, population: Tensor) -> Tensor:
        """Energies.

        Args:
            population: bool `(states, nodes)`.

        Returns:
            float64 `(states,)`.

        Raises:
            ArgumentError: It is no population of this layout.
        """
        x = self._numbers(population)
        energy = x @ (self._bias - self._own)
        for part, pairs in zip(self._parts, self._pairs, strict=True):
            energy -= torch.einsum("sp,pq,sq->s", x[:, part], pairs, x[:, part]) / 2
        for source, target, spins in self._edges:
            energy -= (x[:, self._parts[source]] @ spins) * x[:, self._parts[target]].sum(1)
        return energy

    def local_fields(self, population: Tensor) -> Tensor:
        """What turning each node on would change, all others as they are.

        Args:
            population: bool `(states, nodes)`.

        Returns:
            float64 `(states, nodes)`: energy with the node on minus energy with the node off.

        Raises:
            ArgumentError: It is no population of this layout.
        """
        x = self._numbers(population)
        fields = (self._bias - self._own).expand_as(x).clone()
        for part, pairs in zip(self._parts, self._pairs, strict=True):
            fields[:, part] -= x[:, part] @ pairs
        for source, target, spins in self._edges:
            a, b = self._parts[source], self._parts[target]
            fields[:, a] -= spins * x[:, b].sum(1, keepdim=True)
            fields[:, b] -= (x[:, a] @ spins)[:, None]
        return fields

    def flip_deltas(self, population: Tensor) -> Tensor:
        """What flipping each node would change, all others as they are.

        Args:
            population: bool `(states, nodes)`.

        Returns:
            float64 `(states, nodes)`.

        Raises:
            ArgumentError: It is no population of this layout.
        """
        fields = self.local_fields(population)
        return torch.where(population, -fields, fields)

    def shift_fields(self, fields: Tensor, node: int, change: Tensor) -> None:
        """Bring local fields up to date, in place, after one node was flipped.

        Args:
            fields: As `local_fields` returned them, `(states, nodes)`.
            node: The node.
            change: Of every state 1 if the node was turned on, -1 if off, 0 if neither: float64
                `(states,)`.
        """
        number = self._group[node]
        part = self._parts[number]
        own = node - part.start
        fields[:, part] -= torch.outer(change, self._pairs[number][own])
        for source, target, spins in self._edges:
            if source == number:
                fields[:, self._parts[target]] -= (change * spins[own])[:, None]
            if target == number:
                fields[:, self._parts[source]] -= torch.outer(change, spins)

    def block(self, group: int) -> tuple[slice, Tensor]:
        """Where a group lies, and what two of its units add to minus the energy if both stay.

        Args:
            group: Its number in the layout.

        Returns:
            The slice, and float64 `(units, units)`, symmetric, with zeros on the diagonal.
        """
        return self._parts[group], self._pairs[group]

    def group_of(self, node: int) -> int:
        """The number of a node's group in the layout."""
        return self._group[node]

    def dense(self) -> tuple[Tensor, Tensor]:
        """The same energy as `- s' J s + b . s`: J of all nodes and b, for small layouts.

        Returns:
            float64 `(nodes, nodes)`, in which edges stand in the rows of their source, and
            float64 `(nodes,)`.
        """
        spins = torch.zeros(self.layout.nodes, self.layout.nodes, dtype=torch.float64)
        for part, pairs in zip(self._parts, self._pairs, strict=True):
            spins[part, part] = pairs / 2
        spins += torch.diag(self._own)
        for source, target, values in self._edges:
            spins[self._parts[source], self._parts[target]] = values[:, None]
        return spins, self._bias.clone()

    def _numbers(self, population: Tensor) -> Tensor:
        return checked_population(population, self.layout.nodes, least=0).double()


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *rows])


def _check(layout: Layout, couplings: Couplings) -> None:
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    wrong = [
        f"block of {name!r}"
        for name, size in sizes.items()
        if name not in couplings.blocks
        or tuple(couplings.blocks[name].spins.shape) != (size, size)
        or name not in couplings.bias
    ]
    wrong += [
        f"edge from {e.source!r} to {e.target!r}"
        for e in couplings.edges
        if e.target not in sizes
        or e.target == e.source
        or tuple(e.spins.shape) != (sizes.get(e.source),)
    ]
    if wrong:
        raise ArgumentError(
            "is missing, or does not fit the groups of the layout",
            where=wrong[0],
            remedy="Compute the couplings for the groups of this layout.",
        )
    for name in sizes:
        _check_finite(couplings.blocks[name].spins, couplings.blocks[name].weight, name)
    for edge in couplings.edges:
        _check_finite(edge.spins, edge.weight, edge.source)


def _check_finite(spins: Tensor, weight: float, name: str) -> None:
    if not bool((spins * weight).isfinite().all()):
        raise PreconditionError(
            "its couplings are not finite",
            where=f"channel group {name!r}",
            remedy="Look for NaN or infinite weights.",
        )
