"""The dead-unit guard: no output unit loses its last active cell."""

from __future__ import annotations

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.dynamic.selection import numbers_of


def spare(magnitudes: Tensor, mask: Tensor, units: Tensor | None, name: str = "") -> Tensor:
    """The active cells without the largest of each unit.

    Args:
        magnitudes: Of each cell, shape `(cells,)`.
        mask: The active cells; boolean, same shape.
        units: int64, the unit of each cell, from 0; same shape. `None`: there is no guard.
        name: Of the site, for the error.

    Returns:
        Boolean tensor of shape `(cells,)`; `mask` itself when there are no units. Of equal
        magnitudes the unit keeps the highest index, since the lowest is dropped first.

    Raises:
        ArgumentError: Units are not int64, negative, or of another shape.
        TrainingError: A magnitude of an active cell is NaN or infinite.
    """
    if units is None:
        return mask
    if units.shape != mask.shape or units.dtype != torch.int64:
        raise ArgumentError(
            f"Units of shape {tuple(units.shape)} and {units.dtype} for {mask.numel()} cells",
            where=name,
            remedy="Give an int64 unit index per cell.",
        )
    active, unit = numbers_of(magnitudes, mask, name), torch.masked_select(units, mask)
    if not unit.numel():
        return mask
    if int(unit.min()) < 0:
        raise ArgumentError("A unit is negative", where=name, remedy="Count units from 0.")
    size = int(unit.max()) + 1
    largest = active.new_full((size,), -torch.inf).scatter_reduce_(0, unit, active, "amax")
    at = torch.nonzero(active == largest[unit]).flatten()
    last = at.new_full((size,), -1).scatter_reduce_(0, unit[at], at, "amax")
    may_go = torch.ones_like(active, dtype=torch.bool)
    may_go[last[last >= 0]] = False
    return torch.zeros_like(mask).masked_scatter_(mask, may_go)
