"""When a search over keep-states is over: its states have become one, or its best one stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.ising.population_checks import checked_population, checked_rate


def diversity(population: Tensor) -> float:
    """Share of the nodes in which two states differ, in the mean over all pairs.

    A node that c of S states keep differs in c (S - c) of the S (S - 1) / 2 pairs, so that it takes
    O(S * nodes) and not O(S^2 * nodes).

    Args:
        population: bool `(states, nodes)`.

    Raises:
        ArgumentError: The population is malformed.
    """
    states, nodes = checked_population(population).shape
    if states < 2 or not nodes:
        return 0.0
    kept = population.sum(0)
    return int((kept * (states - kept)).sum()) / (states * (states - 1) // 2) / nodes


class Convergence:
    """Watches a search, generation by generation.

    While weights are trained, energies are scored anew in each generation, and move even if no
    state does. So it is the best *state* that has to stay, not its energy.

    Args:
        patience: Generations for which the best state must have stayed the same.
        least_diversity: The search is over with a lower `diversity`; 0 switches this off.

    Raises:
        ArgumentError: `patience` is no whole number from 1, or the diversity not from 0 to 1.
    """

    def __init__(self, patience: int = 200, least_diversity: float = 0.01) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ArgumentError(f"{patience!r} is no whole number from 1", where="patience")
        self.patience = patience
        self.least_diversity = checked_rate(least_diversity, "least_diversity")
        self._best: Tensor | None = None
        self._unchanged = 0

    def observe(self, best: Tensor, diversity: float) -> str:
        """Note a generation; why the search is over, or an empty string.

        Args:
            best: The best state of this generation, bool `(nodes,)`.
            diversity: Of its population.

        Raises:
            ArgumentError: `best` is no row of booleans, or the diversity not from 0 to 1.
        """
        if best.dtype != torch.bool or best.dim() != 1:
            raise ArgumentError(
                f"is {best.dtype} of shape {tuple(best.shape)}, expected bool (nodes,)",
                where="best keep-state",
            )
        checked_rate(diversity, "diversity")
        same = self._best is not None and torch.equal(self._best, best)
        self._unchanged = self._unchanged + 1 if same else 0
        if not same:
            self._best = best.clone()
        if diversity < self.least_diversity:
            least = f"{100 * self.least_diversity:g} %"
            return f"the states differ in {100 * diversity:.2g} % of the nodes, less than {least}"
        if self._unchanged >= self.patience:
            return f"the best state has been the same for {self._unchanged} generations"
        return ""

    def restart(self) -> None:
        """Forget the best state, as when the budget has changed."""
        self._best, self._unchanged = None, 0

    def state_dict(self) -> dict[str, Any]:
        """The best state so far, and for how long it has been."""
        found: dict[str, Any] = {"unchanged": self._unchanged}
        return found if self._best is None else found | {"best": self._best.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        best = state.get("best")
        self._best = None if best is None else best.clone()
        self._unchanged = int(state["unchanged"])
