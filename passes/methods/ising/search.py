"""The search: a population of keep-states that all meet the budget, generation by generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.ising.convergence import Convergence, diversity
from passes.ising.evolution import BinaryEvolution, Evolution
from passes.ising.ratio_evolution import RatioEvolution
from passes.ising.repair import Repair
from passes.ising.start import initial_population
from passes.ising.survivor_selection import select
from passes.methods.ising.config import Ising

# From a population, bool `(states, nodes)`, to energies, float64 `(states,)`.
Energies = Callable[[Tensor], Tensor]
# From a state, bool `(nodes,)`, to one near it that is expected to be lower.
Neighbour = Callable[[Tensor], Tensor]


class KeepStateSearch:
    """A population on its way to a low energy.

    In every generation parents and children are compared on the same samples and the same weights:
    an energy that a lucky batch gave is never kept. Every state is repaired, so that the budget
    holds for all of them.

    Args:
        repair: The budget, and what is repaired by it.
        config: How is searched.
        generator: All that is random comes from it.
    """

    def __init__(self, repair: Repair, config: Ising, generator: torch.Generator) -> None:
        self.repair = repair
        self.config = config
        self.generator = generator
        self.population = torch.zeros(0, repair.layout.nodes, dtype=torch.bool)
        self.energies = torch.zeros(0, dtype=torch.float64)
        self.generation = 0
        self.why_over = ""
        self._best = 0
        self._limits = repair.limits
        self._evolution = _evolution(repair, config)
        self._convergence = Convergence(config.patience)

    @property
    def best(self) -> Tensor:
        """The state of the lowest energy, or before any is known the first one."""
        if not len(self.population):
            raise PreconditionError("begin() was not called", where="search over keep-states")
        return self.population[self._best]

    def begin(
        self, scores: Tensor, limits: Sequence[ResolvedLimit], warm: Tensor | None = None
    ) -> None:
        """Draw the first population.

        Args:
            scores: How much each node matters, `(nodes,)`.
            limits: The budget at the beginning.
            warm: A state that is among the first, bool `(nodes,)`.

        Raises:
            InfeasibleBudget: The fewest units exceed a limit.
        """
        own = self._under(limits)
        keep = self.config.init_keep
        self._limits = own.limits
        self.population = initial_population(
            own,
            self.config.states,
            scores,
            self.generator,
            keep=self.repair.keep_rates() if keep == "budget" else keep,
            warm=warm,
            temperature=self.config.repair_temperature,
        )

    def advance(
        self,
        energies: Energies,
        scores: Tensor,
        limits: Sequence[ResolvedLimit],
        better: Neighbour | None = None,
    ) -> None:
        """One generation.

        Args:
            energies: Of any states, all on the same samples.
            scores: How much each node matters, `(nodes,)`.
            limits: The budget now.
            better: Improves a state, for a local search.

        Raises:
            TrainingError: No energy is finite.
        """
        own = self._under(limits)
        if own.limits != self._limits:
            self._limits, self.population = own.limits, own(self.population, scores)
            self._convergence.restart()
        children = self._evolution.propose(self.population, self.generator, scores)
        if better is not None and len(self.energies):
            # In place of the child of the best state, which then competes with its parent.
            children[self._best] = better(self.best)
        children = own(children, scores, self.generator, self.config.repair_temperature)
        count = len(self.population)
        found = energies(torch.cat([self.population, children]))
        none = torch.zeros(count, dtype=torch.float64)
        survivors = select(self.population, children, found[:count], found[count:], none, none)
        self._evolution.accept(survivors.replaced)
        self.population, self.energies = survivors.population, survivors.energies
        self._best = survivors.best
        self.generation += 1
        why = self._convergence.observe(self.best, diversity(self.population))
        self.why_over = why if own.fill else ""

    def _under(self, limits: Sequence[ResolvedLimit]) -> Repair:
        """The repair for a budget; while it still falls, states need not use it up.

        Otherwise all would be the whole network under a budget of 100 %.
        """
        own = self.repair.under(limits)
        return replace(own, fill=own.limits == self.repair.limits)

    def report(self) -> dict[str, Any]:
        """How it stands; JSON values."""
        if not len(self.energies):
            return {"generation": self.generation}
        kept = self.repair.layout.kept(self.best[None])[0].tolist()
        return {
            "generation": self.generation,
            "energy_best": float(self.energies[self._best]),
            "energy_mean": float(self.energies[self.energies.isfinite()].mean()),
            "diversity": diversity(self.population),
            "kept": dict(zip(self.repair.layout.names, kept, strict=True)),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs."""
        return {
            "population": self.population,
            "energies": self.energies,
            "best": self._best,
            "generation": self.generation,
            "why_over": self.why_over,
            "maxima": [float(limit.maximum) for limit in self._limits],
            "generator": self.generator.get_state(),
            "evolution": self._evolution.state_dict(),
            "convergence": self._convergence.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of a search with the same budget and configuration."""
        self.population, self.energies = state["population"].clone(), state["energies"].clone()
        self._best = int(state["best"])
        self.generation, self.why_over = int(state["generation"]), str(state["why_over"])
        pairs = zip(self.repair.limits, state["maxima"], strict=True)
        self._limits = tuple(replace(limit, maximum=maximum) for limit, maximum in pairs)
        self.generator.set_state(state["generator"])
        self._evolution.load_state_dict(state["evolution"])
        self._convergence.load_state_dict(state["convergence"])


def remembered(energies: Energies) -> Energies:
    """The same energies, each state's computed once: for weights and samples that stay the same."""
    known: dict[bytes, float] = {}

    def lookup(population: Tensor) -> Tensor:
        rows = {row.numpy().tobytes(): row for row in population}
        new = [name for name in rows if name not in known]
        if new:
            # The lowest known one goes along: that no energy at all is finite would be an error.
            lowest = sorted((name for name in rows if name in known), key=known.__getitem__)[:1]
            asked = new + lowest
            found = energies(torch.stack([rows[name] for name in asked])).tolist()
            known.update(zip(new, found, strict=False))
        numbers = [known[row.numpy().tobytes()] for row in population]
        return torch.tensor(numbers, dtype=torch.float64)

    return lookup


def _evolution(repair: Repair, config: Ising) -> Evolution:
    if config.search == "ratio-de":
        return RatioEvolution(
            repair.groups, repair.multiple, mutation=config.mutation, crossover=config.crossover
        )
    noise: float | Tensor = 0.0 if config.noise is None else config.noise
    if config.noise is None:
        sizes = torch.tensor(repair.layout.sizes, dtype=torch.int64)
        noise = (1 / sizes.double()).repeat_interleave(sizes)
    return BinaryEvolution(config.mutation, config.crossover, noise)
