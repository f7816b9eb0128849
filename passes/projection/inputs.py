"""Projection of input masks: which inputs a network keeps within a share of what all would cost.

The knapsack of the weighted projection (Yang, Zhu, Liu, ICLR 2019), over inputs: of value M^2, at a
price each. With equal prices it is the paper's projection onto a number of entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import PreconditionError


@dataclass(frozen=True, slots=True)
class KeptInputs:
    """What a mask projection keeps.

    Attributes:
        keep: A boolean tensor per mask, of its shape and on its device.
        used: Sum of the prices of what is kept.
        gap: Upper bound on how far the kept sum of squares lies below the optimum.
    """

    keep: tuple[Tensor, ...]
    used: int
    gap: float


def project_inputs(
    masks: Sequence[Tensor], prices: Sequence[NDArray[np.int64]], capacity: int
) -> KeptInputs:
    """Keep the entries of largest M^2 per price, in that order, as long as they fit.

    After the longest prefix, later entries that still fit are taken. Ties go to the earlier mask
    and the smaller index; entries that are 0 are never kept.

    Args:
        masks: Real tensors of any shapes.
        prices: int64 arrays of the same shapes, all positive.
        capacity: What the kept entries may cost together.

    Raises:
        PreconditionError: An entry is not finite.
    """
    values = np.concatenate([m.detach().cpu().double().numpy().reshape(-1) ** 2 for m in masks])
    if not np.isfinite(values).all():
        raise PreconditionError(
            "an entry of an input mask is not finite",
            where="input mask",
            remedy="Lower mask_lr; check the loss and the data.",
        )
    costs = np.concatenate([price.reshape(-1) for price in prices])
    order = np.argsort(-values / costs, kind="stable")
    order = order[values[order] > 0]
    spent = np.cumsum(costs[order])
    count = int(np.searchsorted(spent, capacity, side="right"))
    used = int(spent[count - 1]) if count else 0
    chosen, gap = order[:count], 0.0
    if count < len(order):
        first = order[count]
        gap = float(values[first] / costs[first]) * (capacity - used)
        more, used = _fill(order[count:], costs, used, capacity)
        gap = max(0.0, gap - float(values[more].sum()))
        chosen = np.concatenate([chosen, more])
    kept = np.zeros(len(values), dtype=np.bool_)
    kept[chosen] = True
    parts = np.split(kept, np.cumsum([mask.numel() for mask in masks])[:-1])
    keep = tuple(
        torch.from_numpy(part.reshape(mask.shape)).to(mask.device)
        for part, mask in zip(parts, masks, strict=True)
    )
    return KeptInputs(keep, used, gap)


def _fill(
    rest: NDArray[np.int64], costs: NDArray[np.int64], used: int, capacity: int
) -> tuple[NDArray[np.int64], int]:
    """Entries of the rest, in order, that still fit; and the use with them."""
    taken: list[int] = []
    while True:
        fitting = rest[costs[rest] <= capacity - used]
        if not len(fitting):
            return np.asarray(taken, dtype=np.int64), used
        taken.append(int(fitting[0]))
        used += int(costs[fitting[0]])
        rest = fitting[1:]
