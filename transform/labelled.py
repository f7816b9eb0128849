"""Labelled samples that candidates are compared on: few, fixed, and as many of each class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.inputs import Batch, Call, as_batch
from transform.evaluate import moved
from transform.read_apart import read_apart

# Read so many times what is asked for, so that there is something to choose from.
_SPARE = 4


@dataclass(slots=True)
class Labelled:
    """Labelled samples of some data; what `Run.labelled` is.

    Every call with the same number yields the same samples.

    Attributes:
        data: Batches with targets.
        model: Tells which parts of a batch are its arguments.
        device: Where the samples go.
    """

    data: Iterable[Any]
    model: nn.Module
    device: torch.device
    _known: dict[int, Batch | None] = field(default_factory=dict)

    def __call__(self, count: int) -> Batch | None:
        """Up to `count` samples as one batch; `None` if the data has no targets.

        Where the targets are classes, they take turns in the order of the data.
        """
        if count not in self._known:
            self._known[count] = self._read(count)
        return self._known[count]

    def _read(self, count: int) -> Batch | None:
        batches: list[Batch] = []
        size = 0
        for item in read_apart(self.data):
            batch = as_batch(self.model, item)
            if batch.targets is None:
                return None
            batches.append(batch)
            size += batch.call.batch_size or 1
            if size >= _SPARE * count:
                break
        if not batches:
            return None
        whole = _joined(batches)
        picked = whole.rows(whole.in_turns(count))
        return Batch(picked.call.to(self.device), moved(picked.targets, self.device))


def _joined(batches: list[Batch]) -> Batch:
    """Batches as one; the first alone where their samples differ in shape."""
    pairs = [((b.call.args, dict(b.call.kwargs)), b.targets) for b in batches]
    leaves, trees = zip(*(pytree.tree_flatten(pair) for pair in pairs), strict=True)
    if any(tree != trees[0] for tree in trees):
        return batches[0]
    try:
        joined = [_column(column, batches) for column in zip(*leaves, strict=True)]
    except (RuntimeError, TypeError):
        return batches[0]
    (args, kwargs), targets = pytree.tree_unflatten(joined, trees[0])
    return Batch(Call(args, kwargs), targets)


def _column(column: tuple[Any, ...], batches: list[Batch]) -> Any:
    first, size = column[0], batches[0].call.batch_size
    if not isinstance(first, Tensor) or first.dim() == 0 or first.shape[0] != size:
        return first
    return torch.cat(column)
