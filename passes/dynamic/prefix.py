"""The smallest cells of several sites that fit an amount of parameters, without a sort."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from passes.dynamic.selection import least


def affordable(values: Sequence[Tensor], blocks: Sequence[int], room: int) -> list[Tensor]:
    """Go through all cells in ascending order and take every one that still fits.

    Args:
        values: Per site, shape `(cells,)`; sites of any number of cells, none included.
        blocks: Per site, parameters in a cell.
        room: Parameters.

    Returns:
        Per site, boolean tensor of shape `(cells,)`. Ties by site, then by index. What is left of
        the room is less than the block of every cell that was not taken.
    """
    if not values:
        return []
    joined = torch.cat(list(values))
    counts = [v.numel() for v in values]
    if len(set(blocks)) == 1:
        taken = least(joined, room // blocks[0])
    else:
        each = torch.tensor(list(blocks), device=joined.device)
        taken = _fill(
            joined, each.repeat_interleave(torch.tensor(counts, device=each.device)), room
        )
    return list(torch.split(taken, counts))


def _fill(values: Tensor, sizes: Tensor, room: int) -> Tensor:
    """Prefixes, one after the other: each ends at a cell that does not fit, nor will any so big."""
    taken = torch.zeros_like(values, dtype=torch.bool)
    start = torch.arange(values.numel(), device=values.device)
    while start.numel():
        prefix, room = _longest_prefix(values[start], sizes[start], room)
        taken[start[prefix]] = True
        start = start[~prefix & (sizes[start] <= room)]
    return taken


def _longest_prefix(values: Tensor, sizes: Tensor, room: int) -> tuple[Tensor, int]:
    """The cells, in ascending order, up to the first that does not fit; and what room is left.

    The smaller half of what is undecided either fits as a whole, or the end lies in it: O(n).
    """
    taken = torch.zeros_like(values, dtype=torch.bool)
    open_ = torch.arange(values.numel(), device=values.device)
    while open_.numel():
        half = least(values[open_], (open_.numel() + 1) // 2)
        needed = int(sizes[open_[half]].sum())
        if needed <= room:
            taken[open_[half]] = True
            room -= needed
            open_ = open_[~half]
        elif open_.numel() == 1:
            break
        else:
            open_ = open_[half]
    return taken, room
