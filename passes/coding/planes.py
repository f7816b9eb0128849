"""Elements as planes of bytes, each entropy-coded where that makes it smaller.

Floats are turned by one bit first, so that one plane holds the exponents and the signs stand with
the fraction, which nothing compresses. Signed integers are folded: 0, -1, 1, -2, 2, ...
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from passes.coding.drafts import Draft, DraftReader, Later
from passes.coding.lanes import Symbols
from passes.coding.patterns import Array
from passes.coding.range_coder import damaged
from passes.coding.rans import histogram, stream_bits

# A plane is coded if this many sampled bytes promise to lose one part in so many.
_SAMPLE = 1 << 16
_WORTH = 128


def draft_bytes(symbols: Symbols) -> Draft:
    """Bytes as they are, or entropy-coded if that is shorter.

    Args:
        symbols: Shape `(n,)`.

    Returns:
        What `read_bytes` reads.
    """
    out = Draft()
    sample = symbols[:: max(len(symbols) // _SAMPLE, 1)]
    if stream_bits(histogram(sample)) < 8 * len(sample) * (_WORTH - 1) // _WORTH:
        out.number(1)
        out.symbols(symbols)
        if out.bits < 8 * len(symbols):
            return out
        out = Draft()
    out.number(0)
    out.block(symbols.data)
    return out


def read_bytes(reader: DraftReader, count: int) -> Later:
    """Read what `draft_bytes` drafted.

    Args:
        reader: Where from.
        count: How many bytes there are.

    Raises:
        StorageError: The data are damaged.
    """
    if reader.number(1):
        return reader.symbols(count)
    block = reader.block()
    if len(block) != count:
        raise damaged()
    return lambda: np.frombuffer(block, np.uint8)


def draft_planes(bits: Array, kind: str) -> Draft:
    """Elements as planes.

    Args:
        bits: Unsigned integers, shape `(n,)`.
        kind: `"f"` for floats, `"i"` for signed integers, as of `numpy.dtype.kind`. Unsigned
            integers of two bytes are taken for bfloat16.

    Returns:
        What `read_planes` reads.
    """
    turned = _turned(bits, kind)
    bytes_of = turned.astype(turned.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    out = Draft()
    for plane in bytes_of.reshape(len(bits), bits.dtype.itemsize).T:
        out.extend(draft_bytes(np.ascontiguousarray(plane)))
    return out


def read_planes(
    reader: DraftReader, dtype: np.dtype[np.generic], count: int
) -> Callable[[Array], None]:
    """Read what `draft_planes` drafted.

    Args:
        reader: Where from.
        dtype: Of the elements; its kind is the one that was written.
        count: How many elements there are.

    Returns:
        What writes them into unsigned integers, shape `(count,)`, once symbols are decoded.

    Raises:
        StorageError: The data are damaged.
    """
    planes = [read_bytes(reader, count) for _ in range(dtype.itemsize)]

    def fill(out: Array) -> None:
        turned = np.empty(count, f"<u{dtype.itemsize}")
        bytes_of = turned.view(np.uint8).reshape(count, dtype.itemsize)
        for place, found in enumerate(planes):
            bytes_of[:, place] = found()
        out[:] = _turned_back(turned.astype(out.dtype, copy=False), dtype.kind)

    return fill


def _is_float(dtype: np.dtype[np.generic], kind: str) -> bool:
    return kind == "f" or (kind == "u" and dtype.itemsize == 2)


def _turned(bits: Array, kind: str) -> Array:
    top = 8 * bits.dtype.itemsize - 1
    one = bits.dtype.type(1)
    if _is_float(bits.dtype, kind):
        bits = bits << one | bits >> bits.dtype.type(top)
    elif kind == "i":
        bits = bits << one ^ (~(bits >> bits.dtype.type(top)) + one)
    return bits


def _turned_back(turned: Array, kind: str) -> Array:
    top = 8 * turned.dtype.itemsize - 1
    one = turned.dtype.type(1)
    if _is_float(turned.dtype, kind):
        turned = turned >> one | turned << turned.dtype.type(top)
    elif kind == "i":
        turned = turned >> one ^ (~(turned & one) + one)
    return turned
