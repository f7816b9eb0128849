"""One student while it is trained beside others: it fails alone, and draws its own numbers."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.errors import ArgumentError, CompressionError, StorageError, TrainingError
from passes.derived_seed import derived_seed
from passes.graph import ModelGraph
from passes.inputs import Batch
from passes.methods.embedding.jobs import TrainingState
from transform.training.batch_errors import batch_errors
from transform.training.config import TrainConfig
from transform.training.engine import Engine, accelerated, training_mode
from transform.training.losses import Loss, combined, cross_entropy, distillation
from transform.training.optimizers import LearningRate, build_optimizer
from transform.training.randomness import Stream

Shapes = list[tuple[int, ...]]


class Learner:
    """A student, its optimizer, and how far it is.

    Args:
        graph: Trained in place.
        config: How.
        loss: The task's own; `None` is cross entropy.
        seed: Of its randomness.
        device: Where it is.
    """

    def __init__(
        self,
        graph: ModelGraph,
        config: TrainConfig,
        loss: Loss | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.graph = graph
        self.config = config
        self.loss = loss or cross_entropy(config.label_smoothing)
        self.seed = seed
        self.device = device
        self.epoch = 0
        self.seconds = 0.0
        self.failure: str | None = None
        self._rate = LearningRate(config)
        self._optimizer = build_optimizer(graph.runnable, config)
        self._engine: Engine | None = None
        self._stream: Stream | None = None

    def begin(self, start: TrainingState | None, epochs: int) -> None:
        """Go on where training stopped.

        Raises:
            StorageError: It does not fit this student, or lies beyond so many epochs.
        """
        if start is None:
            return
        try:
            self.graph.runnable.load_state_dict(dict(start.model))
            # Copied: the optimizer would go on in the tensors that it is given.
            self._optimizer.load_state_dict(copy.deepcopy(dict(start.optimizer)))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _misfit(f"{type(error).__name__}: {error}") from error
        if start.epochs > epochs:
            raise _misfit(f"it has {start.epochs} epochs, and {epochs} are asked for")
        self.epoch = start.epochs

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """In training mode, with the engine that runs it."""
        with (
            training_mode(self.graph, self.config),
            accelerated(self.graph.runnable, self._optimizer, self.config, self.device) as engine,
        ):
            self._engine = engine
            yield
        self._engine = None

    @property
    def engine(self) -> Engine:
        """What runs it, while it is in training."""
        if self._engine is None:
            raise RuntimeError("the student is not in training")
        return self._engine

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Whatever goes wrong is this student's failure; the time is counted."""
        began = time.perf_counter()
        try:
            yield
        except CompressionError as error:
            self._fail(error.what)
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self.seconds += time.perf_counter() - began

    def _fail(self, why: str) -> None:
        self.failure = why
        self._optimizer.zero_grad()
        self._optimizer.state.clear()

    def learn(self, batch: Batch, taught: Any, index: int, batches: int) -> None:
        """Take one batch in.

        Args:
            batch: On the device.
            taught: Outputs of the teacher, or `None`.
            index: Its number in the epoch.
            batches: Batches of the epoch.

        Raises:
            TrainingError: The loss is not finite, or the model fails.
        """
        if index == 0:
            seed = derived_seed(self.seed, "student", self.epoch)
            self._stream = Stream(seed, self.device)
        if self._stream is None:
            raise RuntimeError("an epoch begins with its first batch")
        with self._stream.drawn():
            self._rate.apply(self.engine.optimizer, self.epoch + index / batches)
            loss = self._loss(batch, taught)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} in epoch {self.epoch + 1}, batch {index + 1}"
                )
            whole = self.config.accumulate
            self.engine.backward(loss / min(whole, batches - index // whole * whole))
            if (index + 1) % whole == 0 or index + 1 == batches:
                if self.config.clip_grad is not None:
                    self.engine.clip(self.config.clip_grad)
                self.engine.optimizer.step()
                self.engine.optimizer.zero_grad()

    def _loss(self, batch: Batch, taught: Any) -> Tensor:
        how = self.config.distillation if taught is not None else None
        call = batch.call.fresh()  # a model may change its inputs in place
        with self.engine.autocast(), batch_errors(call.batch_size):
            outputs = call(self.engine.model)
            if how is None:
                return self.loss(outputs, batch.targets)
            require_shapes(shapes_of(outputs), shapes_of(taught))
            distilled = distillation(outputs, taught, how)
            if how.weight == 1:
                return distilled
            return combined(self.loss(outputs, batch.targets), distilled, how)

    def end_epoch(self) -> None:
        """Count it.

        Raises:
            TrainingError: A weight is not finite.
        """
        self.epoch += 1
        if not all(bool(torch.isfinite(p).all()) for p in self.graph.runnable.parameters()):
            raise TrainingError(f"a weight is not finite after epoch {self.epoch}")

    def state(self) -> TrainingState:
        """Where training stands, on the CPU, in memory of its own."""
        weights = dict(self.graph.runnable.state_dict())
        optimizer = self._optimizer.state_dict()
        return TrainingState(self.epoch, _on_cpu(weights), _on_cpu(optimizer))


@contextmanager
def checked_outputs(model: nn.Module, shapes: Shapes | None) -> Iterator[None]:
    """Raise on outputs that are not finite or, where shapes are given, have others.

    Args:
        model: Whose.
        shapes: Of the outputs that are wanted, without their first dimension.
    """

    def check(module: nn.Module, args: Any, outputs: Any) -> None:
        found = (t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor))
        if not all(bool(torch.isfinite(t).all()) for t in found if t.is_floating_point()):
            raise TrainingError("its outputs are not finite on the validation data")
        if shapes is not None:
            require_shapes([shape[1:] for shape in shapes_of(outputs)], shapes)

    hook = model.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def shapes_of(outputs: Any) -> Shapes:
    """Shapes of all tensors of a nested value, in order."""
    return [tuple(t.shape) for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def require_shapes(found: Shapes, wanted: Shapes) -> None:
    """Raise unless a student's outputs have the shapes of the teacher's."""
    if found != wanted:
        raise TrainingError(f"its outputs have the shapes {found}, the teacher's have {wanted}")


def _on_cpu(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach().cpu().clone(), value)


def _misfit(why: str) -> StorageError:
    return StorageError(
        f"the state where training is to go on does not fit the candidate: {why}",
        where="start",
        remedy="Give a state of the same candidate, from an earlier rung.",
    )


def no_targets(where: str) -> ArgumentError:
    """What is wrong with batches without targets."""
    return ArgumentError(
        "the batches have no targets that the outputs can be compared with",
        where=where,
        remedy="Yield (inputs, targets); pass metric= where targets are no classes.",
    )
