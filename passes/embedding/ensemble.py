"""Several kernels that learn from random parts of the observations, and how well they predict.

Kernels go on from what they have learned, so a part that is drawn anew would in time show them
everything. Here each kernel leaves the same fifth of all architectures out for good: on these its
predictions are honest. Leaving one out is not, for an encoder that was trained on just that: on 10
random numbers its rank correlation is 0.93 and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from energy_model.errors import ArgumentError
from passes.derived_seed import derived_seed
from passes.embedding.deep_kernel import DeepKernel, Fitting, Inputs
from passes.embedding.fit_report import FitReport, explained, mean_of
from passes.rank_correlation import rank_correlation

# Fewer predictions say nothing about their order.
_FEWEST = 4


class Encoded(Protocol):
    """An architecture as surrogates read it."""

    @property
    def digest(self) -> str:
        """Tells it from all others."""

    @property
    def tokens(self) -> NDArray[np.float32]:
        """`(layers, features)`."""

    @property
    def features(self) -> NDArray[np.float64]:
        """The features made by hand, `(features,)`."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One evaluated architecture.

    Attributes:
        candidate: As surrogates read it.
        target: What is to be predicted.
        rung: After how much training it was measured, from 0.
        anchor: Every kernel learns from it.
    """

    candidate: Encoded
    target: float
    rung: int = 0
    anchor: bool = False


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How the kernels of a surrogate share the observations.

    Attributes:
        kernels: How many there are.
        share: Probability with which a kernel learns from an observation that is no anchor.
        redrawn: Draw at every fit, as in the paper, and not once for every kernel and architecture.
        rungs: Amounts of training that observations may have had.

    Raises:
        ArgumentError: A number is out of range.
    """

    kernels: int = 8
    share: float = 0.8
    redrawn: bool = False
    rungs: int = 1

    def __post_init__(self) -> None:
        for name in ("kernels", "rungs"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{getattr(self, name)!r} is not at least 1", where=name)
        if not 0 < self.share <= 1:
            raise ArgumentError(f"{self.share!r} is no share above 0", where="share")

    def part(
        self, kernel: int, observations: Sequence[Observation], generator: Generator
    ) -> Tensor:
        """Draw what a kernel learns from: all anchors and most of the others.

        Args:
            kernel: Its number.
            observations: At least one.
            generator: On the CPU; asked only if parts are redrawn.

        Returns:
            Positions, ascending; at least one.
        """
        if self.redrawn:
            draws = torch.rand(len(observations), generator=generator).tolist()
        else:
            seeds = [derived_seed("part", kernel, one.candidate.digest) for one in observations]
            draws = [seed / 2**63 for seed in seeds]
        kept = [
            at
            for at, (seen, draw) in enumerate(zip(observations, draws, strict=True))
            if seen.anchor or draw < self.share
        ]
        return torch.tensor(kept or [draws.index(min(draws))])

    def fit(
        self,
        name: str,
        members: Sequence[DeepKernel],
        inputs: Inputs,
        observations: Sequence[Observation],
        fitting: Fitting,
        generator: Generator,
        *,
        fresh: bool,
    ) -> FitReport:
        """Let every kernel learn from a part of its own.

        Args:
            name: Of the surrogate, for the report.
            members: The kernels.
            inputs: Of the observations, in their order.
            observations: At least two.
            fitting: How they learn.
            generator: Of the parts, on the CPU.
            fresh: Length scales start at the median distance.

        Raises:
            ArgumentError: There are fewer than two observations, or a rung is unknown.
        """
        if len(observations) < 2:
            raise ArgumentError(
                f"{len(observations)} observations teach nothing",
                where="observations",
                remedy="Evaluate at least two architectures first.",
            )
        targets = torch.tensor([seen.target for seen in observations], dtype=torch.float64)
        rungs = torch.tensor([seen.rung for seen in observations], dtype=torch.int64)
        r2: list[float | None] = []
        ranks: list[float | None] = []
        truths: list[float] = []
        guesses: list[float] = []
        for number, member in enumerate(members):
            part = self.part(number, observations, generator)
            if fresh:
                member.start(inputs[part])
            member.fit(inputs[part], targets[part], rungs[part], fitting)
            truth, mean = targets[part].tolist(), member.process.leave_one_out()[0].tolist()
            r2.append(explained(truth, mean))
            ranks.append(rank_correlation(truth, mean))
            # Predictions are for the last rung, and compared with what was measured there.
            other = rungs == self.rungs - 1
            other[part] = False
            truths += targets[other].tolist()
            guesses += member.predict(inputs[other.nonzero()[:, 0]])[0].tolist()
        held_out = rank_correlation(truths, guesses) if len(truths) >= _FEWEST else None
        return FitReport(name, len(targets), mean_of(r2), mean_of(ranks), held_out)
