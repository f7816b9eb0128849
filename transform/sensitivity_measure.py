"""Measure a model again and again on the same batches, one layer pruned at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.errors import ArgumentError, CompressionError
from passes.inputs import Batch, as_batch
from passes.isolation import evaluating, untouched
from passes.projection.magnitudes import Histogram, top_mask
from transform.evaluate import Accumulator, Metric, moved
from transform.sensitivity_table import TOP1
from transform.training.losses import Loss, cross_entropy, logits_of

OUTPUT_CHANGE = "relative output change"


class Score(NamedTuple):
    """What one measurement found.

    Attributes:
        loss: Mean over samples; of unlabelled data the relative output change.
        metric: Mean over samples; `None` where none applies.
    """

    loss: float
    metric: float | None


@contextmanager
def zeroed(weight: Tensor, count: int, counts: Histogram | None = None) -> Iterator[int]:
    """Zero the smallest magnitudes of a weight while the block runs.

    The weight is restored bit for bit, also on an error.

    Args:
        weight: Tensor of any shape; written in place.
        count: How many elements to zero, 0 to all, those that are zero already included; of equal
            magnitudes the first stay.
        counts: The weight's histogram, if it is at hand.

    Yields:
        How many of them were not zero before.
    """
    drop = (weight != 0) & ~top_mask(weight, weight.numel() - count, counts)
    saved = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.masked_fill_(drop, 0.0)
        yield int(drop.sum())
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def read_batches(model: nn.Module, data: Any, limit: int | None) -> tuple[Batch, ...]:
    """The first batches of the data, all of them without a limit; the data is read once.

    Args:
        model: The model that takes them.
        data: See `transform.compress`.
        limit: Number of batches.

    Raises:
        ArgumentError: There is no data, it is no iterable of batches, it is empty, only some
            batches have targets, or the limit is no count.
    """
    count = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    if limit is not None and not count:
        raise ArgumentError(
            f"{limit!r} is no number of batches", where="batches", remedy="Pass an int from 1."
        )
    # Iterating over these would give rows or keys, not batches.
    alone = isinstance(data, Tensor | Mapping | str)
    if alone or not isinstance(data, Iterable):
        what = "there is no data to measure the loss on"
        raise ArgumentError(
            what if data is None else f"{type(data).__name__} is no iterable of batches",
            where="data",
            remedy="Pass a DataLoader, or a list of batches: [(inputs, targets)].",
        )
    found = tuple(as_batch(model, item) for item in islice(iter(data), limit))
    if not found:
        raise ArgumentError(
            "no batches", where="data", remedy="Pass a list or a loader, not a spent generator."
        )
    if len({batch.targets is None for batch in found}) > 1:
        raise ArgumentError(
            "some batches have targets, others have none",
            where="data",
            remedy="Give targets to all batches, or to none.",
        )
    return found


class Meter:
    """Loss and metric of a model on fixed batches, each time from the same random state.

    Without targets the loss is how far the outputs f' have moved from those at the start, f:
    `sum ||f'(x) - f(x)||^2 / sum ||f(x)||^2` over all batches and floating tensors.

    Args:
        model: The model, as it is at the start.
        batches: What it is measured on.
        device: Where the model is.
        loss: Function of (outputs, targets), the mean of a batch; cross entropy by default.
        metric: As in `transform.evaluate.evaluate`; top-1 by default.

    Raises:
        ArgumentError: Loss or metric do not fit the batches, or the outputs are all zero.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        device: torch.device,
        loss: Loss | None = None,
        metric: Metric | None = None,
    ) -> None:
        self.model, self.batches, self.device = model, tuple(batches), device
        self.labelled = batches[0].targets is not None
        _require_functions(loss, metric, batches[0].targets)
        self.loss, self.metric = loss or cross_entropy(0.0), metric
        self.loss_name = _name(loss, "cross entropy") if self.labelled else OUTPUT_CHANGE
        self.metric_name = _name(metric, TOP1)
        self.samples = sum(_size(batch) for batch in batches)
        self._reference: list[list[Tensor]] = []
        self._norm = 0.0
        if not self.labelled:
            with self._running(""):
                self._reference = [_kept(self._run(batch)) for batch in self.batches]
            self._norm = sum(_square(t) for outputs in self._reference for t in outputs)
            _require_norm(self._norm)

    def measure(self, layer: str = "") -> Score:
        """Loss and metric of the model as it is now.

        Args:
            layer: The layer that is changed, for the errors.

        Raises:
            ArgumentError: The model, loss or metric fails, or gives a number that is not finite.
        """
        with self._running(layer):
            score = self._task() if self.labelled else Score(self._output_change(layer), None)
        for name, value in zip(("loss", "metric"), score, strict=True):
            if value is not None and not math.isfinite(value):
                why = f" once the smallest weights of {layer!r} are zeroed" if layer else ""
                raise ArgumentError(
                    f"the {name} is {value}{why}",
                    where=name,
                    remedy=f"Leave the layer out: layers={{{layer!r}: False}}."
                    if layer
                    else f"Check the model and the data, or pass another {name}=.",
                )
        return score

    @contextmanager
    def _running(self, layer: str) -> Iterator[None]:
        # Both put the state back, of the random generators too: every run starts from the same.
        with untouched(self.model), evaluating(self.model), _typed(layer):
            yield

    def _run(self, batch: Batch) -> Any:
        # On a copy: a model may change its inputs in place, and they are used again.
        return batch.call.fresh().to(self.device)(self.model)

    def _task(self) -> Score:
        if isinstance(self.metric, Accumulator):
            self.metric.reset()
        total, scores = 0.0, []
        for batch in self.batches:
            outputs, targets = self._run(batch), moved(batch.targets, self.device)
            total += float(self.loss(outputs, targets)) * _size(batch)
            scores.append(self._scored(outputs, targets, _size(batch)))
        known = [score for score in scores if score is not None]
        metric = sum(known) / self.samples if len(known) == len(scores) else None
        if isinstance(self.metric, Accumulator):
            metric = float(self.metric.compute())
        return Score(total / self.samples, metric)

    def _scored(self, outputs: Any, targets: Any, size: int) -> float | None:
        """The metric of a batch times its size; `None` when it does not apply."""
        if isinstance(self.metric, Accumulator):
            self.metric.update(outputs, targets)
            return None
        if self.metric is not None:
            return float(self.metric(outputs, targets)) * size
        return top1(outputs, targets)

    def _output_change(self, layer: str) -> float:
        moved_by = 0.0
        for batch, before in zip(self.batches, self._reference, strict=True):
            after = _floats(self._run(batch))
            if [t.shape for t in after] != [t.shape for t in before]:
                raise ArgumentError(
                    f"the outputs change their shape when weights of {layer!r} are zeroed",
                    where="data",
                    remedy="Pass labelled data, and loss= if the targets are no classes.",
                )
            pairs = zip(after, before, strict=True)
            moved_by += sum(_square(a.cpu().double() - b.double()) for a, b in pairs)
        return moved_by / self._norm


def top1(outputs: Any, targets: Any) -> int | None:
    """Samples whose largest output is the target.

    Returns:
        Their number; `None` unless outputs are `(N, classes)` and targets are `(N,)` integers.
    """
    scores = logits_of(outputs)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or scores.dim() != 2:
        return None
    if targets.shape != scores.shape[:1]:
        return None
    return int((scores.argmax(1) == targets).sum())


def _name(function: Any, default: str) -> str:
    if function is None:
        return default
    name: str = getattr(function, "__name__", type(function).__name__)
    return name


def _size(batch: Batch) -> int:
    return batch.call.batch_size or 1


def _floats(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [t.detach() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _kept(outputs: Any) -> list[Tensor]:
    # Copies: an output may be a buffer or an input that is written again.
    return [t.cpu().clone() for t in _floats(outputs)]


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _require_functions(loss: Any, metric: Any, targets: Any) -> None:
    for name, function in (("loss", loss), ("metric", metric)):
        if function is None:
            continue
        if not callable(function) and not (name == "metric" and isinstance(function, Accumulator)):
            raise ArgumentError(
                f"{type(function).__name__} is no {name}",
                where=name,
                remedy="Pass a function of (outputs, targets).",
            )
        if targets is None:
            raise ArgumentError(
                f"a {name} was given, and the batches have no targets",
                where=name,
                remedy=f"Yield (inputs, targets), or leave {name}= out.",
            )
    classes = isinstance(targets, Tensor) and not targets.is_floating_point()
    if loss is None and targets is not None and not classes:
        raise ArgumentError(
            "the targets are no classes, and no loss was given",
            where="loss",
            remedy="Pass loss=, a function of (outputs, targets).",
        )


def _require_norm(norm: float) -> None:
    if not math.isfinite(norm) or not norm:
        raise ArgumentError(
            "the model's floating outputs are all zero, or there are none"
            if not norm
            else f"the squared norm of the model's outputs is {norm}",
            where="data",
            remedy="Pass other inputs, or labelled data and a loss.",
        )


@contextmanager
def _typed(layer: str) -> Iterator[None]:
    """Name the argument when the user's model, loss or metric fails."""
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:
        while_ = f" while {layer!r} is pruned" if layer else ""
        raise ArgumentError(
            f"the model, the loss or the metric fails on a batch{while_}: "
            f"{type(error).__name__}: {error}",
            where="data",
            remedy="Its batches must be such as the model takes, with targets for the loss.",
        ) from error
