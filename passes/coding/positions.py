"""Sorted positions in a long vector, at the speed of numpy: as gaps or as a mask.

A gap below 16 is a class of its own; a longer one is its bit length and the three bits after the
leading one, as a class, and the bits below, as they are: within a class gaps are nearly uniform.
A mask is eight elements to a byte. Classes and bytes are entropy-coded. The gaps of a few positions
are coded one by one, with an adaptive model, for which no table is written.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from passes.coding.cells import code_gaps
from passes.coding.drafts import Draft, DraftReader, Later
from passes.coding.planes import draft_bytes, read_bytes
from passes.coding.range_coder import Decoder, Encoder, damaged

Positions = NDArray[np.int64]

# Gaps below this are classes of their own; this many classes share a longer bit length.
_EXACT = 16
_FINE = 3
_FIRST_LENGTH = 5
_MOST_GAP = 1 << 32
# Fewer positions than one in so many, and no more than this, are worth an adaptive coder.
_SCARCE = 64
_MOST_SCARCE = 1 << 13
# Masks are tried from this share of elements on.
_DENSE = 24


class _Way(IntEnum):
    GAPS = 0
    MASK = 1
    ADAPTIVE = 2


def draft_positions(positions: Positions, size: int) -> Draft:
    """The shortest way to write positions.

    Args:
        positions: Ascending without repetition, shape `(n,)`.
        size: Length of the vector, less than 2^32.

    Returns:
        What `read_positions` reads.
    """
    out, best = Draft(), Draft()
    out.number(len(positions))
    if len(positions) * _SCARCE <= size and len(positions) <= _MOST_SCARCE:
        best.number(_Way.ADAPTIVE)
        best.block(_encode_scarce(positions, size))
    else:
        best.number(_Way.GAPS)
        _draft_gaps(best, positions)
    if len(positions) * _DENSE >= size:
        mask = np.zeros(size, np.bool_)
        mask[positions] = True
        other = Draft()
        other.number(_Way.MASK)
        other.extend(draft_bytes(np.packbits(mask)))
        best = min(best, other, key=lambda draft: draft.bits)
    out.extend(best)
    return out


def read_positions(reader: DraftReader, size: int) -> tuple[int, Callable[[], Positions]]:
    """Read what `draft_positions` drafted.

    Args:
        reader: Where from.
        size: Length of the vector.

    Returns:
        How many positions there are, and what gives them once symbols are decoded, int64 of shape
        `(n,)`; that raises StorageError as well.

    Raises:
        StorageError: The data are damaged.
    """
    count = reader.number(size)
    way = _Way(reader.number(max(_Way)))
    if way is _Way.ADAPTIVE:
        found = partial(_decode_scarce, reader.block(), size)
    elif way is _Way.MASK:
        found = partial(_in_mask, read_bytes(reader, -(-size // 8)), size)
    else:
        found = partial(_from_gaps, reader.symbols(count), reader.block(), size)

    def checked() -> Positions:
        positions = found()
        if len(positions) != count:
            raise damaged()
        return positions

    return count, checked


def _encode_scarce(positions: Positions, size: int) -> bytes:
    cells, coder = bytearray(size), Encoder()
    np.frombuffer(cells, np.uint8)[positions] = 1
    code_gaps(coder, cells)
    return coder.finish()


def _decode_scarce(data: memoryview, size: int) -> Positions:
    cells = bytearray(size)
    code_gaps(Decoder(bytes(data)), cells, most=_MOST_SCARCE)
    return np.flatnonzero(np.frombuffer(cells, np.uint8))


def _in_mask(packed: Later, size: int) -> Positions:
    return np.flatnonzero(np.unpackbits(packed(), count=size))


def _draft_gaps(out: Draft, positions: Positions) -> None:
    gaps = np.diff(positions, prepend=-1) - 1
    where = np.flatnonzero(gaps >= _EXACT)
    long = gaps[where]
    length = np.frexp(long.astype(np.float64))[1].astype(np.int64)
    widths = length - 1 - _FINE
    fine = (long >> widths) & ((1 << _FINE) - 1)
    classes = gaps.astype(np.uint8)
    classes[where] = _EXACT + ((length - _FIRST_LENGTH) << _FINE) + fine
    out.symbols(classes)
    rest = long & ((1 << widths) - 1)
    blocks = []
    for width in np.unique(widths).tolist():
        # Shape (gaps of this bit length, bits).
        bits = rest[widths == width][:, None] >> np.arange(width) & 1
        blocks.append(np.packbits(bits.astype(np.bool_)).tobytes())
    out.block(b"".join(blocks))


def _from_gaps(later: Later, block: memoryview, size: int) -> Positions:
    classes = later()
    table = np.arange(256)
    shift = np.maximum((table - _EXACT) >> _FINE, 0) + _FIRST_LENGTH - 1 - _FINE
    fine = ((table - _EXACT) & ((1 << _FINE) - 1)) | 1 << _FINE
    if len(classes) and int(shift[classes.max()]) + _FINE >= _MOST_GAP.bit_length():
        raise damaged()
    widths = np.where(table < _EXACT, 0, shift)
    heads = np.where(table < _EXACT, table, fine << np.minimum(widths, 32))
    gaps: Positions = heads[classes]
    where = np.flatnonzero(classes >= _EXACT)
    widths_of, rest = widths[classes[where]], np.frombuffer(block, np.uint8)
    for width in np.unique(widths_of).tolist():
        members = where[widths_of == width]
        part, rest = np.split(rest, [-(-len(members) * width // 8)])
        if 8 * len(part) < len(members) * width:
            raise damaged()
        bits = np.unpackbits(part, count=len(members) * width).reshape(-1, width)
        gaps[members] += bits.astype(np.int64) @ (1 << np.arange(width))
    positions = np.cumsum(gaps + 1) - 1
    if len(rest) or (len(positions) and not 0 <= positions[-1] < size):
        raise damaged()
    return positions
