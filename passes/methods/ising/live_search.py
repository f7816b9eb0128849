"""A search in a model: gates where the channels are read, a population, and what compares it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.graph import ModelGraph
from passes.inputs import Batch, Call
from passes.methods.base import Run
from passes.methods.ising.config import Ising
from passes.methods.ising.energies import CandidateEnergies
from passes.methods.ising.samples import scored_rows
from passes.methods.ising.search import KeepStateSearch, remembered
from passes.methods.ising.setting import Setting, everything
from passes.rewrite.held_slices import HeldSlices
from passes.rewrite.live_gates import attach_gates, detach_gates

# In a search on weights as they are, how often a state of low Ising energy is looked for anew.
_LEAPS = 10


class LiveSearch:
    """What a search needs from its first step to its last; it puts gates into the model.

    Args:
        graph: The model; it is changed in place.
        setting: The nodes and the budget.
        config: How is searched.
        run: Gives gradients.
        seed: Of all that is random.

    Attributes:
        graph: The model, with gates.
        setting: The nodes and the budget.
        gates: The gates in the model.
        held: Holds the weights of dropped channels.
        search: The population.
        energies: Compares candidates.
        scores: How much each node matters, `(nodes,)`.
        skipped: Steps whose samples could not tell states apart.
    """

    def __init__(
        self, graph: ModelGraph, setting: Setting, config: Ising, run: Run, seed: int
    ) -> None:
        self.graph, self.setting, self.skipped = graph, setting, 0
        self._config, self._run = config, run
        self.gates = attach_gates(graph, setting.groups, setting.layout)
        self.held = HeldSlices(graph, setting.groups)
        generator = torch.Generator().manual_seed(seed)
        self.energies = CandidateEnergies(graph, setting, self.gates, config, generator)
        self.search = KeepStateSearch(setting.repair, config, generator)
        self.scores = torch.zeros(setting.layout.nodes, dtype=torch.float64)
        self._aimed: tuple[ResolvedLimit, ...] = ()

    @property
    def over(self) -> str:
        """Why the search is over by itself; empty if it is not."""
        return self.search.why_over

    def begin(
        self, calls: Iterable[Call], limits: Sequence[ResolvedLimit], start: Tensor | None
    ) -> None:
        """Draw the first population.

        Args:
            calls: Samples that the activity of feature maps is measured on.
            limits: The budget at the beginning.
            start: Where the Ising energy is lowered from first; `None` is with everything.
        """
        self.refresh(calls, limits)
        self.search.begin(self.scores, limits, self.energies.lowest(start, self.scores))

    def refresh(self, calls: Iterable[Call], limits: Sequence[ResolvedLimit]) -> None:
        """Let importance and Ising couplings follow the weights, and the Ising bias the budget.

        They are those of the whole network: behind a closed gate nothing would seem to matter.

        Args:
            calls: Samples that the activity of feature maps is measured on.
            limits: The budget now.
        """
        self._aim(limits)
        with self.gates.acting(self.gates.rows(everything(self.setting.layout)[None])[0]):
            self.scores = self.setting.scores(self.graph, self._config, self._run.gradients)
        self.energies.refresh(calls)

    def step(self, batch: Batch | None, limits: Sequence[ResolvedLimit]) -> None:
        """One generation on samples of the last batch; none if these are all of one class.

        Args:
            batch: What was trained on last.
            limits: The budget now.
        """
        config, taken = self._config, None
        if config.runs_candidates:
            taken = scored_rows(batch, config.score_share, classes=config.compares_classes)
            if taken is None:
                self.skipped += 1
                return
        compare, better = self.energies.on(taken), self.energies.better(taken)
        self.search.advance(compare, self.scores, limits, better)

    def settle(self, batch: Batch | None, budget: Sequence[Sequence[ResolvedLimit]]) -> None:
        """Generations on the same samples and weights, until the search is over by itself.

        While the budget falls, states of low Ising energy compete now and then: which of two alike
        units is to go is nothing that a repair by importance finds. In training they would bring
        units back that were held for long: even one such state, as soon as the budget had fallen,
        cost 0.2, 0.5 and 1.5 points at 50, 25 and 15 % of the MACs (energy "ising", 5, 5 and 2
        seeds of the recipe resnet8-fashion-states).

        Args:
            batch: The samples; `None` where candidates are not run.
            budget: The limits of each generation.
        """
        compare, better = remembered(self.energies.on(batch)), self.energies.better(batch)
        for number, limits in enumerate(budget, 1):
            leaps = False
            if self._aim(limits) and self._config.couples:
                compare = remembered(self.energies.on(batch))  # the bias is another one
                fallen = tuple(limits) == tuple(budget[-1])
                leaps = fallen or number * _LEAPS % len(budget) < _LEAPS
            self.search.advance(compare, self.scores, limits, self._leap if leaps else better)
            if self.over:
                break

    def _leap(self, row: Tensor) -> Tensor:
        found = self.energies.lowest(row, self.scores)
        return row if found is None else found

    def _aim(self, limits: Sequence[ResolvedLimit]) -> bool:
        """Tell the energies the budget; whether it is another one than before."""
        if tuple(limits) == self._aimed:
            return False
        self._aimed = tuple(limits)
        self.energies.aim(self.setting.repair.under(limits))
        return True

    def follow(self) -> None:
        """Let the model be in the best state."""
        best = self.search.best
        if not torch.equal(best, self.gates.bits):
            self.gates.set(best)
            self.hold()

    def hold(self) -> None:
        """Hold what the model's state drops at the values that it has now."""
        self.held.hold(self.setting.layout.state(self.gates.bits))

    def chosen(self) -> Tensor:
        """The best state within the budget itself, bool `(nodes,)`.

        Raises:
            PreconditionError: No state could ever be compared with another.
        """
        if self.skipped and not self.search.generation:
            raise PreconditionError(
                f"in none of {self.skipped} steps did the samples hold two classes, so that no "
                "candidate could be compared with another",
                where="method 'ising'",
                remedy="Shuffle the data, use larger batches, or Ising(energy='distill').",
            )
        return self.setting.repair(self.search.best[None], self.scores)[0]

    def end(self) -> None:
        """Take the gates out again."""
        self.held.release()
        detach_gates(self.graph, self.gates)

    def report(self) -> dict[str, Any]:
        """How it stands; JSON values."""
        found = self.search.report() | {"compared_by": self.energies.backend}
        return found | {"skipped": self.skipped}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs."""
        return {
            "scores": self.scores,
            "skipped": self.skipped,
            "bits": self.gates.bits,
            "search": self.search.state_dict(),
            "energies": self.energies.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, with the weights as they were."""
        self.scores, self.skipped = state["scores"].clone(), int(state["skipped"])
        self.search.load_state_dict(state["search"])
        self.energies.load_state_dict(state["energies"])
        self.gates.set(state["bits"])
        self.hold()
