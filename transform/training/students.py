"""Training several students together: one pass over the data and one teacher serve them all.

Every student is trained as if it were alone, bit for bit on the CPU: order and augmentation of the
data depend on the seed and the epoch, and each student draws (dropout) from a stream of its own. So
it does not matter who trains beside it, nor where it is stopped and goes on. One that fails is
noted and left out; the others do not feel it.

The loss is that of all training: see `transform.training.losses`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from energy_model.errors import ArgumentError
from passes.derived_seed import derived_seed
from passes.graph import ModelGraph
from passes.inputs import Batch, Call, as_batch
from passes.isolation import evaluating
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.jobs import Outcome, TrainingState
from passes.reconstruct.batch_norm import NORMS, reestimate_batch_norms
from transform.evaluate import Metric, evaluate, moved
from transform.training.batch_errors import batch_errors
from transform.training.config import Distill, TrainConfig
from transform.training.epoch_data import EpochData
from transform.training.learner import Learner, Shapes, checked_outputs, no_targets, shapes_of
from transform.training.loop import frozen_teacher
from transform.training.losses import Loss
from transform.training.randomness import Stream
from transform.training.steps import batches_per_epoch


def search_training(search: EmbeddingSearch) -> TrainConfig:
    """How candidates of a search are trained: at a constant learning rate, with distillation."""
    how = None
    if search.distill is not None:
        how = Distill(search.distill_weight, search.distill, search.temperature)
    return TrainConfig(
        epochs=search.fidelity[-1],
        optimizer=search.optimizer,
        lr=search.lr,
        weight_decay=search.weight_decay,
        schedule="constant",
        distill=how,
    )


@dataclass(frozen=True)
class Lesson:
    """What all students of a search share.

    Attributes:
        teacher: Distilled if `config.distill` asks for it, and the model of what outputs look like.
            It is copied, and never changed. `None` trains from the labels alone.
        data: Labelled batches, read once an epoch; without labels if distillation is all.
        valid: Labelled batches on which students are scored.
        config: How to train. `epochs` is the length of the schedule, not where a student stops.
            `eval_every`, `save_every`, `log_every`, `select` and `seed` play no part.
        seed: Of the order and augmentation of the data.
        loss: Function of (outputs, targets); cross entropy by default.
        metric: See `transform.evaluate.evaluate`; top-1 accuracy by default.
        bn_batches: Training batches from which the statistics of batch norms are estimated anew
            before a student is scored; 0 leaves them.
        chance: Accuracy of students that fail; see `chance_level`.

    Raises:
        ArgumentError: The schedule needs a metric, or there is no teacher to distil.
    """

    teacher: nn.Module | None
    data: Iterable[Any]
    valid: Iterable[Any]
    config: TrainConfig
    seed: int = 0
    loss: Loss | None = None
    metric: Metric | None = None
    bn_batches: int = 16
    chance: float = 0.0

    def __post_init__(self) -> None:
        if self.config.schedule == "plateau":
            raise ArgumentError(
                "the schedule 'plateau' follows a metric that is not measured between rungs",
                where="TrainConfig.schedule",
                remedy="Take 'constant', or another schedule.",
            )
        if self.config.distillation is not None and self.teacher is None:
            raise ArgumentError(
                "there is no teacher to distil",
                where="TrainConfig.distill",
                remedy="Pass a teacher, or distill=None.",
            )

    @property
    def needs_labels(self) -> bool:
        """Whether the loss compares outputs with targets."""
        return self.config.distillation is None or self.config.distillation.weight < 1


def train_students(
    lesson: Lesson,
    students: Sequence[ModelGraph],
    epochs: int,
    *,
    seeds: Sequence[int] | None = None,
    starts: Sequence[TrainingState | None] | None = None,
    device: torch.device | None = None,
) -> list[Outcome]:
    """Train students in place, in one pass over the data for each epoch, and score them.

    A student that goes on from a later epoch joins in then; one that has had them all is only
    scored. Afterwards the graphs are as they were scored, with batch norms estimated anew. The
    states of the outcomes have the statistics that training left, so that going on from there
    equals never to have stopped.

    Args:
        lesson: What they share.
        students: Traced models that share no memory with one another.
        epochs: After how many they stop, counted from the first of each; 0 only scores.
        seeds: Of the randomness of each; the lesson's by default.
        starts: Where each goes on; they are copied. `None` begins with the weights as they are.
        device: Where to work; `None` means where the first student is.

    Returns:
        Outcomes in the order of the students.

    Raises:
        ArgumentError: The data has no batches or no targets.
        StorageError: A start does not fit its student, or lies beyond `epochs`.
        TrainingError: The loss fails for the teacher as well.
    """
    if not students:
        return []
    place = device or next(students[0].module.parameters()).device
    own = [lesson.seed] * len(students) if seeds is None else seeds
    given = [None] * len(students) if starts is None else starts
    classroom = _Classroom(lesson, students[0].module, place)
    learners = []
    for graph, seed, start in zip(students, own, given, strict=True):
        _move(graph, place)
        learner = Learner(graph, lesson.config, lesson.loss, seed, place)
        learner.begin(start, epochs)
        learners.append(learner)
    with ExitStack() as stack:
        for learner in learners:
            stack.enter_context(learner.in_training())
        for epoch in range(min(learner.epoch for learner in learners), epochs):
            classroom.teach(epoch, [s for s in learners if s.epoch == epoch and not s.failure])
    return classroom.scored(learners)


def chance_level(
    model: nn.Module, data: Iterable[Any], device: torch.device, metric: Metric | None = None
) -> float:
    """The accuracy of guessing: one over the number of classes.

    Args:
        model: Returns, or returns first, a tensor `(N, classes)`.
        data: Batches, of which one is read.
        device: Where the model is.
        metric: Whose level is asked for; that of a metric of the user's is not known, and taken to
            be 0.

    Raises:
        ArgumentError: There is no batch.
    """
    if metric is not None:
        return 0.0
    shapes = _output_shapes(model, data, device)
    return 1 / shapes[0][0] if shapes and len(shapes[0]) == 1 else 0.0


class _Classroom:
    """The data and the teacher, for all students at once."""

    def __init__(self, lesson: Lesson, like: nn.Module, device: torch.device) -> None:
        self.lesson = lesson
        self.device = device
        self.data = EpochData(lesson.data, lesson.seed, device)
        self.teacher = None if lesson.teacher is None else frozen_teacher(lesson.teacher).to(device)
        self.like = like if self.teacher is None else self.teacher

    def teach(self, epoch: int, learners: Sequence[Learner]) -> None:
        """One epoch."""
        if not learners:
            return
        count = batches_per_epoch(self.lesson.data, self.lesson.config)
        stream = Stream(derived_seed(self.lesson.seed, "teacher", epoch), self.device)
        index = -1
        with closing(self.data.epoch(epoch)) as items:
            for index, item in enumerate(islice(items, count)):
                batch = self._read(item)
                with stream.drawn():
                    taught = self._taught(batch, learners[0], first=index == 0)
                for learner in learners:
                    if learner.failure is None:
                        with learner.noted():
                            learner.learn(batch, taught, index, count)
        if index < 0:
            raise ArgumentError("no batches", where="data", remedy="Pass a loader or a list.")
        for learner in learners:
            if learner.failure is None:
                with learner.noted():
                    learner.end_epoch()

    def _read(self, item: Any) -> Batch:
        batch = as_batch(self.like, item)
        if batch.targets is None and self.lesson.needs_labels:
            raise no_targets("data")
        return Batch(batch.call.to(self.device), moved(batch.targets, self.device))

    def _taught(self, batch: Batch, learner: Learner, *, first: bool) -> Any:
        """What the teacher says, in the precision of the students."""
        if self.teacher is None or self.lesson.config.distillation is None:
            return None
        # What fails here would fail for every student, and is no fault of theirs.
        with torch.no_grad(), learner.engine.autocast(), batch_errors(batch.call.batch_size):
            taught = batch.call.fresh()(self.teacher)
            if first and self.lesson.needs_labels:
                learner.loss(taught, batch.targets)
        return taught

    def scored(self, learners: Sequence[Learner]) -> list[Outcome]:
        """Outcomes of all, with batch norms estimated anew."""
        calls = self._norm_calls([s.graph.module for s in learners if s.failure is None])
        shapes = None
        if self.teacher is not None:
            shapes = _output_shapes(self.teacher, self.lesson.valid, self.device)
        return [self._outcome(learner, calls, shapes) for learner in learners]

    def _norm_calls(self, models: Sequence[nn.Module]) -> list[Call]:
        normed = any(isinstance(part, NORMS) for model in models for part in model.modules())
        if not normed or not self.lesson.bn_batches:
            return []
        with closing(self.data.epoch(0)) as items:
            some = islice(items, self.lesson.bn_batches)
            return [as_batch(self.like, item).call.to(self.device) for item in some]

    def _outcome(self, learner: Learner, calls: list[Call], shapes: Shapes | None) -> Outcome:
        accuracy = None
        if learner.failure is None:
            state = learner.state()
            with learner.noted():
                accuracy = self._score(learner.graph, calls, shapes)
        if learner.failure is not None:
            return Outcome(self.lesson.chance, learner.seconds, None, learner.failure)
        if accuracy is None:
            raise no_targets("valid")
        return Outcome(accuracy, learner.seconds, state)

    def _score(self, graph: ModelGraph, calls: list[Call], shapes: Shapes | None) -> float | None:
        if calls:
            reestimate_batch_norms(graph, lambda count: iter(calls[:count]), len(calls))
        stream = Stream(derived_seed(self.lesson.seed, "valid"), self.device)
        with stream.drawn(), checked_outputs(graph.runnable, shapes):
            return evaluate(graph.runnable, self.lesson.valid, self.device, self.lesson.metric)


def _output_shapes(model: nn.Module, data: Iterable[Any], device: torch.device) -> Shapes:
    """Shapes of a model's outputs without their first dimension, from one batch."""
    with evaluating(model):
        for item in data:
            call = as_batch(model, item).call.to(device)
            with batch_errors(call.batch_size):
                return [shape[1:] for shape in shapes_of(call.fresh()(model))]
    raise ArgumentError("no batches", where="valid", remedy="Pass a loader or a list.")


def _move(graph: ModelGraph, device: torch.device) -> None:
    """Both the module and the graph: what stands at their roots is not shared."""
    for root in (graph.module, graph.graph_module):
        if root is not None and any(t.device != device for t in root.parameters()):
            root.to(device)
