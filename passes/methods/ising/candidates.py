"""Candidates: the model run in many keep-states, the way that is the fastest here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from passes.inputs import Call
from passes.ising.agreement import Trial
from passes.ising.choose_backend import BackendChoice, choose_backend, make_scorings
from passes.ising.scoring import Scoring
from passes.methods.ising.config import Ising
from passes.methods.ising.setting import everything
from passes.rewrite.live_gates import LiveGates

# Not chosen by the clock, so that the same seed gives the same result: on CPUs networks that are
# really cut are the fastest, if they compute the same as this one does.
_ON_CPU, _REFERENCE = "compact", "loop"
# States that this is looked at for.
_COMPARED = 2


class Candidates:
    """Runs candidates by the back end that is configured, or chosen when they are first run.

    Args:
        gates: Those of the model.
        config: Says which back end, and what batch norms do.
    """

    def __init__(self, gates: LiveGates, config: Ising) -> None:
        self._gates, self._config = gates, config
        self._scorings: dict[str, Scoring] = {}
        self._choice: BackendChoice | None = None

    @property
    def backend(self) -> str:
        """How candidates are run; empty as long as none was."""
        return "" if self._choice is None else self._choice.name

    def outputs(self, population: Tensor, call: Call) -> list[Any]:
        """What the model returns in each state, bool `(states, nodes)`, for the same samples."""
        call = call.to(self._gates.device)
        return self._scoring(population, call).outputs(population, call, self._config.norms)

    def whole(self, call: Call) -> Any:
        """What the whole network returns."""
        return self.outputs(everything(self._gates.layout)[None], call)[0]

    def use(self, backend: str) -> None:
        """Run candidates as an interrupted search did; an empty word chooses anew."""
        self._choice = BackendChoice(backend, {}, {}) if backend else None

    def _scoring(self, population: Tensor, call: Call) -> Scoring:
        if not self._scorings:
            self._scorings = make_scorings(self._gates)
        if self._choice is None:
            self._choice = self._chosen(population, call)
        return self._scorings[self._choice.name]

    def _chosen(self, population: Tensor, call: Call) -> BackendChoice:
        wanted, norms = self._config.backend, self._config.norms
        if wanted not in ("auto", "measured"):
            self._require_equal(wanted, population, call)
            return choose_backend(self._scorings, population, call, norms=norms, forced=wanted)
        if wanted == "measured" or self._gates.device.type != "cpu":
            return choose_backend(self._scorings, population, call, norms=norms)
        why = self._why_not(_ON_CPU, population, call)
        return (
            BackendChoice(_REFERENCE, {}, {_ON_CPU: why}) if why else BackendChoice(_ON_CPU, {}, {})
        )

    def _why_not(self, name: str, population: Tensor, call: Call) -> str:
        fast, plain = self._scorings[name], self._scorings[_REFERENCE]
        return Trial(population[-_COMPARED:], call, self._config.norms).why_not(fast, plain)

    def _require_equal(self, name: str, population: Tensor, call: Call) -> None:
        """Raise if the back end that was asked for computes something else than the model does."""
        why = "" if name == _REFERENCE else self._why_not(name, population, call)
        if why:
            raise PreconditionError(
                f"the back end {name!r} cannot run the candidates of this model: {why}",
                where="Ising.backend",
                remedy="Use 'auto', which takes one that can, or 'loop'.",
            )


def rows_of(call: Call, count: int) -> Call:
    """The first samples of a call."""
    return call.rows(torch.arange(min(count, call.batch_size or 1)))
