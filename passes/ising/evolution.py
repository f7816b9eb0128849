"""Binary differential evolution over keep-states, DE/rand/1/bin.

    mutant  v_d = 1 - x_r1,d   where x_r2,d != x_r3,d and u_d < F,   x_r1,d elsewhere
    child   t_d = v_d          where u'_d < C or d = d_rand,         x_i,d  elsewhere

R. Storn and K. Price, "Differential Evolution" (Journal of Global Optimization 1997), on bits as in
H. Salehinejad and S. Valaee, "EDropout" (IEEE TNNLS 2022). It is neutral: without selection the
share of nodes that stay does not drift. Cost: O(states * nodes) a generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from passes.ising.population_checks import (
    checked_population,
    checked_rate,
    checked_rates,
)
from passes.ising.survivor_selection import Survivors, best_row, select

__all__ = [
    "LEAST_STATES",
    "BinaryEvolution",
    "Evolution",
    "Survivors",
    "best_row",
    "children",
    "crossed",
    "distinct_parents",
    "mutated",
    "select",
]

# A child is made of three parents, and its own is none of them.
LEAST_STATES = 4


class Evolution(Protocol):
    """How the children of a population are made; see `BinaryEvolution` and `RatioEvolution`."""

    def propose(
        self, population: Tensor, generator: torch.Generator, scores: Tensor | None = None
    ) -> Tensor:
        """One child of every state, bool `(states, nodes)`; they may need repair.

        Args:
            population: The parents, bool `(states, nodes)`.
            generator: On the CPU; all that is random comes from it.
            scores: Of every node how much it matters, `(nodes,)`, where the search ranks by it.
        """
        ...

    def accept(self, replaced: Tensor) -> None:
        """Learn which of the children of the last proposal replaced their parents.

        Args:
            replaced: bool `(states,)`.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs, besides the population and the generator."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BinaryEvolution:
    """The operator on bits; it remembers nothing. See `children`.

    Attributes:
        mutation: F, the share of the nodes in which two parents differ that flips in the third.
        crossover: C, the share of the nodes that come from the mutant.
        noise: The rate at which every node of a child flips, one for all or `(nodes,)`.

    Raises:
        ArgumentError: A rate is not from 0 to 1.
    """

    mutation: float = 0.9
    crossover: float = 0.5
    noise: float | Tensor = 0.0

    def __post_init__(self) -> None:
        checked_rate(self.mutation, "mutation")
        checked_rate(self.crossover, "crossover")
        nodes = self.noise.numel() if isinstance(self.noise, Tensor) else 1
        checked_rates(self.noise, nodes, "noise")

    def propose(
        self, population: Tensor, generator: torch.Generator, scores: Tensor | None = None
    ) -> Tensor:
        """One child of every state; the scores are not used. See `Evolution`."""
        return children(
            population,
            generator,
            mutation=self.mutation,
            crossover=self.crossover,
            noise=self.noise,
        )

    def accept(self, replaced: Tensor) -> None:
        """Nothing is to be learned."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


def children(
    population: Tensor,
    generator: torch.Generator,
    *,
    mutation: float = 0.9,
    crossover: float = 0.5,
    noise: float | Tensor = 0.0,
) -> Tensor:
    """One child of every state, bool `(states, nodes)`.

    Args:
        population: bool `(states, nodes)`, on the CPU.
        generator: On the CPU. The same generator gives the same children.
        mutation: F, the share of the nodes in which two parents differ that flips in the third.
        crossover: C, the share of the nodes that come from the mutant; one always does.
        noise: The rate at which every node flips in the end, one for all or `(nodes,)`. Without it
            a population of equal states stays as it is.

    Raises:
        ArgumentError: There are fewer than 4 states, the population is malformed, or a rate is not
            from 0 to 1.
    """
    states, nodes = checked_population(population, least=LEAST_STATES).shape
    checked_rate(mutation, "mutation")
    checked_rate(crossover, "crossover")
    rates = checked_rates(noise, nodes, "noise")
    if not nodes:
        return population.clone()

    def draws(width: int) -> Tensor:
        return torch.rand(states, width, generator=generator, dtype=torch.float64)

    parents = distinct_parents(draws(states))
    mutants = mutated(population, parents, draws(nodes), mutation)
    forced = torch.randint(nodes, (states,), generator=generator)
    found = crossed(population, mutants, draws(nodes), crossover, forced)
    return found ^ (draws(nodes) < rates) if bool(rates.any()) else found


def distinct_parents(draws: Tensor) -> Tensor:
    """Of every state three others, all different: int64 `(states, 3)`.

    Args:
        draws: Random numbers, `(states, states)`; the smallest of each row are taken, the diagonal
            left out. It must have 4 rows or more.
    """
    others = draws.clone().fill_diagonal_(torch.inf)
    return others.argsort(dim=1, stable=True)[:, :3]


def mutated(population: Tensor, parents: Tensor, draws: Tensor, rate: float) -> Tensor:
    """The first parent, flipped at a rate where the other two differ: bool `(states, nodes)`.

    Args:
        population: bool `(states, nodes)`.
        parents: int64 `(states, 3)`.
        draws: Uniform random numbers from 0 to 1, `(states, nodes)`.
        rate: F.
    """
    first, second, third = (population[parents[:, i]] for i in range(3))
    return first ^ ((second ^ third) & (draws < rate))


def crossed(
    population: Tensor, mutants: Tensor, draws: Tensor, rate: float, forced: Tensor
) -> Tensor:
    """Each state with some nodes of its mutant: bool `(states, nodes)`.

    Args:
        population: bool `(states, nodes)`.
        mutants: bool `(states, nodes)`.
        draws: Uniform random numbers from 0 to 1, `(states, nodes)`.
        rate: C.
        forced: The node that comes from the mutant in any case, int64 `(states,)`.
    """
    taken = (draws < rate).scatter(1, forced[:, None], True)
    return torch.where(taken, mutants, population)
