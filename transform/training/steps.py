"""How many batches and optimizer steps there are, known before the first one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from energy_model.errors import ArgumentError
from transform.training.config import TrainConfig


def length_of(data: Any) -> int | None:
    """Number of batches; `None` when the data does not say (a loader of a stream raises)."""
    try:
        return len(data)
    except TypeError:
        return None


def batches_per_epoch(data: Iterable[Any], config: TrainConfig) -> int:
    """Batches of one epoch.

    Raises:
        ArgumentError: The data does not say how many it has, or can be read only once.
    """
    if isinstance(data, Iterator):
        raise ArgumentError(
            "a generator or another iterator was given, and it can be read only once",
            where="data",
            remedy="Pass a loader or a list: training reads the data once an epoch.",
        )
    size = length_of(data)
    if size is None and config.batches_per_epoch is None:
        raise ArgumentError(
            f"{type(data).__name__} has no length, so the schedules cannot be laid out",
            where="data",
            remedy="Pass a loader or a list, or set TrainConfig.batches_per_epoch.",
        )
    wanted = config.batches_per_epoch or size or 0
    return wanted if size is None else min(wanted, size)


def total_steps(data: Iterable[Any], config: TrainConfig) -> int:
    """Optimizer steps of the whole run."""
    if not config.epochs:
        return 0
    return config.epochs * math.ceil(batches_per_epoch(data, config) / config.accumulate)
