"""The event of DeepR on lists of cells: as many connections begin as end, in the same tensor."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import PostconditionError
from passes.dynamic.by_index import set_at, values_at, zero_state_at
from passes.dynamic.grow import at_random
from passes.dynamic.host_keys import host_keys
from passes.dynamic.random_keys import key_of
from passes.dynamic.selection import require_finite
from passes.dynamic.walker import Part, Walker

# Of a cell's index; above are the bits of its site.
_CELL_BITS = 40


def exchange(
    walker: Walker,
    places: Tensor,
    values: Tensor,
    number: int,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """End connections, and let as many of the same site begin at zero, anywhere among the dormant.

    What the engine does with `SignChanged`, `SameSite`, `AtRandom` and `just_dropped`, bit for bit,
    at a cost of what changes instead of the size of the tensors; only active cells are counted.
    Random numbers are drawn on the CPU: they are few, and an accelerator is asked twice in all.

    Args:
        walker: Follows the change.
        places: In its list, of what ends; int64, ascending.
        values: All active weights, as its list.
        number: Of the event.
        optimizer: Its state of changed weights is zeroed.

    Returns:
        The cells that begin, int64, by name of the site; sites where nothing ends have none.

    Raises:
        TrainingError: A weight that ends is NaN or infinite.
        PostconditionError: The number of active cells of a site changed.
    """
    bounds = np.searchsorted(places.cpu().numpy(), [0] + [part.stop for part in walker.parts])
    pairs = zip(walker.parts, bounds, bounds[1:], strict=False)
    parts = [(part, slice(int(a), int(b))) for part, a, b in pairs if b > a]
    ended = values.index_select(0, places)
    if not math.isfinite(float(ended.sum())):
        require_finite(ended, ", ".join(part.site.name for part, _ in parts), "weights")
    gone = walker.cells.index_select(0, places)
    for part, where in parts:
        for keep in part.keeps:
            set_at(keep, gone[where], 0)
    keys = [key_of(walker.seed, number, part.site.name) for part, _ in parts]
    chosen = _dormant([(part, w.stop - w.start) for part, w in parts], keys)
    grown = torch.from_numpy(chosen).to(gone.device)
    for part, where in parts:
        for keep in part.keeps:
            set_at(keep, grown[where], 1)
        anew = torch.cat([gone[where], grown[where]])
        set_at(part.weight, anew, 0)
        zero_state_at(optimizer, part.parameter, part.site, anew)
    _check([part for part, _ in parts])
    walker.replace(places, grown, _signs(walker, parts, chosen))
    return {part.site.name: grown[where] for part, where in parts}


def _dormant(parts: list[tuple[Part, int]], keys: list[int]) -> NDArray[np.int64]:
    """What `grow.at_random(~active, count, key)` chooses of every site, one after another."""
    counts, draws = np.array([n for _, n in parts]), np.array([_draws(*pair) for pair in parts])
    owner = np.repeat(np.arange(len(parts)), draws)
    first = np.cumsum(draws) - draws
    drawn = host_keys(np.array(keys)[owner], np.arange(owner.size) - first[owner])
    sizes = np.array([part.site.size for part, _ in parts], dtype=np.uint64)
    cells = ((drawn.view(np.uint64) >> np.uint64(1)) % sizes[owner]).view(np.int64)
    active = _active([part for part, _ in parts], cells, draws)
    found = _distinct((owner[~active] << _CELL_BITS) | cells[~active])
    owner, cells = found >> _CELL_BITS, found & ((1 << _CELL_BITS) - 1)
    # Of too many those with the smallest of further keys stay.
    surplus = np.array([key_of(key, 0, "surplus") for key in keys])
    order = np.lexsort((host_keys(surplus[owner], cells), owner))
    have = np.bincount(owner, minlength=len(parts))
    rank = np.arange(owner.size) - (np.cumsum(have) - have)[owner]
    chosen = cells[order[rank < counts[owner]]]
    if (have >= counts).all():
        return chosen
    pieces = np.split(chosen, np.cumsum(np.minimum(have, counts))[:-1])
    for number, (part, count) in enumerate(parts):
        if have[number] < count:
            among = ~part.keeps[0].reshape(-1)
            everything = torch.nonzero(at_random(among, count, keys[number])).flatten()
            pieces[number] = everything.cpu().numpy()
    return np.concatenate(pieces)


def _active(
    parts: list[Part], cells: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether cells are active, given for one site after another."""
    asked = torch.from_numpy(cells).to(parts[0].weight.device)
    pieces = torch.split(asked, lengths.tolist())
    pairs = zip(parts, pieces, strict=True)
    flags = [values_at(part.keeps[0], piece) for part, piece in pairs]
    found: NDArray[np.bool_] = torch.cat(flags).cpu().numpy()
    return found


def _distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """In ascending order, each once."""
    numbers = np.sort(numbers)
    first = np.ones(numbers.size, dtype=bool)
    np.not_equal(numbers[1:], numbers[:-1], out=first[1:])
    return numbers[first]


def _draws(part: Part, count: int) -> int:
    """Cells to draw, so that enough are dormant; 0 where these are too few for rejection."""
    n = part.site.size
    room = n - (part.stop - part.start) + count
    rejecting = 8 * count <= room and 2 * room >= n
    return (count + count // 4 + 64) * n // room if rejecting else 0


def _check(parts: list[Part]) -> None:
    if parts[0].weight.device.type == "cpu":
        counts = [int(np.count_nonzero(part.keeps[0].numpy())) for part in parts]
    else:
        counts = torch.stack([torch.count_nonzero(part.keeps[0]) for part in parts]).tolist()
    for part, left in zip(parts, counts, strict=True):
        if left != part.stop - part.start:
            raise PostconditionError(
                f"rewiring changed {part.stop - part.start:,} active parameters into {left:,}",
                where=f"site {part.site.name!r}",
            )


def _signs(walker: Walker, parts: list[tuple[Part, slice]], cells: NDArray[np.int64]) -> Tensor:
    """Of new connections: fixed ones, as `deep_r.signs_at` has them, or none yet."""
    if not walker.fixed:
        return torch.zeros(cells.size).to(walker.signs)
    keys = np.repeat([part.sign_key for part, _ in parts], [w.stop - w.start for _, w in parts])
    return torch.from_numpy((host_keys(keys, cells) & 1) * 2 - 1).to(walker.signs)
