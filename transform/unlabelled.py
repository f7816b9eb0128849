"""Unlabelled batches, for calibration and reconstruction: read as often as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from passes.inputs import Call, as_batch
from transform.read_apart import read_apart


@dataclass(slots=True)
class Unlabelled:
    """The inputs of the first batches of some data; what `Run.batches` is.

    Every call yields the same batches in the same order: they are kept once they were read, so that
    data that can be read only once, or that is shuffled anew every time, serves as well.

    Attributes:
        data: Batches, with or without targets.
        model: Tells which parts of a batch are its arguments.
        device: Where the calls go.
    """

    data: Iterable[Any]
    model: nn.Module
    device: torch.device
    _kept: list[Call] = field(default_factory=list)
    _source: Iterator[Any] | None = None

    def __call__(self, count: int) -> Iterator[Call]:
        """The calls of the first `count` batches, fewer if there are fewer."""
        if self._source is None:
            self._source = read_apart(self.data)
        missing = max(0, count - len(self._kept))
        for item in islice(self._source, missing):
            self._kept.append(as_batch(self.model, item).call)
        return (call.to(self.device) for call in self._kept[:count])
