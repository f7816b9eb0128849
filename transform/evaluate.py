"""Accuracy of a model on labelled batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError
from passes.inputs import as_batch, evaluating


def accuracy(model: nn.Module, data: Iterable[Any], device: torch.device) -> float | None:
    """Share of samples whose largest output is the target.

    Args:
        model: A classifier whose output, or first output, has shape `(N, classes)`.
        data: Batches; see `transform.compress`.
        device: Where the model is.

    Returns:
        A fraction; `None` when the batches carry no targets or the output is no classification.

    Raises:
        ArgumentError: `data` is empty, or targets do not fit the outputs.
    """
    correct = total = 0
    with evaluating(model):
        for item in data:
            batch = as_batch(model, item)
            outputs = _scores(batch.call.to(device)(model))
            if batch.targets is None or outputs is None:
                return None
            targets = torch.as_tensor(batch.targets)
            if targets.is_floating_point() or targets.dim() != 1:
                return None
            if len(targets) != len(outputs):
                raise ArgumentError(
                    f"{len(targets)} targets for {len(outputs)} outputs", where="valid"
                )
            correct += int((outputs.argmax(1).cpu() == targets.cpu()).sum())
            total += len(targets)
    if not total:
        raise ArgumentError(
            "no batches", where="valid", remedy="Pass a list or a loader, not a spent generator."
        )
    return correct / total


def _scores(outputs: Any) -> Tensor | None:
    if isinstance(outputs, dict):
        outputs = next(iter(outputs.values()), None)
    if isinstance(outputs, tuple | list):
        outputs = outputs[0] if outputs else None
    is_scores = isinstance(outputs, Tensor) and outputs.dim() == 2
    return outputs if is_scores else None
