"""A deep kernel: an encoder and a Gaussian process that are learned together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.embedding.encoder import Encoder, TokenBatch
from passes.embedding.gaussian_process import GaussianProcess

Inputs = TokenBatch | Tensor
"""Sequences of tokens, or points float64 `(points, dimensions)` where there is no encoder."""

# From this step on the paper's criterion may stop a fit.
_FIRST_STOP = 6


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a kernel is learned; the default continues from what was learned before.

    Attributes:
        steps: Of Adam, on all points at once.
        learning_rate: Of the encoder.
        kernel_rate: Of the process: mean, length scale and noise.
        weight_decay: Of the encoder.
        tolerance: Stop once a step changes the density by less than this against its moving
            average; never for `None`.
    """

    steps: int = 25
    learning_rate: float = 5e-3
    kernel_rate: float = 0.05
    weight_decay: float = 5e-4
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ArgumentError(f"{self.steps!r} is negative", where="steps")
        for name in ("learning_rate", "kernel_rate"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{getattr(self, name)!r} is not above 0", where=name)


class DeepKernel:
    """A Gaussian process on what an encoder makes of its inputs, or on the inputs themselves.

    Args:
        process: On embeddings.
        encoder: Of sequences of tokens; `None` where inputs are points already.
    """

    def __init__(self, process: GaussianProcess, encoder: Encoder | None = None) -> None:
        self.process, self.encoder = process, encoder

    def embed(self, inputs: Inputs) -> Tensor:
        """The embeddings of inputs, float `(points, dimensions)`.

        Raises:
            ArgumentError: Tokens came where points are read, or the other way round.
        """
        if isinstance(inputs, TokenBatch) != (self.encoder is not None):
            raise ArgumentError("inputs are of the wrong kind for this kernel", where="inputs")
        if isinstance(inputs, Tensor):
            return inputs
        if len(inputs) == 0:  # which cannot be packed
            return torch.empty(0, self.process.dimensions)
        assert self.encoder is not None
        return self.encoder(inputs)  # type: ignore[no-any-return]

    def start(self, inputs: Inputs) -> None:
        """Set the length scale by the median distance of the embeddings."""
        with torch.no_grad():
            self.process.start(self.embed(inputs))

    def fit(
        self, inputs: Inputs, targets: Tensor, rungs: Tensor | None, fitting: Fitting
    ) -> list[float]:
        """Minimise the leave-one-out loss, and condition the process on the observations.

        Args:
            inputs: At least one; from two on something is learned.
            targets: Float64 `(points,)`.
            rungs: Int64 `(points,)`, or `None`.
            fitting: How.

        Returns:
            The loss before every step.

        Raises:
            ArgumentError: There is no point, or a target is not finite.
        """
        process, losses = self.process, list[float]()
        with torch.no_grad():
            process.condition(self.embed(inputs), targets, rungs)
        weights = [] if self.encoder is None else list(self.encoder.parameters())
        rate, decay = fitting.learning_rate, fitting.weight_decay
        groups = [
            {"params": weights, "lr": rate, "weight_decay": decay},
            {"params": process.parameters(), "lr": fitting.kernel_rate},
        ]
        groups = [group for group in groups if group["params"]]
        if len(targets) < 2 or not groups:
            return losses
        optimizer = torch.optim.Adam(groups)
        average = 0.0
        for step in range(fitting.steps):
            optimizer.zero_grad()
            loss = process.loss(self.embed(inputs), rungs)
            losses.append(float(loss.detach()))
            average = 0.5 * losses[-1] + 0.5 * average if step else losses[-1]
            settled = fitting.tolerance is not None and (
                abs(average - losses[-1]) < fitting.tolerance
            )
            if settled and step >= _FIRST_STOP:
                break
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            process.condition(self.embed(inputs), targets, rungs)
        return losses

    def predict(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation at the last rung, float64 `(points,)`."""
        with torch.no_grad():
            return self.process.posterior(self.embed(inputs))

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned; not the observations."""
        found = {f"process.{name}": value for name, value in self.process.state_dict().items()}
        if self.encoder is not None:
            for name, value in self.encoder.state_dict().items():
                found[f"encoder.{name}"] = value.detach().clone()
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was learned.

        Raises:
            ArgumentError: It is the state of another kernel.
        """
        parts: dict[str, dict[str, Tensor]] = {"process": {}, "encoder": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        if set(parts) != {"process", "encoder"} or bool(parts["encoder"]) != bool(self.encoder):
            raise ArgumentError("the state is that of another kernel", where="state")
        self.process.load_state_dict(parts["process"])
        if self.encoder is not None:
            try:
                self.encoder.load_state_dict(parts["encoder"])
            except RuntimeError as error:
                raise ArgumentError("the state is that of another kernel", where="state") from error
