"""Stretches of training: what is trained in each, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training of `TrainConfig.epochs` epochs (or its own), with its own optimizer.

    Attributes:
        name: For the history.
        tensors: What is trained; `None` is every parameter of the model.
        train: Fields of the training configuration that differ in it.
        candidate: Its epochs are finished models that may be selected as the result.
    """

    name: str = "weights"
    tensors: tuple[Tensor, ...] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    candidate: bool = True


@dataclass(frozen=True, slots=True)
class PhaseEnd:
    """How a phase ended.

    Attributes:
        name: Its name.
        metric: Validation metric of what it would have as the result; `None` if not measured.
    """

    name: str
    metric: float | None = None
