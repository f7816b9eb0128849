"""Differential evolution over how much of every group stays, DE/rand/1/bin on real numbers.

    mutant  v_g = x_r1,g + F (x_r2,g - x_r3,g), reflected into [least_g / units_g, 1]
    child   t_g = v_g  where u_g < C or g = g_rand,  x_i,g  elsewhere

R. Storn and K. Price, "Differential Evolution" (Journal of Global Optimization 1997). A network has
tens of groups but thousands of nodes, where a small population is a weak search; which nodes of a
group stay is decided by their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.evolution import LEAST_STATES, distinct_parents
from passes.ising.layout import Layout
from passes.ising.population_checks import checked_numbers, checked_population, checked_rate
from passes.ising.ranked_states import best_of_groups
from passes.structure.groups import ChannelGroups
from passes.structure.state import least_units, rounded_units


class RatioEvolution:
    """Evolves the shares of the groups that stay; see `passes.ising.evolution.Evolution`.

    A gene is the share of a group. It decides how many nodes stay, rounded to a number that is
    allowed, and what is less than one node is remembered. If a state has another number of nodes
    than its gene says, since it was repaired or comes from elsewhere, the gene follows the state.

    Args:
        groups: The groups; the free ones have a gene each.
        multiple: Channel counts are to be multiples of this.
        mutation: F, from 0 to 1. The usual 0.5 is for large populations: one of 8 states becomes
            one state too early.
        crossover: C, the share of the genes that come from the mutant; one always does.

    Raises:
        ArgumentError: A rate is not from 0 to 1.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        multiple: int = 1,
        *,
        mutation: float = 0.9,
        crossover: float = 0.5,
    ) -> None:
        self.groups, self.multiple = groups, multiple
        self.mutation = checked_rate(mutation, "mutation")
        self.crossover = checked_rate(crossover, "crossover")
        self._layout = Layout.of(groups)
        self._sizes = torch.tensor(self._layout.sizes, dtype=torch.int64)
        least = [least_units(group, multiple) for group in groups.free]
        self._least = torch.tensor(least, dtype=torch.float64) / self._sizes
        self._ratios: Tensor | None = None
        self._proposed: Tensor | None = None

    @property
    def ratios(self) -> Tensor | None:
        """The genes, float64 `(states, groups)`; `None` before the first proposal."""
        return self._ratios

    def propose(
        self, population: Tensor, generator: torch.Generator, scores: Tensor | None = None
    ) -> Tensor:
        """One child of every state, bool `(states, nodes)`; see `Evolution.propose`.

        Raises:
            ArgumentError: There are fewer than 4 states, or no scores, or one is malformed.
        """
        checked_population(population, self._layout.nodes, least=LEAST_STATES)
        if scores is None:
            raise ArgumentError(
                "are missing",
                where="scores",
                remedy="Which nodes of a group stay is decided by them: give one for each node.",
            )
        if not self._layout.names:
            return population.clone()
        self._ratios = self._following(population)
        self._proposed = self._children(self._ratios, generator)
        return best_of_groups(self._counts(self._proposed), scores, self._layout)

    def accept(self, replaced: Tensor) -> None:
        """Take over the genes of the children that replaced their parents, bool `(states,)`.

        Raises:
            ArgumentError: Nothing was proposed, or the shape is another.
        """
        if not self._layout.names:
            return
        if self._proposed is None or self._ratios is None:
            raise ArgumentError("come before propose()", where="accepted children")
        if replaced.dtype != torch.bool or replaced.shape != self._proposed.shape[:1]:
            raise ArgumentError(
                f"are {replaced.dtype} of shape {tuple(replaced.shape)}, "
                f"expected bool ({self._proposed.shape[0]},)",
                where="accepted children",
            )
        self._ratios = torch.where(replaced[:, None], self._proposed, self._ratios)
        self._proposed = None

    def state_dict(self) -> dict[str, Any]:
        """The genes, and those that have been proposed but not answered."""
        known = {"ratios": self._ratios, "proposed": self._proposed}
        return {name: value.clone() for name, value in known.items() if value is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ArgumentError: The genes are those of other groups.
        """
        self._ratios, self._proposed = (
            self._loaded(state, "ratios"),
            self._loaded(state, "proposed"),
        )

    def _loaded(self, state: Mapping[str, Any], name: str) -> Tensor | None:
        if name not in state:
            return None
        genes = state[name]
        return checked_numbers(genes, (genes.shape[0], len(self._layout.names)), name).clone()

    def _following(self, population: Tensor) -> Tensor:
        """The genes, where they say what the states are; the shares of the states elsewhere."""
        kept = self._layout.kept(population)
        shares = kept.double() / self._sizes
        if self._ratios is None or self._ratios.shape != shares.shape:
            return shares
        return torch.where(self._counts(self._ratios) == kept, self._ratios, shares)

    def _children(self, ratios: Tensor, generator: torch.Generator) -> Tensor:
        states, genes = ratios.shape

        def draws(width: int) -> Tensor:
            return torch.rand(states, width, generator=generator, dtype=torch.float64)

        parents = distinct_parents(draws(states))
        first, second, third = (ratios[parents[:, i]] for i in range(3))
        mutants = reflected(first + self.mutation * (second - third), self._least)
        forced = torch.randint(genes, (states, 1), generator=generator)
        taken = (draws(genes) < self.crossover).scatter(1, forced, True)
        return torch.where(taken, mutants, ratios)

    def _counts(self, ratios: Tensor) -> Tensor:
        """Nodes that stay, int64 `(states, groups)`."""
        nearest = (ratios * self._sizes).round().long().tolist()
        free = self.groups.free
        found = [
            [rounded_units(g, n, self.multiple) for g, n in zip(free, row, strict=True)]
            for row in nearest
        ]
        return torch.tensor(found, dtype=torch.int64).reshape(ratios.shape)


def reflected(values: Tensor, least: Tensor) -> Tensor:
    """Numbers that have left `[least, 1]`, thrown back by as much as they had left it.

    Unlike cutting them off, this does not gather genes at the bounds.

    Args:
        values: `(states, groups)`.
        least: `(groups,)`, from 0 to 1.
    """
    inside = torch.where(values > 1, 2 - values, values)
    inside = torch.where(inside < least, 2 * least - inside, inside)
    return torch.minimum(torch.maximum(inside, least), torch.ones_like(inside))
