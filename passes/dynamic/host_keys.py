"""The numbers of `random_keys` by numpy: for few of them, or on the CPU, several times faster."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from passes.dynamic.random_keys import GAMMA, MIX_1, MIX_2

_MASK = (1 << 64) - 1


def host_keys(key: int | NDArray[np.int64], counters: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same as `random_keys.keys_at`.

    Args:
        key: From `random_keys.key_of`; an array has one for each number.
        counters: int64, shape `(n,)`.

    Returns:
        int64, shape `(n,)`.
    """
    state = counters.view(np.uint64) + np.uint64(1)
    state *= _word(GAMMA)
    state += _word(key) if isinstance(key, int) else key.view(np.uint64)
    mixed = state >> np.uint64(30)
    state ^= mixed
    state *= _word(MIX_1)
    np.right_shift(state, np.uint64(27), out=mixed)
    state ^= mixed
    state *= _word(MIX_2)
    np.right_shift(state, np.uint64(31), out=mixed)
    state ^= mixed
    return state.view(np.int64)


def host_halves(keys: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The higher and the lower 32 bits of every key as numbers from 0 to 2^32 - 1."""
    words = keys.view(np.uint32)
    first, second = words[::2].astype(np.float64), words[1::2].astype(np.float64)
    return (second, first) if sys.byteorder == "little" else (first, second)


def _word(value: int) -> np.uint64:
    return np.uint64(value & _MASK)
