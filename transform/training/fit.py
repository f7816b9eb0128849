"""Training as a stage of `compress`: from a prepared graph to a history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from energy_model.errors import ArgumentError
from passes.graph import ModelGraph
from passes.methods.base import Method
from transform.evaluate import Metric
from transform.fingerprint import state_digest
from transform.storage import CHECKPOINTS
from transform.training.checkpoint import Checkpoints
from transform.training.config import TrainConfig
from transform.training.loop import Trainer, frozen_teacher
from transform.training.losses import Loss
from transform.training.randomness import seeded
from transform.training.steps import total_steps


@dataclass(frozen=True, slots=True)
class Training:
    """How the model is trained.

    Attributes:
        config: The configuration.
        data: Labelled batches.
        loss: The user's loss, or `None`.
        metric: The user's metric, or `None`.
        teacher: `"original"` or a model.
        folder: Output folder, for checkpoints; or `None`.
        resume: Whether to continue from a checkpoint.
    """

    config: TrainConfig
    data: Iterable[Any]
    loss: Loss | None
    metric: Metric | None
    teacher: str | nn.Module
    folder: Path | None
    resume: bool

    @property
    def identity(self) -> list[str]:
        """What makes two trainings the same: configuration and teacher."""
        optimizer = getattr(self.config.optimizer, "__qualname__", self.config.optimizer)
        teacher = "original"
        if isinstance(self.teacher, nn.Module):
            teacher = state_digest(self.teacher)
        return [repr(replace(self.config, optimizer="sgd")), str(optimizer), teacher]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(self.data, self.config)


def fit(
    training: Training,
    original: nn.Module,
    graph: ModelGraph,
    method: Method,
    valid: Iterable[Any] | None,
    seed: int,
    run: str,
    within: Callable[[], bool],
    report: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Train a prepared graph in place.

    Args:
        training: How.
        original: The caller's model; the default teacher.
        graph: The prepared graph.
        method: The method whose hooks are called.
        valid: Labelled batches for selection.
        seed: Seed of all randomness.
        run: Identity of the run, for its checkpoints.
        within: Whether the model as it stands is within budget.
        report: Called with every row of the history.
    """
    device = next(graph.module.parameters()).device
    teacher = None
    if training.config.distillation is not None:
        teacher = frozen_teacher(_model_of(training.teacher, original)).to(device)
    checkpoints = None
    if training.folder is not None:
        checkpoints = Checkpoints(training.folder / CHECKPOINTS, run)
        if not training.resume:
            checkpoints.drop()
    trainer = Trainer(
        graph,
        method,
        training.config,
        training.data,
        valid,
        device,
        training.loss,
        training.metric,
        teacher,
        within,
        checkpoints,
        report,
    )
    own = training.config.seed
    with seeded(seed if own is None else own, device):
        return trainer.fit()


def _model_of(teacher: str | nn.Module, original: nn.Module) -> nn.Module:
    return teacher if isinstance(teacher, nn.Module) else original


def require_teacher(teacher: Any) -> None:
    """Raise unless the argument names the original or is a model."""
    if not isinstance(teacher, nn.Module) and teacher != "original":
        raise ArgumentError(
            f"{teacher!r} is no teacher", where="teacher", remedy="Pass 'original' or a model."
        )


def run_identity(*parts: Any) -> str:
    """A digest of everything that makes two runs the same run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()
