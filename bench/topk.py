"""Loss and top-1, top-3 and top-5 accuracy of a model, in one pass over its test data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_model.errors import ArgumentError
from transform.evaluate import evaluate

RANKS = (1, 3, 5)


@dataclass(frozen=True, slots=True)
class TopK:
    """What a model scores.

    Attributes:
        loss: Mean cross entropy, in nats.
        top: Share of the samples whose class is among the largest outputs, for each of `RANKS`.
        samples: How many there were.
    """

    loss: float
    top: tuple[float, ...]
    samples: int


@dataclass(slots=True)
class _Sums:
    """An accumulator as `evaluate` takes it; its value is the mean loss."""

    loss: float = 0.0
    hits: list[int] = field(default_factory=lambda: [0] * len(RANKS))
    samples: int = 0

    def reset(self) -> None:
        """Forget all batches."""
        self.loss, self.hits, self.samples = 0.0, [0] * len(RANKS), 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch in: outputs `(n, classes)`, targets int64 `(n,)`."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise ArgumentError(
                f"the model returns {type(outputs).__name__}, not a tensor (samples, classes)",
                where="top-k",
            )
        loss = F.cross_entropy(outputs.double(), targets, reduction="sum")
        # Stable, so that of equal outputs the first is the largest, as for `argmax`.
        order = torch.sort(outputs, dim=1, descending=True, stable=True).indices
        right = order == targets.unsqueeze(1)
        self.loss += float(loss)
        self.hits = [
            hits + int(right[:, :rank].sum()) for hits, rank in zip(self.hits, RANKS, strict=True)
        ]
        self.samples += len(targets)

    def compute(self) -> float:
        """The mean loss."""
        return self.loss / self.samples if self.samples else math.nan


def top_k(model: nn.Module, data: Iterable[Any], device: torch.device | None = None) -> TopK:
    """Loss and accuracies of a model in evaluation mode, which is left as it was.

    Args:
        model: Returns logits `(samples, classes)`.
        data: Batches (inputs, classes).
        device: Where the model is; `None` is the CPU.

    Raises:
        ArgumentError: There are no batches or no targets, they do not fit, or the loss is not
            finite.
    """
    sums = _Sums()
    if evaluate(model, data, device or torch.device("cpu"), sums) is None:
        raise ArgumentError(
            "the batches have no targets", where="top-k", remedy="Yield (inputs, targets)."
        )
    return TopK(sums.compute(), tuple(hits / sums.samples for hits in sums.hits), sums.samples)
