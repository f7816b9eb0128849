"""Which active cells a rewiring event drops.

Every function reads magnitudes and masks of cells and returns boolean masks of the cells to drop;
it changes nothing. Ties: the lowest index goes first, across sites the first site.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.dynamic.guard import spare
from passes.dynamic.prefix import affordable
from passes.dynamic.selection import (
    least,
    numbers_of,
    require_mask,
    same_length,
    spread,
    whole,
)


def below_threshold(
    magnitudes: Sequence[Tensor],
    masks: Sequence[Tensor],
    threshold: float,
    keep: int = 1,
    *,
    names: Sequence[str] | None = None,
) -> list[Tensor]:
    """Drop every active cell whose magnitude is below one threshold for all sites.

    Mostafa & Wang, ICML 2019, algorithm 1; strictly below.

    Args:
        magnitudes: Per site, mean |w| of each cell; shape `(cells,)`.
        masks: Per site, the active cells; boolean, same shape.
        threshold: A magnitude.
        keep: A site that would be left with fewer active cells keeps this many, its largest.
        names: Of the sites, for errors.

    Returns:
        Per site, the cells to drop.

    Raises:
        ArgumentError: Lists or shapes differ, or the threshold is NaN.
        TrainingError: A magnitude of an active cell is NaN or infinite.
    """
    same_length(magnitudes=magnitudes, masks=masks, names=names)
    if math.isnan(threshold):
        raise ArgumentError("NaN is not allowed", where="threshold", remedy="Give a magnitude.")
    whole(keep, "keep")
    dropped = []
    for i, (magnitude, mask) in enumerate(zip(magnitudes, masks, strict=True)):
        active = numbers_of(magnitude, mask, _name(names, i))
        low = active < threshold
        most = max(0, active.numel() - keep)
        if int(torch.count_nonzero(low)) > most:
            low = least(active, most)
        dropped.append(spread(low, mask))
    return dropped


def smallest(
    magnitudes: Tensor, mask: Tensor, count: int, units: Tensor | None = None, *, name: str = ""
) -> Tensor:
    """Drop the `count` active cells of one site that have the least magnitude.

    Args:
        magnitudes: Of each cell, shape `(cells,)`.
        mask: The active cells; boolean, same shape.
        count: How many.
        units: int64, the output unit of each cell, same shape. Every unit that has an active cell
            keeps its largest (the dead-unit guard).
        name: Of the site, for errors.

    Returns:
        The cells to drop: exactly `count`, or all that may go when there are fewer.

    Raises:
        ArgumentError: Shapes differ, or the count is negative.
        TrainingError: A magnitude of an active cell is NaN or infinite.
    """
    count = whole(count, "count")
    pool = spare(magnitudes, mask, units, name)
    return spread(least(numbers_of(magnitudes, pool, name), count), pool)


def smallest_of_all(
    magnitudes: Sequence[Tensor],
    masks: Sequence[Tensor],
    count: int,
    floors: Sequence[int] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    units: Sequence[Tensor | None] | None = None,
    names: Sequence[str] | None = None,
) -> list[Tensor]:
    """Drop the globally smallest active cells of all sites that may go.

    A cell may go while its site keeps more than its floor and its unit another active cell. These
    limits are nested, so going through all cells in ascending order and taking every one that may
    go is the optimum: no other choice of as many cells has a smaller sum. The cells dropped of a
    site are always the smallest of it that may go.

    Args:
        magnitudes: Per site, mean |w| of each cell; shape `(cells,)`.
        masks: Per site, the active cells; boolean, same shape.
        count: How many in all; parameters when `blocks` is given, otherwise cells.
        floors: Per site, the least number of cells that stay active; `None` is 1.
        blocks: Per site, parameters in a cell; then `count` is in parameters. In ascending order
            every cell is taken that still fits: never more than `count` parameters go, and what is
            missing is less than the block of every cell that may still go. So nothing is missing
            while a cell of one parameter is left that may go. With one block size for all the
            result is the optimum for `count // block` cells; with several it is that of this order.
        units: Per site, int64, the output unit of each cell, or `None`: every unit that has an
            active cell keeps its largest.
        names: Of the sites, for errors.

    Returns:
        Per site, the cells to drop. Without `blocks` exactly `count`, or all that may go when there
        are fewer.

    Raises:
        ArgumentError: Lists or shapes differ, or a number is negative.
        TrainingError: A magnitude of an active cell is NaN or infinite.
    """
    same_length(
        magnitudes=magnitudes, masks=masks, floors=floors, blocks=blocks, units=units, names=names
    )
    count = whole(count, "count")
    sizes = [whole(b, "blocks", 1) for b in blocks or [1] * len(masks)]
    least_left = [whole(f, "floors") for f in ([1] * len(masks) if floors is None else floors)]
    pools, values, room = [], [], []
    for i, (magnitude, mask) in enumerate(zip(magnitudes, masks, strict=True)):
        pool = spare(magnitude, mask, None if units is None else units[i], _name(names, i))
        pools.append(pool)
        values.append(numbers_of(magnitude, pool, _name(names, i)))
        room.append(max(0, int(torch.count_nonzero(mask)) - least_left[i]))
    chosen = affordable(values, sizes, count)
    if any(int(torch.count_nonzero(c)) > r for c, r in zip(chosen, room, strict=True)):
        # Some floor binds: only what each site could give by itself takes part.
        able = [least(v, r) for v, r in zip(values, room, strict=True)]
        chosen = affordable([v[a] for v, a in zip(values, able, strict=True)], sizes, count)
        chosen = [spread(c, a) for c, a in zip(chosen, able, strict=True)]
    return [spread(c, pool) for c, pool in zip(chosen, pools, strict=True)]


def smallest_by_sign(values: Tensor, mask: Tensor, fraction: float, *, name: str = "") -> Tensor:
    """Drop a fraction of the smallest positive and of the largest negative weights, separately.

    Mocanu et al., Nature Communications 2018. Of `p` positive and `n` negative active cells
    `round(fraction * p)` and `round(fraction * n)` are dropped, halves to the even number. An
    active cell of exactly 0 counts as positive, so it is the first to go.

    Args:
        values: Signed weights, shape `(cells,)`.
        mask: The active cells; boolean, same shape.
        fraction: From 0 to 1.
        name: Of the site, for errors.

    Returns:
        The cells to drop.

    Raises:
        ArgumentError: Shapes differ, or the fraction is out of range.
        TrainingError: A weight of an active cell is NaN or infinite.
    """
    if not 0 <= fraction <= 1:
        raise ArgumentError(
            f"{fraction} is not allowed", where="fraction", remedy="Give a share from 0 to 1."
        )
    active = numbers_of(values, mask, name, "weights")
    negative = active < 0
    dropped = torch.zeros_like(negative)
    for side in (negative, ~negative):
        count = round(fraction * int(torch.count_nonzero(side)))
        dropped |= spread(least(active[side].abs(), count), side)
    return spread(dropped, mask)


def flipped(values: Tensor, signs: Tensor, mask: Tensor, *, name: str = "") -> Tensor:
    """Drop the active cells whose weight has crossed zero, away from the sign given to it.

    Bellec et al., ICLR 2018: a connection is active while `theta = sign * weight >= 0`.

    Args:
        values: Signed weights, shape `(cells,)`.
        signs: Of each cell, +1 or -1 (any numeric type), same shape.
        mask: The active cells; boolean, same shape.
        name: Of the site, for errors.

    Returns:
        The cells to drop.

    Raises:
        ArgumentError: Shapes differ.
        TrainingError: A weight of an active cell is NaN or infinite.
    """
    require_mask(signs, mask, name, "signs")
    numbers_of(values, mask, name, "weights")
    return mask & (signs * values.detach() < 0)


def _name(names: Sequence[str] | None, site: int) -> str:
    return f"site {site}" if names is None else names[site]
