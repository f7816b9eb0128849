"""Exact selection of the smallest numbers in O(n), ties by index: nothing is sorted.

`passes.projection.magnitudes` selects weights to keep in the same spirit, but on the CPU and among
nonzeros. Here zeros take part (a grown weight starts at zero), numbers may be signed keys, and the
work stays on the device of the tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError, TrainingError


def kth_smallest(values: Tensor, rank: int) -> Tensor:
    """The number that `rank - 1` others precede when all are in ascending order.

    Args:
        values: Tensor of shape `(n,)` without NaN.
        rank: From 1 to `n`.

    Returns:
        Scalar tensor, on the device of `values`.
    """
    if values.device.type == "cpu":  # numpy selects in place and with vector instructions
        place = rank - 1
        return torch.as_tensor(np.partition(values.detach().numpy(), place)[place])
    return _kth_by_topk(values, rank)


def _kth_by_topk(values: Tensor, rank: int) -> Tensor:
    """By `topk`, whose radix selection uses the whole accelerator; `kthvalue` one block of it."""
    n = values.numel()
    if 2 * rank <= n:
        return values.topk(rank, largest=False, sorted=False).values.max()
    return values.topk(n - rank + 1, sorted=False).values.min()


def least(values: Tensor, count: int) -> Tensor:
    """Mark the `count` smallest numbers; of equal ones those with the lowest index.

    Args:
        values: Tensor of shape `(n,)` without NaN.
        count: How many; all when there are fewer.

    Returns:
        Boolean tensor of shape `(n,)`.
    """
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    bound = kth_smallest(values, count)
    chosen = values < bound
    missing = count - int(torch.count_nonzero(chosen))
    chosen[torch.nonzero(values == bound).flatten()[:missing]] = True
    return chosen


def numbers_of(values: Tensor, mask: Tensor, name: str = "", what: str = "magnitudes") -> Tensor:
    """The numbers of the marked cells, checked.

    Args:
        values: Floating tensor of shape `(cells,)`.
        mask: Boolean tensor of the same shape.
        name: Of the site, for the error.
        what: The numbers are, for the error.

    Returns:
        Tensor of shape `(marked,)`, detached; half precision becomes float32, which is exact.

    Raises:
        ArgumentError: Shapes differ, or the mask is not boolean.
        TrainingError: A marked cell's number is NaN or infinite.
    """
    require_mask(values, mask, name, what)
    marked = torch.masked_select(values.detach(), mask)
    if marked.dtype in (torch.float16, torch.bfloat16):
        marked = marked.float()
    require_finite(marked, name, what)
    return marked


def require_mask(values: Tensor, mask: Tensor, name: str, what: str) -> None:
    """Check that a mask is boolean and fits the numbers beside it."""
    if mask.dtype != torch.bool or values.shape != mask.shape:
        raise ArgumentError(
            f"{what} of shape {tuple(values.shape)} beside a mask of shape {tuple(mask.shape)} "
            f"and {mask.dtype}",
            where=name,
            remedy="Give one number and one boolean per cell.",
        )


def require_finite(values: Tensor, name: str, what: str) -> None:
    """Check that numbers have an order, and say how many have none."""
    finite = torch.isfinite(values)
    if not finite.all():
        bad = values.numel() - int(torch.count_nonzero(finite))
        raise TrainingError(
            f"{bad} of {values.numel()} {what} of cells are NaN or infinite",
            where=name,
            remedy="Training has diverged: lower the learning rate, or clip the gradients.",
        )


def spread(chosen: Tensor, mask: Tensor) -> Tensor:
    """Put a choice among the marked cells back to its places.

    Args:
        chosen: Boolean tensor of shape `(marked,)`.
        mask: Boolean tensor of shape `(cells,)` with that many marked.

    Returns:
        Boolean tensor of shape `(cells,)`.
    """
    return torch.zeros_like(mask).masked_scatter_(mask, chosen.to(mask.device))


def whole(value: int, where: str, low: int = 0) -> int:
    """Check a count.

    Raises:
        ArgumentError: It is no whole number, or less than `low`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low:
        raise ArgumentError(
            f"{value!r} is not allowed", where=where, remedy=f"Give a whole number from {low}."
        )
    return number


def same_length(**lists: Sequence[object] | None) -> None:
    """Check that lists given per site have one length; `None` is left out.

    Raises:
        ArgumentError: They differ.
    """
    lengths = {name: len(entries) for name, entries in lists.items() if entries is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ArgumentError(
            f"Lists of different lengths: {found}", remedy="Give one entry for each site."
        )
