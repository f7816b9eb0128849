"""Magnitudes of weights, counted by the leading bits of their float32 patterns.

The bit pattern of a nonnegative float32 grows with its value. Its 16 leading bits (8 of exponent,
8 of mantissa) sort the weights of a layer into 65,536 bins in one pass; whatever must be exact is
then decided among the few weights of a few bins. No layer is ever sorted as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import PreconditionError

BINS = 1 << 16
_SHIFT = 15  # 31 bits of magnitude, 16 of them lead
_NOT_FINITE = 0x7F800000 >> _SHIFT
# About 1 MiB of float32: the temporaries of one chunk stay in the cache.
_CHUNK = 1 << 18


def _patterns(flat: Tensor) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Starts of chunks and the patterns of their magnitudes; each is overwritten by the next.

    numpy and not torch: on a busy machine the barriers of torch's thread pool, several per chunk,
    cost many times what a second thread saves.
    """
    buffer = np.empty(min(_CHUNK, flat.numel()), dtype=np.int32)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK].to("cpu", torch.float32).contiguous()
        patterns = buffer[: chunk.numel()]
        np.bitwise_and(chunk.numpy().view(np.int32), 0x7FFFFFFF, out=patterns)
        yield start, patterns


def _within(patterns: NDArray[np.int32], low: int, high: int) -> NDArray[np.int64]:
    """Positions of `low <= pattern <= high`; the patterns are overwritten."""
    np.subtract(patterns, low, out=patterns)
    # What lies below wraps around to large values: one comparison instead of two.
    return np.flatnonzero(patterns.view(np.uint32) <= high - low)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Nonzero weights of one layer per magnitude bin.

    Attributes:
        counts: int64 array of shape `(65536,)`; bin 0 leaves exact zeros out.
        nonzeros: Their sum.
    """

    counts: NDArray[np.int64]
    nonzeros: int

    def bin_of_rank(self, rank: int) -> tuple[int, int]:
        """Find the bin of the weight with `rank` (0 is the largest).

        Returns:
            The bin, and how many weights lie in larger bins.
        """
        descending = np.cumsum(self.counts[::-1])
        position = int(np.searchsorted(descending, rank, side="right"))
        above = int(descending[position - 1]) if position else 0
        return BINS - 1 - position, above


def histogram(weight: Tensor, name: str = "") -> Histogram:
    """Count the nonzero weights of a layer per magnitude bin, in one pass.

    Args:
        weight: Tensor of any shape and floating dtype.
        name: The layer's name, for the error.

    Raises:
        PreconditionError: A weight is NaN or infinite.
    """
    flat = weight.detach().reshape(-1)
    result = np.zeros(BINS, dtype=np.int64)
    for _, patterns in _patterns(flat):
        result += np.bincount(patterns >> _SHIFT, minlength=BINS)
    if result[_NOT_FINITE:].any():
        raise PreconditionError(
            f"{int(result[_NOT_FINITE:].sum())} of {flat.numel()} weights are NaN, infinite or "
            "beyond float32",
            where=name,
            remedy="Repair or retrain the model first: no budget can be proved on such weights.",
        )
    if result[0]:  # zeros lie there, and numbers below the normal ones
        result[0] -= flat.numel() - int(torch.count_nonzero(flat))
    return Histogram(result, int(result.sum()))


def bin_edges(bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the magnitudes in each bin, widened for weights that float32 rounds.

    Returns:
        Two float64 arrays: no weight of bin `b` is smaller than `low[b]` or larger than `high[b]`.
    """
    patterns = (bins.astype(np.int64) << _SHIFT).astype(np.int32)
    low = np.maximum(patterns - 1, 0).astype(np.int32).view(np.float32).astype(np.float64)
    last = np.minimum(patterns.astype(np.int64) + (1 << _SHIFT), 0x7F7FFFFF)
    high = last.astype(np.int32).view(np.float32).astype(np.float64)
    high[bins == 0] = np.finfo(np.float32).tiny
    return low, high


def gather(weight: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Collect the nonzero weights of the bins `first` to `last`, both included.

    Returns:
        Flat indices, int64 of shape `(n,)` and ascending; magnitudes, float64 of shape `(n,)`.
    """
    flat = weight.detach().reshape(-1)
    low, high = first << _SHIFT, ((last + 1) << _SHIFT) - 1
    found = [start + _within(patterns, low, high) for start, patterns in _patterns(flat)]
    return _nonzero_items(flat, found)


def _nonzero_items(flat: Tensor, found: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    joined = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    index = torch.from_numpy(joined).to(flat.device)
    magnitude = flat[index].abs().to(torch.float64)
    if not magnitude.all():
        index, magnitude = index[magnitude > 0], magnitude[magnitude > 0]
    return index, magnitude


def ranked(weight: Tensor, counts: Histogram, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The weights with ranks `start` to `stop - 1` in their layer.

    Rank 0 is the largest magnitude; ties are broken by flat index.

    Returns:
        Flat indices, int64; magnitudes, float64 and descending; both of shape `(stop - start,)`.
    """
    stop = min(stop, counts.nonzeros)
    if start >= stop:
        empty = torch.empty(0, device=weight.device)
        return empty.to(torch.int64), empty.to(torch.float64)
    high, above = counts.bin_of_rank(start)
    low, _ = counts.bin_of_rank(stop - 1)
    index, magnitude = gather(weight, low, high)
    order = torch.argsort(magnitude, descending=True, stable=True)[start - above : stop - above]
    return index[order], magnitude[order]


def top_mask(weight: Tensor, count: int, counts: Histogram | None = None) -> Tensor:
    """Mark the `count` largest magnitudes of a layer.

    Args:
        weight: Tensor of any shape.
        count: How many to keep; zeros are never kept, so at most the nonzeros.
        counts: The layer's histogram, if it is at hand.

    Returns:
        Boolean tensor of the shape of `weight`. Ties are broken by flat index.
    """
    counts = counts or histogram(weight)
    if count >= counts.nonzeros:
        return weight.detach() != 0
    flat = weight.detach().reshape(-1)
    mask = np.zeros(flat.numel(), dtype=np.bool_)
    if count > 0:
        boundary, above = counts.bin_of_rank(count - 1)
        low, high = boundary << _SHIFT, ((boundary + 1) << _SHIFT) - 1
        found = []
        for start, patterns in _patterns(flat):
            np.greater(patterns, high, out=mask[start : start + len(patterns)])
            found.append(start + _within(patterns, low, high))
        index, magnitude = _nonzero_items(flat, found)
        order = torch.argsort(magnitude, descending=True, stable=True)
        mask[index[order[: count - above]].cpu().numpy()] = True
    return torch.from_numpy(mask).to(weight.device).view(weight.shape)
