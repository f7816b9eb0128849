"""Positions of nonzeros, written small: as the gaps between them, or as one bit per element.

Gaps after Han, Mao, Dally, "Deep Compression", ICLR 2016, section 2: a gap that a code cannot hold
is bridged by fillers, entries whose value is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Positions = NDArray[np.int64]

GAP_WIDTHS = (4, 8, 16)
"""Widths of a gap, in bits."""


def fillers(positions: Positions, width: int) -> Positions:
    """How many fillers stand before each position.

    Args:
        positions: Shape `(n,)`, ascending without repetition, from 0.
        width: Bits of a gap.

    Returns:
        Counts, shape `(n,)`.
    """
    gaps = np.diff(positions, prepend=0)
    # The last gap of a bridge is at least 1, so that a filler never lies on a nonzero.
    counts: Positions = np.maximum(gaps - 1, 0) // (2**width - 1)
    return counts


def encode_gaps(positions: Positions, width: int) -> tuple[NDArray[np.uint16], Positions]:
    """Write positions as gaps: the first from 0, every other from the entry before.

    Args:
        positions: Shape `(n,)`, ascending without repetition, from 0.
        width: Bits of a gap, 4, 8 or 16.

    Returns:
        The gaps of all entries, shape `(entries,)`; and which entry belongs to each position, shape
        `(n,)`. The other entries are fillers.
    """
    largest = 2**width - 1
    before = fillers(positions, width)
    places = np.arange(len(positions), dtype=np.int64) + np.cumsum(before)
    gaps = np.full(len(positions) + int(before.sum()), largest, dtype=np.uint16)
    gaps[places] = np.diff(positions, prepend=0) - before * largest
    return gaps, places


def decode_gaps(gaps: Array) -> Positions:
    """Positions of all entries, the fillers included; the inverse of `encode_gaps`."""
    return np.cumsum(gaps, dtype=np.int64)


def pack_nibbles(codes: Array) -> bytes:
    """Four bits each, the first in the low half of a byte, as ONNX stores INT4 and UINT4.

    Args:
        codes: Integers of -8 to 15, shape `(n,)`.
    """
    nibbles = codes.astype(np.int64) & 15
    padded = np.append(nibbles, np.zeros(len(nibbles) % 2, np.int64))
    packed: NDArray[np.uint8] = (padded[::2] | padded[1::2] << 4).astype(np.uint8)
    return packed.tobytes()


def pack_bits(positions: Positions, size: int) -> bytes:
    """One bit per element, the first in the lowest bit of a byte; set at the positions."""
    kept = np.zeros(size, dtype=bool)
    kept[positions] = True
    return np.packbits(kept, bitorder="little").tobytes()
