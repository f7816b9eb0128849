"""The training loop under a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.errors import (
    ArgumentError,
    PreconditionError,
    StorageError,
    TrainingError,
)
from passes.graph import ModelGraph
from passes.inputs import Batch, as_batch
from passes.methods.base import Method
from passes.methods.phases import Phase, PhaseEnd
from transform.evaluate import Metric, evaluate, moved
from transform.training.batch_errors import batch_errors
from transform.training.checkpoint import Checkpoints
from transform.training.config import TrainConfig
from transform.training.engine import Engine, accelerated, trained_alone, training_mode
from transform.training.losses import Loss, combined, cross_entropy, distillation
from transform.training.optimizers import LearningRate, build_optimizer
from transform.training.randomness import loader_generators, random_state, set_random_state
from transform.training.steps import batches_per_epoch


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
    ended: list[PhaseEnd] = field(default_factory=list)
    _began: int = 0
    _epochs: int = 0

    def fit(self) -> list[dict[str, Any]]:
        """Train all phases of the method; returns the history, one row an epoch.

        Raises:
            TrainingError: The loss is not finite, or the data has no targets.
        """
        if self.config.schedule == "plateau" and self.valid is None:
            raise ArgumentError(
                "the schedule 'plateau' follows a validation metric, and there is no valid data",
                where="TrainConfig.schedule",
                remedy="Pass valid=, or another schedule.",
            )
        resumed = self._resume()
        with training_mode(self.graph, self.config):
            while self.config.epochs and (phase := self.method.next_phase(self.ended)):
                self._phase(phase, resumed)
                resumed = None
        if self.best.state is not None and (self.config.select == "best" or len(self.ended) > 1):
            self.graph.runnable.load_state_dict(self.best.state)
        return self.history

    def _phase(self, phase: Phase, resumed: dict[str, Any] | None) -> None:
        """Train one phase, from its start or from a checkpoint within it."""
        config = replace(self.config, **phase.train)
        with trained_alone(self.graph.runnable, phase.tensors):
            optimizer = build_optimizer(self.graph.module, config, phase.tensors)
            rate = LearningRate(config)
            first = 0
            if resumed is not None and resumed["optimizer"] is not None:
                with _checkpoint_errors():
                    optimizer.load_state_dict(resumed["optimizer"])
                    rate.load_state_dict(resumed["rate"])
                    first = int(resumed["epoch"])
            else:
                self._began = self.step
                self.method.on_phase_start(phase)
            score = None
            with accelerated(self.graph.runnable, optimizer, config, self.device) as engine:
                for epoch in range(first, config.epochs):
                    self._epoch(engine, config, epoch, rate)
                    self._check_finite(phase)
                    self.method.on_epoch(epoch, optimizer)
                    score = self._after_epoch(phase, config, epoch, rate)
                    if epoch + 1 < config.epochs and (epoch + 1) % config.save_every == 0:
                        self._save(epoch + 1, optimizer, rate)
            # Outside: what a method observes here must not run in mixed precision.
            self.ended.append(PhaseEnd(phase.name, self._reached(phase, config, score)))
            self.method.on_phase_end(phase)
            self._save(0, None, rate)

    def _check_finite(self, phase: Phase) -> None:
        tensors = (*self.graph.runnable.parameters(), *(phase.tensors or ()))
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise self._diverged()

    def _epoch(self, engine: Engine, config: TrainConfig, epoch: int, rate: LearningRate) -> None:
        batches, number = batches_per_epoch(self.data, config), self._epochs + 1
        total, count = 0.0, 0
        for index, item in enumerate(islice(iter(self.data), batches)):
            last = index + 1 == batches
            now = rate.apply(engine.optimizer, epoch + index / batches)
            loss = self._loss(engine, as_batch(self.graph.module, item))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} in epoch {number}, batch {index + 1}",
                    where="train",
                    remedy="Lower lr, set clip_grad, or check the data.",
                )
            group = min(config.accumulate, batches - index // config.accumulate * config.accumulate)
            engine.backward(loss / group)
            total, count = total + value, count + 1
            if (index + 1) % config.accumulate == 0 or last:
                self._optimize(engine, config)
            if config.log_every and (index + 1) % config.log_every == 0:
                self._note({"epoch": number, "step": self.step, "lr": now, "loss": value})
        if not count:
            raise ArgumentError("no batches", where="data", remedy="Pass a loader or a list.")
        self._note({"epoch": number, "step": self.step, "lr": now, "loss": total / count})

    def _loss(self, engine: Engine, batch: Batch) -> Tensor:
        if batch.targets is None:
            raise TrainingError(
                "the batches have no targets",
                where="data",
                remedy="Yield (inputs, targets), or leave train= out.",
            )
        call, targets = batch.call.to(self.device), moved(batch.targets, self.device)
        loss = self.loss or cross_entropy(self.config.label_smoothing)
        with engine.autocast(), batch_errors(batch.call.batch_size):
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

    def _optimize(self, engine: Engine, config: TrainConfig) -> None:
        self.method.on_gradients(engine.optimizer)
        if config.clip_grad is not None:
            engine.clip(config.clip_grad)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        self.step += 1
        try:
            self.method.on_step(self.step - self._began, engine.optimizer)
        except PreconditionError as error:
            if all(bool(torch.isfinite(p).all()) for p in self.graph.runnable.parameters()):
                raise
            raise self._diverged() from error
        for row in self.method.events():
            self._note({"epoch": self._epochs + 1, "step": self.step, **row})

    def _diverged(self) -> TrainingError:
        return TrainingError(
            f"a weight is not finite after step {self.step}",
            where="train",
            remedy="Lower lr, set clip_grad, or check the data.",
        )

    def _after_epoch(
        self, phase: Phase, config: TrainConfig, epoch: int, rate: LearningRate
    ) -> float | None:
        """Evaluate, compare and report; returns the validation metric, if it was measured."""
        self._epochs += 1
        last = epoch + 1 == config.epochs
        row = self.history[-1]
        row |= self.method.report()
        if phase != Phase():
            for noted in self.history:
                if noted["epoch"] == self._epochs:
                    noted["phase"] = phase.name
        score = None
        if self.valid is not None and ((epoch + 1) % config.eval_every == 0 or last):
            score = evaluate(self.graph.runnable, self.valid, self.device, self.metric)
            row["metric"] = score
            if score is not None:
                rate.observe(score)
            if phase.candidate:
                row["within"] = self.within()
                self._compare(score, within=row["within"], last=last)
        self.report(row)
        return score

    def _compare(self, score: float | None, *, within: bool, last: bool) -> None:
        """Keep the model if it is the best so far among those that can be the result."""
        if self.config.select == "last" and not last:
            return
        if score is not None and within and score > self.best.metric:
            state = {k: v.clone() for k, v in self.graph.runnable.state_dict().items()}
            self.best = Best(score, self._epochs, state)

    def _reached(self, phase: Phase, config: TrainConfig, score: float | None) -> float | None:
        """The metric of what a phase would have as the result."""
        if not phase.candidate or score is None:
            return None
        if self.config.select == "last" or self.best.epoch <= self._epochs - config.epochs:
            return score
        return self.best.metric

    def _note(self, row: dict[str, Any]) -> None:
        self.history.append(row)

    def _save(
        self, epoch: int, optimizer: torch.optim.Optimizer | None, rate: LearningRate
    ) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(self._epochs, self._state(epoch, optimizer, rate))

    def _state(
        self, epoch: int, optimizer: torch.optim.Optimizer | None, rate: LearningRate
    ) -> dict[str, Any]:
        """What goes on after a kill; without an optimizer, a new phase begins."""
        loader = getattr(self.data, "state_dict", None)
        return {
            "epoch": epoch,
            "epochs": self._epochs,
            "step": self.step,
            "began": self._began,
            "ended": [[end.name, end.metric] for end in self.ended],
            "model": dict(self.graph.runnable.state_dict()),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "rate": rate.state_dict(),
            "method": self.method.state_dict(),
            "random": random_state(self.device),
            "generators": [generator.get_state() for generator in loader_generators(self.data)],
            "loader": loader() if callable(loader) else None,
            "best": [self.best.metric, self.best.epoch, self.best.state],
            "history": self.history,
        }

    def _resume(self) -> dict[str, Any] | None:
        """Load the last checkpoint, if there is one; the phase takes the rest from it."""
        state = self.checkpoints.load() if self.checkpoints is not None else None
        if state is None:
            return None
        with _checkpoint_errors():
            self.method.restore_shapes(state["method"])
            self.graph.runnable.load_state_dict(state["model"])
            self.method.load_state_dict(state["method"])
            set_random_state(state["random"], self.device)
            for generator, saved in zip(
                loader_generators(self.data), state["generators"], strict=True
            ):
                generator.set_state(saved)
            if state["loader"] is not None:
                self.data.load_state_dict(state["loader"])  # type: ignore[attr-defined]
            self.best = Best(*state["best"])
            self.ended = [PhaseEnd(*end) for end in state["ended"]]
            self.history, self.step = list(state["history"]), int(state["step"])
            self._began, self._epochs = int(state["began"]), int(state["epochs"])
        return state


@contextmanager
def _checkpoint_errors() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise StorageError(
            f"the checkpoint does not fit this run: {type(error).__name__}: {error}",
            where="out",
            remedy="Remove the folder 'checkpoints' in it; the run starts anew.",
        ) from error


def frozen_teacher(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that receives no gradients."""
    teacher = copy.deepcopy(model).eval()
    return teacher.requires_grad_(False)
