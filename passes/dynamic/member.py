"""Sparse tensors as the engine keeps them, and what an event does to one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from passes.dynamic.start import SparseShape
from passes.graph import Site


@dataclass(frozen=True, slots=True)
class Member:
    """A sparse tensor as the engine keeps it.

    Attributes:
        site: Its site.
        shape: Its shape and cells.
        final: Cells that the budget leaves it, of rules that prune to it; of others, those that
            it starts with.
        floor: Least number of cells that stay active.
        movable: Whether it is rewired.
        cost: Of a parameter, for allocations that count it.
        units: Output unit of each cell, if none may lose its last.
    """

    site: Site
    shape: SparseShape
    final: int
    floor: int = 1
    movable: bool = True
    cost: float = 1.0
    units: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What an event does to one site; boolean `(cells,)`.

    Attributes:
        dropped: Active cells that end.
        grown: Cells that begin, at zero: inactive ones, or some of those dropped.
    """

    dropped: Tensor
    grown: Tensor


def weights_of(mask: Tensor, member: Member) -> Tensor:
    """A mask of cells as one of weights, flat."""
    block = member.shape.block
    return mask if block == 1 else mask.repeat_interleave(block)
