"""A metric of a model on labelled batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.errors import ArgumentError, CompressionError
from passes.inputs import as_batch
from passes.isolation import evaluating


@runtime_checkable
class Accumulator(Protocol):
    """A metric that is accumulated over batches, as those of torchmetrics are."""

    def reset(self) -> Any:
        """Forget all batches."""

    def update(self, outputs: Any, targets: Any) -> Any:
        """Take a batch in."""

    def compute(self) -> Any:
        """The value over all batches."""


# A function gives the value of one batch; the mean over samples is the metric.
Metric = Callable[[Any, Any], float] | Accumulator


def moved(value: Any, device: torch.device) -> Any:
    """Every tensor of a nested value on a device."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), value)


def evaluate(
    model: nn.Module, data: Iterable[Any], device: torch.device, metric: Metric | None = None
) -> float | None:
    """A model's metric in evaluation mode.

    Args:
        model: Any model.
        data: Batches; see `transform.compress`.
        device: Where the model is.
        metric: A function of (outputs, targets), or an accumulator; by default the share of samples
            whose largest output is the target.

    Returns:
        The metric; `None` when the batches carry no targets, or when the default metric does not
        apply to the model's output.

    Raises:
        ArgumentError: `data` is empty, or targets do not fit the outputs.
    """
    if isinstance(metric, Accumulator):
        metric.reset()
    total: float = 0
    value: float | None
    samples = 0
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"{type(data).__name__} is not iterable",
            where="valid",
            remedy="Pass an iterable of batches: a DataLoader or a list.",
        )
    with evaluating(model), _typed_errors():
        for item in data:
            batch = as_batch(model, item)
            if batch.targets is None:
                return None
            outputs, targets = batch.call.to(device)(model), moved(batch.targets, device)
            if isinstance(metric, Accumulator):
                metric.update(outputs, targets)
                samples += 1
                continue
            size = batch.call.batch_size or 1
            if metric is None:
                value = _correct(outputs, targets)
            else:
                value = float(metric(outputs, targets)) * size
            if value is None:
                return None
            total, samples = total + value, samples + size
    if not samples:
        raise ArgumentError(
            "no batches", where="valid", remedy="Pass a list or a loader, not a spent generator."
        )
    result = float(metric.compute()) if isinstance(metric, Accumulator) else total / samples
    if not math.isfinite(result):
        raise ArgumentError(
            f"the metric is {result}", where="metric", remedy="Return a finite number."
        )
    return result


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Name the argument when the model or the metric fails on its data."""
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"the model or the metric fails on a batch: {type(error).__name__}: {error}",
            where="valid",
            remedy="Its batches must be such as the model takes, with targets for the metric.",
        ) from error


def _correct(outputs: Any, targets: Any) -> int | None:
    """Samples whose largest output is the target."""
    if isinstance(outputs, Mapping):
        outputs = next(iter(outputs.values()), None)
    if isinstance(outputs, tuple | list):
        outputs = outputs[0] if outputs else None
    targets = torch.as_tensor(targets)
    scores = isinstance(outputs, Tensor) and outputs.dim() == 2
    if not scores or targets.is_floating_point() or targets.dim() != 1:
        return None
    if len(targets) != len(outputs):
        raise ArgumentError(f"{len(targets)} targets for {len(outputs)} outputs", where="valid")
    return int((outputs.argmax(1) == targets).sum())
