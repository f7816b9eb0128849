"""Surrogates: what predicts the score of an architecture from those that were evaluated.

A surrogate is an ensemble of Gaussian processes, each of which learns from a random part of the
observations, so that they disagree where little is known and propose different candidates (Cao,
Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR 2019,
section 3.3). The paper's encoders start anew at every step, on halves of the record; these go on
from what they have learned, on four fifths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from energy_model.errors import ArgumentError
from passes.embedding.deep_kernel import DeepKernel, Fitting
from passes.embedding.encoder import Encoder, TokenBatch
from passes.embedding.ensemble import Encoded, Ensemble, Observation
from passes.embedding.fit_report import FitReport
from passes.embedding.gaussian_process import FixedKernel, GaussianProcess
from passes.embedding.hand_features import FEATURES as HAND_FEATURES

State = dict[str, Tensor]
_FIRST_WEIGHT = "0.encoder.lstm.weight_ih_l0"


class Surrogate(Protocol):
    """Learns from observations, then predicts."""

    @property
    def name(self) -> str:
        """Of the surrogate, for reports."""

    @property
    def kernels(self) -> int:
        """Of the ensemble."""

    def fit(self, observations: Sequence[Observation], generator: Generator) -> FitReport:
        """Learn, from what was learned before if that is kept.

        Raises:
            ArgumentError: There are fewer than two observations.
        """

    def predict(self, kernel: int, candidates: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """What one kernel expects at the last rung; `fit` comes first.

        Returns:
            Mean and standard deviation, float64 `(candidates,)`, in the unit of the targets.
        """

    def state_dict(self) -> State:
        """What the next fit goes on from."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            ArgumentError: It is the state of another surrogate.
        """


class EmbeddingSurrogate:
    """Gaussian processes on learned embeddings.

    Args:
        ensemble: How many kernels, and what they learn from.
        fitting: How they are learned.
        encoders: Where to start, one for each kernel or fewer, which are then repeated; `None`
            starts with random ones.
        hidden: Units in each direction of random encoders.
        layers: Of random encoders.
        warm: Go on from what the fit before has learned; otherwise start anew every time.
        fixed: The paper's process instead of a learned one.

    Raises:
        ArgumentError: `encoders` is empty.
    """

    name = "embedding"

    def __init__(
        self,
        ensemble: Ensemble | None = None,
        fitting: Fitting | None = None,
        *,
        encoders: Sequence[Encoder] | None = None,
        hidden: int = 32,
        layers: int = 1,
        warm: bool = True,
        fixed: FixedKernel | None = None,
    ) -> None:
        if encoders is not None and not encoders:
            raise ArgumentError("there is none", where="encoders", remedy="Pass None, or some.")
        self.ensemble = Ensemble() if ensemble is None else ensemble
        self.fitting = Fitting() if fitting is None else fitting
        self._first = encoders
        self._hidden, self._layers = hidden, layers
        self._warm, self._fixed = warm, fixed
        self._members: list[DeepKernel] = []

    @property
    def kernels(self) -> int:
        """Of the ensemble."""
        return self.ensemble.kernels

    @property
    def encoders(self) -> list[Encoder]:
        """Those that were learned, to be saved for another search; none before the first fit."""
        return [member.encoder for member in self._members if member.encoder is not None]

    def fit(self, observations: Sequence[Observation], generator: Generator) -> FitReport:
        """Learn encoders and processes together, on the leave-one-out density.

        Args:
            observations: At least two, of any number of layers.
            generator: Of the parts and of the first weights, on the CPU.

        Raises:
            ArgumentError: There are fewer than two observations, or tokens do not fit.
        """
        batch = TokenBatch.of([seen.candidate.tokens for seen in observations])
        fresh = not (self._members and self._warm)
        if fresh:
            self._members = self._started(batch.values.shape[-1], generator)
        return self.ensemble.fit(
            self.name, self._members, batch, observations, self.fitting, generator, fresh=fresh
        )

    def _started(self, features: int, generator: Generator) -> list[DeepKernel]:
        members = []
        for number in range(self.kernels):
            hidden, layers = self._hidden, self._layers
            first = None if self._first is None else self._first[number % len(self._first)]
            if first is not None:
                first.check(features)
                hidden, layers = first.hidden, first.layers
            encoder = Encoder(features, hidden=hidden, layers=layers, generator=generator)
            if first is not None:
                encoder.load_state_dict(first.state_dict())
            rungs = self.ensemble.rungs
            process = GaussianProcess(2 * hidden, rungs=rungs, fixed=self._fixed)
            members.append(DeepKernel(process, encoder))
        return members

    def predict(self, kernel: int, candidates: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """What one kernel expects at the last rung; `fit` comes first.

        Args:
            kernel: Its number.
            candidates: At least one.

        Returns:
            Mean and standard deviation, float64 `(candidates,)`, in the unit of the targets.
        """
        batch = TokenBatch.of([candidate.tokens for candidate in candidates])
        return self._members[kernel].predict(batch)

    def state_dict(self) -> State:
        """Encoders and processes; empty before the first fit."""
        return {
            f"{number}.{name}": value
            for number, member in enumerate(self._members)
            for name, value in member.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            ArgumentError: It is the state of another surrogate.
        """
        if not state:
            self._members = []
            return
        if _FIRST_WEIGHT not in state:
            raise ArgumentError("the state is that of another surrogate", where="state")
        members = self._started(state[_FIRST_WEIGHT].shape[1], Generator())
        if {name.partition(".")[0] for name in state} != {str(n) for n in range(len(members))}:
            raise ArgumentError("the state has another number of kernels", where="state")
        for number, member in enumerate(members):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            member.load_state_dict(own)
        self._members = members


class FeatureSurrogate:
    """Gaussian processes on features made by hand, fitted anew every time: the baseline.

    Args:
        ensemble: How many kernels, and what they learn from.
        fitting: How length scales and noises are learned.
    """

    name = "features"

    def __init__(self, ensemble: Ensemble | None = None, fitting: Fitting | None = None) -> None:
        self.ensemble = Ensemble() if ensemble is None else ensemble
        self.fitting = Fitting(steps=60, kernel_rate=0.1) if fitting is None else fitting
        self._members: list[DeepKernel] = []
        self._shift, self._scale = torch.zeros(0), torch.ones(0)

    @property
    def kernels(self) -> int:
        """Of the ensemble."""
        return self.ensemble.kernels

    def fit(self, observations: Sequence[Observation], generator: Generator) -> FitReport:
        """Learn length scales, noises and means on the leave-one-out density.

        Args:
            observations: At least two.
            generator: Of the parts, on the CPU.

        Raises:
            ArgumentError: There are fewer than two observations.
        """
        raw = _stacked([seen.candidate for seen in observations])
        spread = raw.std(0, correction=0)
        self._shift, self._scale = raw.mean(0), torch.where(spread > 1e-9, spread, 1.0)
        rungs = self.ensemble.rungs
        self._members = [
            DeepKernel(GaussianProcess(HAND_FEATURES, rungs=rungs)) for _ in range(self.kernels)
        ]
        return self.ensemble.fit(
            self.name,
            self._members,
            (raw - self._shift) / self._scale,
            observations,
            self.fitting,
            generator,
            fresh=True,
        )

    def predict(self, kernel: int, candidates: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """What one kernel expects at the last rung; `fit` comes first.

        Args:
            kernel: Its number.
            candidates: At least one.

        Returns:
            Mean and standard deviation, float64 `(candidates,)`, in the unit of the targets.
        """
        inputs = (_stacked(candidates) - self._shift) / self._scale
        return self._members[kernel].predict(inputs)

    def state_dict(self) -> State:
        """Nothing: every fit starts anew."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            ArgumentError: It is the state of another surrogate.
        """
        if state:
            raise ArgumentError("the state is that of another surrogate", where="state")


def _stacked(candidates: Sequence[Encoded]) -> Tensor:
    if not candidates:
        return torch.empty(0, HAND_FEATURES, dtype=torch.float64)
    return torch.from_numpy(np.stack([candidate.features for candidate in candidates]))
