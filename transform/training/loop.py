"""The training loop under a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.errors import (
    ArgumentError,
    CompressionError,
    PreconditionError,
    StorageError,
    TrainingError,
)
from passes.graph import ModelGraph
from passes.inputs import Batch, as_batch
from passes.methods.base import Method
from transform.evaluate import Metric, evaluate, moved
from transform.training.checkpoint import Checkpoints
from transform.training.config import TrainConfig
from transform.training.engine import Engine, accelerated, training_mode
from transform.training.losses import Loss, combined, cross_entropy, distillation
from transform.training.optimizers import LearningRate, build_optimizer
from transform.training.randomness import random_state, set_random_state


@dataclass
class Best:
    """The best epoch so far among those within budget."""

    metric: float = -math.inf
    epoch: int = 0
    state: dict[str, Tensor] | None = None


@dataclass
class Trainer:
    """Trains a prepared graph; the method's hooks do the rest.

    Attributes:
        graph: The graph; its module is trained in place.
        method: A prepared method.
        config: How to train.
        data: Labelled batches, read once an epoch.
        valid: Labelled batches for selection, or `None`.
        device: Where the model is.
        loss: Function of (outputs, targets); cross entropy by default.
        metric: See `transform.evaluate.evaluate`; higher is better.
        teacher: The frozen original, for distillation.
        within: Whether the model as it stands is within budget.
        checkpoints: Where to save, or `None`.
        report: Called with every row of the history.
    """

    graph: ModelGraph
    method: Method
    config: TrainConfig
    data: Iterable[Any]
    valid: Iterable[Any] | None
    device: torch.device
    loss: Loss | None = None
    metric: Metric | None = None
    teacher: nn.Module | None = None
    within: Callable[[], bool] = lambda: True
    checkpoints: Checkpoints | None = None
    report: Callable[[dict[str, Any]], None] = lambda row: None
    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    best: Best = field(default_factory=Best)

    def fit(self) -> list[dict[str, Any]]:
        """Train for all epochs; returns the history, one row an epoch.

        Raises:
            TrainingError: The loss is not finite, or the data has no targets.
        """
        if self.config.schedule == "plateau" and self.valid is None:
            raise ArgumentError(
                "the schedule 'plateau' follows a validation metric, and there is no valid data",
                where="TrainConfig.schedule",
                remedy="Pass valid=, or another schedule.",
            )
        optimizer = build_optimizer(self.graph.module, self.config)
        rate = LearningRate(self.config)
        first = self._resume(optimizer, rate)
        with (
            accelerated(self.graph.runnable, optimizer, self.config, self.device) as engine,
            training_mode(self.graph, self.config),
        ):
            for epoch in range(first, self.config.epochs):
                self._epoch(engine, epoch, rate)
                if not all(bool(torch.isfinite(p).all()) for p in self.graph.module.parameters()):
                    raise self._diverged()
                self.method.on_epoch(epoch, optimizer)
                self._after_epoch(epoch, optimizer, rate)
        if self.config.select == "best" and self.best.state is not None:
            self.graph.module.load_state_dict(self.best.state)
        return self.history

    def _epoch(self, engine: Engine, epoch: int, rate: LearningRate) -> None:
        config, batches = self.config, batches_per_epoch(self.data, self.config)
        total, count = 0.0, 0
        for index, item in enumerate(islice(iter(self.data), batches)):
            last = index + 1 == batches
            now = rate.apply(engine.optimizer, epoch + index / batches)
            loss = self._loss(engine, as_batch(self.graph.module, item))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} in epoch {epoch + 1}, batch {index + 1}",
                    where="train",
                    remedy="Lower lr, set clip_grad, or check the data.",
                )
            group = min(config.accumulate, batches - index // config.accumulate * config.accumulate)
            engine.backward(loss / group)
            total, count = total + value, count + 1
            if (index + 1) % config.accumulate == 0 or last:
                self._optimize(engine)
            if config.log_every and (index + 1) % config.log_every == 0:
                self._note({"epoch": epoch + 1, "step": self.step, "lr": now, "loss": value})
        if not count:
            raise ArgumentError("no batches", where="data", remedy="Pass a loader or a list.")
        self._note({"epoch": epoch + 1, "step": self.step, "lr": now, "loss": total / count})

    def _loss(self, engine: Engine, batch: Batch) -> Tensor:
        if batch.targets is None:
            raise TrainingError(
                "the batches have no targets",
                where="data",
                remedy="Yield (inputs, targets), or leave train= out.",
            )
        call, targets = batch.call.to(self.device), moved(batch.targets, self.device)
        loss = self.loss or cross_entropy(self.config.label_smoothing)
        with engine.autocast(), _typed_errors():
            outputs = call(engine.model)
            distilled = None
            if self.config.distillation is not None and self.teacher is not None:
                with torch.no_grad():
                    taught = call(self.teacher)
                distilled = distillation(outputs, taught, self.config.distillation)
            value = loss(outputs, targets)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise TrainingError(
                    "the loss is no single tensor with a gradient",
                    where="loss",
                    remedy="Return a scalar tensor computed from the outputs.",
                )
            task = combined(value, distilled, self.config.distillation)
            return self.method.on_loss(task, batch, outputs)

    def _optimize(self, engine: Engine) -> None:
        self.method.on_gradients(engine.optimizer)
        if self.config.clip_grad is not None:
            engine.clip(self.config.clip_grad)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        self.step += 1
        try:
            self.method.on_step(self.step, engine.optimizer)
        except PreconditionError as error:
            raise self._diverged() from error

    def _diverged(self) -> TrainingError:
        return TrainingError(
            f"a weight is not finite after step {self.step}",
            where="train",
            remedy="Lower lr, set clip_grad, or check the data.",
        )

    def _after_epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, rate: LearningRate
    ) -> None:
        config, number = self.config, epoch + 1
        last = number == config.epochs
        row = self.history[-1]
        if self.valid is not None and (number % config.eval_every == 0 or last):
            score = evaluate(self.graph.runnable, self.valid, self.device, self.metric)
            row["metric"], row["within"] = score, self.within()
            if score is not None:
                rate.observe(score)
                if row["within"] and score > self.best.metric:
                    state = {k: v.clone() for k, v in self.graph.module.state_dict().items()}
                    self.best = Best(score, number, state)
        self.report(row)
        if self.checkpoints is not None and (number % config.save_every == 0 or last):
            self.checkpoints.save(number, self._state(number, optimizer, rate))

    def _note(self, row: dict[str, Any]) -> None:
        self.history.append(row)

    def _state(
        self, epoch: int, optimizer: torch.optim.Optimizer, rate: LearningRate
    ) -> dict[str, Any]:
        loader = getattr(self.data, "state_dict", None)
        return {
            "epoch": epoch,
            "step": self.step,
            "model": dict(self.graph.module.state_dict()),
            "optimizer": optimizer.state_dict(),
            "rate": rate.state_dict(),
            "method": self.method.state_dict(),
            "random": random_state(self.device),
            "generators": [generator.get_state() for generator in _generators(self.data)],
            "loader": loader() if callable(loader) else None,
            "best": [self.best.metric, self.best.epoch, self.best.state],
            "history": self.history,
        }

    def _resume(self, optimizer: torch.optim.Optimizer, rate: LearningRate) -> int:
        """Load the last checkpoint, if there is one; returns the first epoch to run."""
        state = self.checkpoints.load() if self.checkpoints is not None else None
        if state is None:
            return 0
        try:
            return self._restore(state, optimizer, rate)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise StorageError(
                f"the checkpoint does not fit this run: {type(error).__name__}: {error}",
                where="out",
                remedy="Remove the folder 'checkpoints' in it; the run starts anew.",
            ) from error

    def _restore(
        self, state: dict[str, Any], optimizer: torch.optim.Optimizer, rate: LearningRate
    ) -> int:
        self.graph.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rate.load_state_dict(state["rate"])
        self.method.load_state_dict(state["method"])
        set_random_state(state["random"], self.device)
        for generator, saved in zip(_generators(self.data), state["generators"], strict=True):
            generator.set_state(saved)
        if state["loader"] is not None:
            self.data.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        self.best = Best(*state["best"])
        self.history, self.step = list(state["history"]), int(state["step"])
        return int(state["epoch"])


def _generators(data: Iterable[Any]) -> list[torch.Generator]:
    """Generators that a data loader owns: its own, and that of its sampler."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Name the arguments when the model or the loss fails on a batch."""
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the model or the loss fails on a batch: {type(error).__name__}: {error}",
            where="data",
            remedy="Its batches must be such as the model takes, with targets for the loss.",
        ) from error


def length_of(data: Any) -> int | None:
    """Number of batches; `None` when the data does not say (a loader of a stream raises)."""
    try:
        return len(data)
    except TypeError:
        return None


def batches_per_epoch(data: Iterable[Any], config: TrainConfig) -> int:
    """Batches of one epoch.

    Raises:
        ArgumentError: The data does not say how many it has.
    """
    size = length_of(data)
    if size is None and config.batches_per_epoch is None:
        raise ArgumentError(
            f"{type(data).__name__} has no length, so the schedules cannot be laid out",
            where="data",
            remedy="Pass a loader or a list, or set TrainConfig.batches_per_epoch.",
        )
    if isinstance(data, Iterator):
        raise ArgumentError(
            "an iterator can be read only once",
            where="data",
            remedy="Pass a loader or a list: training reads the data once an epoch.",
        )
    wanted = config.batches_per_epoch or size or 0
    return wanted if size is None else min(wanted, size)


def total_steps(data: Iterable[Any], config: TrainConfig) -> int:
    """Optimizer steps of the whole run."""
    if not config.epochs:
        return 0
    return config.epochs * math.ceil(batches_per_epoch(data, config) / config.accumulate)


def frozen_teacher(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that receives no gradients."""
    teacher = copy.deepcopy(model).eval()
    return teacher.requires_grad_(False)
