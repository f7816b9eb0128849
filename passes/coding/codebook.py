"""Whether a long vector takes few values, and which one each element has."""

from __future__ import annotations

import numpy as np

from passes.coding.lanes import Symbols
from passes.coding.levels import MOST_LEVELS
from passes.coding.patterns import Array

_SAMPLE = 1 << 12
# Slots of a table that is addressed by a product's high bits, and odd factors to try.
_SLOT_BITS = 16
_TRIES = 40
_FACTOR = 0x9E3779B97F4A7C15


def find_codebook(bits: Array) -> tuple[Array, Symbols] | None:
    """The values that a vector takes, and the number of each element's value.

    Args:
        bits: Unsigned integers of 2, 4 or 8 bytes, shape `(n,)`, n positive.

    Returns:
        The values, ascending, shape `(levels,)`, and codes, shape `(n,)`; `None` if there are more
        than `MOST_LEVELS`.
    """
    levels = np.unique(bits[:: max(len(bits) // _SAMPLE, 1)])
    while len(levels) <= MOST_LEVELS:
        codes = _codes(bits, levels)
        others = bits[levels[codes] != bits]
        if not len(others):
            return levels, codes
        levels = np.union1d(levels, others[: MOST_LEVELS + 1])
    return None


def _codes(bits: Array, levels: Array) -> Symbols:
    """The number of each element's level; anything for an element that is none of them."""
    width = 8 * bits.dtype.itemsize
    shift = bits.dtype.type(width - _SLOT_BITS)
    for attempt in range(1, _TRIES):
        factor = bits.dtype.type(((_FACTOR * attempt) | 1) & ((1 << width) - 1))
        slots = levels * factor >> shift
        if len(np.unique(slots)) == len(levels):
            table = np.zeros(1 << _SLOT_BITS, np.uint8)
            table[slots] = np.arange(len(levels))
            codes: Symbols = table[bits * factor >> shift]
            return codes
    found = np.searchsorted(levels, bits)
    return np.minimum(found, len(levels) - 1).astype(np.uint8)
