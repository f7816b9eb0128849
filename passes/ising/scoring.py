"""Run a model in many keep-states, and leave no trace in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.inputs import Call
from passes.ising.batch_statistics import BatchStatistics
from passes.isolation import evaluating, untouched
from passes.rewrite.live_gates import LiveGates

NORMS = ("running", "batch")


class Scoring(ABC):
    """One way of running the model in every state of a population.

    Args:
        gates: Those of the model, which stay as they are set.
    """

    name: ClassVar[str]

    def __init__(self, gates: LiveGates) -> None:
        self.gates = gates

    def outputs(self, population: Tensor, call: Call, norms: str = "running") -> list[Any]:
        """What the model returns in each state, for the same call.

        It runs in evaluation mode and without gradients. Parameters, buffers, training flags and
        the global random generators are the same afterwards, also if the model raises. States that
        are equal are run once, and share their output.

        Args:
            population: Which nodes stay: bool `(states, nodes)`.
            call: The samples to score with.
            norms: What batch norms do: `"running"` normalises by the running statistics, `"batch"`
                by those of the samples, for each state by its own.

        Raises:
            ArgumentError: The population does not fit the groups, or another word for `norms`.
            PreconditionError: A batch norm has a single value for each channel to take the
                statistics of.
        """
        if norms not in NORMS:
            raise ArgumentError(f"{norms!r} is none of {NORMS}", where="norms")
        self.gates.rows(population)
        distinct, places = _distinct(population.detach().cpu())
        if not len(distinct):
            return []
        call = call.to(self.gates.device)
        with untouched(self.gates.module), evaluating(self.gates.module):
            found = self._outputs(distinct, call, norms)
        return [found[place] for place in places]

    @abstractmethod
    def _outputs(self, population: Tensor, call: Call, norms: str) -> list[Any]:
        """The outputs of a population without repetitions, which has been checked."""

    def _run(self, model: Callable[..., Any], call: Call) -> Any:
        """Run on copies of the inputs, and draw what every other state draws."""
        seed_alike(self.gates.device)
        return call.fresh()(model)

    def _normalising(self, norms: str) -> AbstractContextManager[Any]:
        return BatchStatistics(self.gates.context) if norms == "batch" else nullcontext()


def seed_alike(device: torch.device) -> None:
    """Let a model that draws random numbers draw the same in each state.

    To be called inside a fork of the random state, as `evaluating` makes one.
    """
    # What `torch.manual_seed` does for every kind of device takes a millisecond.
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.manual_seed(0)


def _distinct(population: Tensor) -> tuple[Tensor, list[int]]:
    """The different states in order of appearance, and for each state which of them it is."""
    numbers: dict[bytes, int] = {}
    places = [numbers.setdefault(row.numpy().tobytes(), len(numbers)) for row in population]
    first = {place: state for state, place in reversed(list(enumerate(places)))}
    return population[[first[place] for place in range(len(first))]], places
