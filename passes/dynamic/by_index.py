"""Work on some elements of a tensor by flat index, at a cost that its size does not enter."""

from __future__ import annotations

import torch
from torch import Tensor

from passes.graph import Site
from passes.rewrite.optimizer_state import part_of


def values_at(values: Tensor, index: Tensor) -> Tensor:
    """Elements of a tensor by flat index, a copy of shape `(index,)`."""
    return values.reshape(-1).index_select(0, index)


def set_at(values: Tensor, index: Tensor, new: Tensor | float) -> None:
    """Write elements of a tensor by flat index, whatever its order in memory.

    Args:
        values: Of any shape; changed in place.
        index: int64 of shape `(n,)`; twice the same only with a number.
        new: Shape `(n,)`, or a number.
    """
    flat = values.reshape(-1)
    flat.scatter_(0, index, new)  # type: ignore[arg-type]  # either overload
    if not values.is_contiguous():  # `flat` is a copy
        values.copy_(flat.reshape(values.shape))


def zero_state_at(
    optimizer: torch.optim.Optimizer, parameter: Tensor, site: Site, index: Tensor
) -> None:
    """`zero_state` of the weights with these indices within the site.

    Args:
        optimizer: Changed in place.
        parameter: That holds the site.
        site: Whose weights.
        index: int64.
    """
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            set_at(part_of(value, site), index, 0)
