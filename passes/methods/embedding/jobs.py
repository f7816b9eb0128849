"""What is asked of whoever trains candidates, and what comes back.

The search is one floor below the training: it hands out jobs and reads outcomes, and does not know
whether they were trained one by one, together, or on other machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Candidate(Protocol):
    """A genotype, as far as evaluation and records need it."""

    @property
    def digest(self) -> str:
        """sha256 of its canonical JSON, in hexadecimal."""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """Where training stopped, so that it can go on bit for bit.

    Attributes:
        epochs: Epochs that were trained.
        model: The `state_dict` of the model, on the CPU, as training left it.
        optimizer: The `state_dict` of the optimizer, its tensors on the CPU.
    """

    epochs: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One candidate to be trained up to the end of a rung, and scored.

    Attributes:
        genotype: What is built.
        rung: Number of the rung.
        epochs: Epochs after which it ends, counted from the candidate's first.
        seed: Of the candidate's own randomness (dropout); the order of the data is the run's.
        start: Where an earlier rung stopped; `None` begins with the weights that it is built with.
    """

    genotype: Candidate
    rung: int
    epochs: int
    seed: int
    start: TrainingState | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a job.

    Attributes:
        accuracy: The metric on the validation data, higher is better; that of chance if it failed.
        seconds: Wall time of its own work; what candidates share is not counted.
        state: Where training stopped; `None` if it failed.
        failure: Why it failed; `None` if it did not.
    """

    accuracy: float
    seconds: float
    state: TrainingState | None = None
    failure: str | None = None


class Evaluator(Protocol):
    """Trains candidates."""

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Outcomes in the order of the jobs.

        A candidate that fails is an outcome; only what would fail for all of them is raised.
        """

    def close(self) -> None:
        """Let go of processes and memory."""
