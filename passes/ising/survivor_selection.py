"""Which of a state and its child stays: feasible ones first, then the lower energy.

K. Deb, "An efficient constraint handling method for genetic algorithms" (CMAME 2000), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, TrainingError
from passes.ising.population_checks import checked_numbers, checked_population


@dataclass(frozen=True, slots=True, eq=False)
class Survivors:
    """What a selection leaves.

    Attributes:
        population: bool `(states, nodes)`.
        energies: float64 `(states,)`.
        violations: float64 `(states,)`; 0 where a state is feasible.
        replaced: Whether the child replaced its parent, bool `(states,)`.
    """

    population: Tensor
    energies: Tensor
    violations: Tensor
    replaced: Tensor

    @property
    def best(self) -> int:
        """The row of the best state; see `best_row`."""
        return best_row(self.energies, self.violations)


def select(
    parents: Tensor,
    children: Tensor,
    parent_energies: Tensor,
    child_energies: Tensor,
    parent_violations: Tensor,
    child_violations: Tensor,
) -> Survivors:
    """Each parent or its child, by feasibility rules.

    A feasible state beats an infeasible one, of two infeasible ones the lower violation wins, of
    two feasible ones the lower energy. A state whose energy is not finite loses to any whose is.
    Equal ones keep the parent. On a fixed energy the best one never gets worse.

    Args:
        parents: bool `(states, nodes)`.
        children: bool `(states, nodes)`.
        parent_energies: `(states,)`, of the same scoring set as those of the children.
        child_energies: `(states,)`.
        parent_violations: `(states,)`, 0 where feasible.
        child_violations: `(states,)`.

    Raises:
        ArgumentError: Shapes do not fit, or a violation is negative or not finite.
        TrainingError: No energy of a survivor is finite.
    """
    states, nodes = checked_population(parents).shape
    if checked_population(children, nodes).shape[0] != states:
        raise ArgumentError(
            f"{children.shape[0]} children of {states} parents", where="population of children"
        )
    old = _Ranked.of(parent_energies, parent_violations, states)
    new = _Ranked.of(child_energies, child_violations, states)
    replaced = new.beats(old)
    energies = torch.where(replaced, new.energies, old.energies)
    if not bool(torch.isfinite(energies).any()):
        raise TrainingError(
            "the energy of every keep-state is NaN or infinite",
            where="search over keep-states",
            remedy="Look for a loss that is not finite: lower the learning rate, or look for NaN "
            "in the data.",
        )
    return Survivors(
        torch.where(replaced[:, None], children, parents),
        energies,
        torch.where(replaced, new.violations, old.violations),
        replaced,
    )


def best_row(energies: Tensor, violations: Tensor) -> int:
    """The row of the best state by the rules of `select`; the first of equal ones.

    Raises:
        ArgumentError: There is no state, shapes do not fit, or a violation is not finite.
    """
    states = energies.numel()
    if not states:
        raise ArgumentError("there is no state", where="energies")
    ranked = _Ranked.of(energies, violations, states)
    best = 0
    for row in range(1, states):
        if bool(ranked.at(row).beats(ranked.at(best))):
            best = row
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """Energies and violations of states, to be compared state by state."""

    energies: Tensor
    violations: Tensor

    @classmethod
    def of(cls, energies: Tensor, violations: Tensor, states: int) -> _Ranked:
        found = checked_numbers(violations, (states,), "violations")
        if not bool((torch.isfinite(found) & (found >= 0)).all()):
            raise ArgumentError("are not all finite numbers from 0", where="violations")
        return cls(checked_numbers(energies, (states,), "energies"), found)

    @property
    def finite(self) -> Tensor:
        return torch.isfinite(self.energies)

    def at(self, row: int) -> _Ranked:
        return _Ranked(self.energies[row], self.violations[row])

    def beats(self, other: _Ranked) -> Tensor:
        less_violation = self.violations < other.violations
        feasible = (self.violations == 0) & (other.violations == 0)
        better = less_violation | (feasible & (self.energies < other.energies))
        return self.finite & (~other.finite | better)
