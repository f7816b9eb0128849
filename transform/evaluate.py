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
    with evaluating(model), _typed_errors():
        for outputs, targets, size in _evaluated(model, data, device):
            if targets is None:
                return None
            if isinstance(metric, Accumulator):
                metric.update(outputs, targets)
                samples += 1
                continue
            if metric is None:
                right = _correct(outputs, targets)
                value = None if right is None else int(right.sum())
            else:
                value = float(metric(outputs, targets)) * size
            if value is None:
                return None
            total, samples = total + value, samples + size
    if not samples:
        raise _no_batches()
    result = float(metric.compute()) if isinstance(metric, Accumulator) else total / samples
    if not math.isfinite(result):
        raise ArgumentError(
            f"the metric is {result}", where="metric", remedy="Return a finite number."
        )
    return result


def correct_samples(
    model: nn.Module, data: Iterable[Any], device: torch.device
) -> list[bool] | None:
    """Whether a model's largest output is the target, for each sample in the order of the data.

    Args:
        model: Any model; run in evaluation mode.
        data: Batches; see `transform.compress`.
        device: Where the model is.

    Returns:
        One truth value a sample, whose mean is what `evaluate` returns; `None` where that does.

    Raises:
        ArgumentError: As `evaluate`.
    """
    found: list[bool] = []
    with evaluating(model), _typed_errors():
        for outputs, targets, _ in _evaluated(model, data, device):
            right = None if targets is None else _correct(outputs, targets)
            if right is None:
                return None
            found += right.tolist()
    if not found:
        raise _no_batches()
    return found


def _evaluated(
    model: nn.Module, data: Iterable[Any], device: torch.device
) -> Iterator[tuple[Any, Any, int]]:
    """Outputs, targets and size of every batch; no targets end it, before the model is run."""
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"{type(data).__name__} is not iterable",
            where="valid",
            remedy="Pass an iterable of batches: a DataLoader or a list.",
        )
    for item in data:
        batch = as_batch(model, item)
        if batch.targets is None:
            yield None, None, 0
            return
        outputs = batch.call.to(device).fresh()(model)  # a model may change its inputs in place
        yield outputs, moved(batch.targets, device), batch.call.batch_size or 1


def _no_batches() -> ArgumentError:
    return ArgumentError(
        "no batches", where="valid", remedy="Pass a list or a loader, not a spent generator."
    )


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


def _correct(outputs: Any, targets: Any) -> Tensor | None:
    """Whether each sample's largest output is the target, `(N,)`; `None` if that says nothing."""
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
    right: Tensor = outputs.argmax(1) == targets
    return right
