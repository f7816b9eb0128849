"""Which entry of a small bank every weight takes: the index of tied weights.

    W_i = xi(i) bank[h(i)],    dE/dbank_k = sum over i with h(i) = k of xi(i) dE/dW_i

Chen et al., ICML 2015: h is a hash of the position, xi a sign from a second hash, which takes the
bias out of collisions. Mostafa and Wang, ICML 2019, deal shuffled positions to the entries in turn
instead, without signs. Neither index is stored: both follow from a key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.dynamic.random_keys import uniform_indices, uniform_keys
from passes.dynamic.schedule import is_whole

_MOST_BUCKETS = 2**31 - 1


def bucket_count(n: int, density: float) -> int:
    """Entries of a bank for `n` weights: `round(density n)`, at least one.

    Raises:
        ArgumentError: The density is not a share above 0 and up to 1.
    """
    if not 0 < density <= 1:
        raise ArgumentError(
            f"density {density!r} is not allowed",
            where="bucket_count.density",
            remedy="Give a share above 0 and up to 1.",
        )
    return max(1, round(density * n))


def balanced_index(n: int, buckets: int, key: int) -> Tensor:
    """Shuffled positions, dealt to the entries in turn: their shares differ by one at most.

    Args:
        n: Positions.
        buckets: Entries, at most as many as positions.
        key: Of the shuffle.

    Returns:
        int32 of shape `(n,)`, each from 0 to `buckets - 1`.

    Raises:
        ArgumentError: There are no positions, no entries, or too many of them.
    """
    _check(n, buckets)
    # The one sort: it happens when the bank is made, never in training.
    shuffled = torch.argsort(uniform_keys(key, n))
    index = torch.empty(n, dtype=torch.int32)
    index[shuffled] = torch.arange(n).remainder(buckets).to(torch.int32)
    return index


def hashed_index(n: int, buckets: int, key: int) -> Tensor:
    """The hash of every position: entries get shares at random, and some may get none.

    Args:
        n: Positions.
        buckets: Entries, at most as many as positions.
        key: Of the hash.

    Returns:
        int32 of shape `(n,)`, each from 0 to `buckets - 1`.

    Raises:
        ArgumentError: As `balanced_index`.
    """
    _check(n, buckets)
    return uniform_indices(key, n, buckets).to(torch.int32)


def _check(n: int, buckets: int) -> None:
    if not (is_whole(n) and is_whole(buckets) and buckets <= min(n, _MOST_BUCKETS)):
        raise ArgumentError(
            f"{buckets!r} entries for {n!r} weights",
            where="tied weights",
            remedy="Give from one entry to as many as there are weights.",
        )


def bucket_sizes(index: Tensor, buckets: int) -> Tensor:
    """How many positions take each entry, int64 of shape `(buckets,)`."""
    return torch.bincount(index, minlength=buckets)
