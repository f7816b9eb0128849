"""Where new cells grow: at random, or where a score is largest, and only where it is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.dynamic.random_keys import key_of, keys_at, uniform_indices
from passes.dynamic.selection import least, require_finite, require_mask, whole

_ROUNDS = 16  # of rejection, each of which falls short about never


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Where one site may grow.

    Attributes:
        certain: Cells that grow whatever the rule says; boolean, shape `(cells,)`. All that were
            inactive where just-dropped cells are needed as well, otherwise no cell.
        open: Cells among which the rule chooses; boolean, same shape.
        count: How many the rule chooses of `open`, at most as many as there are.
        returned: How many just-dropped cells come back because there are too few others; to be
            reported. 0 when they were candidates from the start.
    """

    certain: Tensor
    open: Tensor
    count: int
    returned: int = 0


def candidates(
    mask: Tensor, dropped: Tensor, count: int, *, just_dropped: bool = False
) -> Candidates:
    """The cells where a site may grow in this event.

    Those that were inactive before the drop. Only when they are too few all of them grow, and the
    rule chooses the rest among the cells just dropped.

    Args:
        mask: Active cells *before* the drop; boolean, shape `(cells,)`.
        dropped: Cells that this event drops, a part of `mask`; boolean, same shape.
        count: How many are to grow.
        just_dropped: The cells just dropped are candidates like all others (RigL).

    Raises:
        ArgumentError: A dropped cell was not active, shapes differ, or the count is negative.
    """
    require_mask(mask, dropped, "dropped", "a mask")
    require_mask(dropped, mask, "mask", "a mask")
    if bool((dropped & ~mask).any()):
        raise ArgumentError(
            "A dropped cell was not active",
            where="dropped",
            remedy="Give the mask before the drop.",
        )
    count, free = whole(count, "count"), ~mask
    if just_dropped:
        free = free | dropped
    room = int(torch.count_nonzero(free))
    if count <= room or just_dropped:
        return Candidates(torch.zeros_like(mask), free, min(count, room))
    back = min(count - room, int(torch.count_nonzero(dropped)))
    return Candidates(free, dropped, back, returned=back)


def at_random(free: Tensor, count: int, key: int) -> Tensor:
    """Choose cells uniformly without replacement.

    A function of the arguments only: the same on every device and in every process.

    Args:
        free: Cells that may be chosen; boolean, shape `(cells,)`.
        count: How many.
        key: From `random_keys.key_of`; another for every event and site.

    Returns:
        Boolean tensor of shape `(cells,)`: exactly `count` free cells, or all when there are fewer.

    Raises:
        ArgumentError: The mask is not boolean, or the count is negative.
    """
    require_mask(free, free, "free", "a mask")
    count, room = whole(count, "count"), int(torch.count_nonzero(free))
    if count >= room:
        return free.clone()
    chosen = None
    if 8 * count <= room and 2 * room >= free.numel():
        chosen = _by_rejection(free, count, room, key)
    return _by_keys(free, count, key) if chosen is None else chosen


def largest(scores: Tensor, free: Tensor, count: int, *, name: str = "") -> Tensor:
    """Choose the cells with the largest absolute score, ties with the lowest index.

    Args:
        scores: Of each cell, e.g. its dense gradient; shape `(cells,)`.
        free: Cells that may be chosen; boolean, same shape.
        count: How many.
        name: Of the site, for errors.

    Returns:
        Boolean tensor of shape `(cells,)`: exactly `count` free cells, or all when there are fewer.

    Raises:
        ArgumentError: Shapes differ, or the count is negative.
        TrainingError: A score of a free cell is NaN or infinite.
    """
    require_mask(scores, free, name, "scores")
    count, room = whole(count, "count"), int(torch.count_nonzero(free))
    # What is not free ranks last. In place of gathering what is: that is most of a sparse tensor.
    magnitude = scores.detach().abs().masked_fill_(~free, -1)
    if magnitude.dtype in (torch.float16, torch.bfloat16):
        magnitude = magnitude.float()
    require_finite(magnitude, name, "scores")
    if count >= room:
        return free.clone()
    return least(magnitude.neg_(), count)


def _by_keys(among: Tensor, count: int, key: int) -> Tensor:
    """The cells with the smallest of as many different random keys."""
    index = torch.nonzero(among).flatten()
    chosen = torch.zeros_like(among)
    chosen[index[least(keys_at(key, index), count)]] = True
    return chosen


def _by_rejection(free: Tensor, count: int, room: int, key: int) -> Tensor | None:
    """Draw cells until enough different free ones are found; drop the surplus at random.

    The draws treat all free cells alike, so a set found is uniform among those of its size, and so
    is a uniform part of it. Costs O(count) random numbers where keys cost O(free).
    """
    # About an eighth more than repetitions take away, and whole numbers on every platform.
    draws = (count + count // 4 + 64) * free.numel() // room
    chosen = torch.zeros_like(free)
    for batch in range(_ROUNDS):
        index = uniform_indices(key, draws, free.numel(), free.device, start=batch * draws)
        chosen[index[free[index]]] = True
        if int(torch.count_nonzero(chosen)) >= count:
            return _by_keys(chosen, count, key_of(key, batch, "surplus"))
    return None
