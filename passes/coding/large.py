"""Large tensors, bit for bit, at the speed of numpy.

Tensors are cut into chunks, each of them written in the cheapest of these ways:

    CODES          codebook; the code of every element
    SPARSE_CODES   codebook; where the elements off the background are, and their codes
    PLANES         the bytes of all elements, exponents apart from fractions
    SPARSE_PLANES  where the elements that are not zero are, and their bytes

Codes, positions and bytes are entropy-coded (`passes.coding.rans`) where that makes them smaller,
those of all tensors together: the more symbols there are, the faster is each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import partial

import numpy as np

from passes.coding.codebook import find_codebook
from passes.coding.drafts import Draft, DraftReader, Later
from passes.coding.frames import Buffer, Writer
from passes.coding.lanes import Symbols
from passes.coding.levels import MOST_LEVELS
from passes.coding.patterns import Array, array_of, bits_of, kind_of
from passes.coding.planes import draft_planes, read_planes
from passes.coding.positions import draft_positions, read_positions
from passes.coding.range_coder import damaged
from passes.coding.rans import histogram, stream_bits

DType = np.dtype[np.generic]
Fill = Callable[[Array], None]
"""Writes the elements of a chunk, as unsigned integers, once symbols are decoded."""

CHUNK = 1 << 22
"""Elements that are coded together."""

# Where this share of the elements is zero, or more, writing positions may pay.
_SPARSE = 64
# Where one in so many is, it does.
_SURELY_SPARSE = 4
# Positions are faster: a thousandth may be lost to them.
_TOLERANCE = 1024


class Form(IntEnum):
    """How a chunk is written."""

    CODES = 0
    SPARSE_CODES = 1
    PLANES = 2
    SPARSE_PLANES = 3


def encode_large(arrays: Iterable[Array]) -> Writer:
    """Code tensors together.

    Args:
        arrays: Floats of 16, 32 or 64 bits, integers of 8 to 64 bits, or booleans, of any shape;
            bfloat16 as uint16, int4 as int8.

    Returns:
        What `decode_large` reads; types and shapes are not in it.

    Raises:
        ArgumentError: Elements of another type.
    """
    out = Draft()
    for array in arrays:
        kind_of(array.dtype)
        bits = bits_of(array)
        for first in range(0, len(bits), CHUNK):
            out.extend(_draft_chunk(bits[first : first + CHUNK], array.dtype.kind))
    return out.finish()


def decode_large(data: Buffer, types: Sequence[tuple[DType, tuple[int, ...]]]) -> Iterator[Array]:
    """Read tensors.

    Args:
        data: From `encode_large`.
        types: Type and shape of every tensor, as they were written.

    Returns:
        The tensors, of these types and shapes; symbols are decoded before the first one, and each
        is put together when it is asked for.

    Raises:
        StorageError: The data are damaged.
        ArgumentError: A type that cannot be coded.
    """
    reader, fills = DraftReader(data), []
    for dtype, shape in types:
        kind_of(dtype)
        size = int(np.prod(shape, dtype=np.int64))
        chunks = [min(CHUNK, size - first) for first in range(0, size, CHUNK)]
        fills.append([_read_chunk(reader, dtype, count) for count in chunks])
    reader.decode()
    return map(_filled, types, fills)


def _filled(of: tuple[DType, tuple[int, ...]], fills: list[Fill]) -> Array:
    dtype, shape = of
    bits = np.empty(int(np.prod(shape, dtype=np.int64)), f"u{dtype.itemsize}")
    for number, fill in enumerate(fills):
        fill(bits[number * CHUNK : (number + 1) * CHUNK])
    return array_of(bits, dtype, shape)


def _draft_chunk(bits: Array, kind: str) -> Draft:
    if bits.dtype.itemsize == 1:
        return _draft_planes(bits, kind)
    found = find_codebook(bits)
    if found is not None:
        return _draft_codes(*found)
    if np.count_nonzero(bits) < len(bits):
        # As many levels as a codebook has, and zero besides.
        places = np.flatnonzero(bits)
        found = find_codebook(bits[places])
        if found is not None:
            return _sparse_codes(0, draft_positions(places, len(bits)), *found)
    return _draft_planes(bits, kind)


def _draft_codes(levels: Array, codes: Symbols) -> Draft:
    counts = histogram(codes)
    background = int(counts.argmax())
    dense = stream_bits(counts)
    if 2 * counts[background] > len(codes):
        places = np.flatnonzero(codes != background)
        positions = draft_positions(places, len(codes))
        counts[background] = 0
        if positions.bits + stream_bits(counts) <= dense + dense // _TOLERANCE:
            return _sparse_codes(int(levels[background]), positions, levels, codes[places])
    out = Draft()
    out.number(Form.CODES)
    _write_levels(out, levels)
    out.symbols(codes)
    return out


def _sparse_codes(background: int, positions: Draft, levels: Array, codes: Symbols) -> Draft:
    out = Draft()
    out.number(Form.SPARSE_CODES)
    out.number(background)
    _write_levels(out, levels)
    out.extend(positions)
    out.symbols(codes)
    return out


def _draft_planes(bits: Array, kind: str) -> Draft:
    drafts, size = [], len(bits)
    zeros = size - int(np.count_nonzero(bits))
    if _SPARSE * zeros > size:
        places, sparse = np.flatnonzero(bits), Draft()
        sparse.number(Form.SPARSE_PLANES)
        sparse.extend(draft_positions(places, size))
        sparse.extend(draft_planes(bits[places], kind))
        drafts.append(sparse)
    if _SURELY_SPARSE * zeros < size:
        dense = Draft()
        dense.number(Form.PLANES)
        dense.extend(draft_planes(bits, kind))
        drafts.append(dense)
    return min(drafts, key=lambda draft: draft.bits)


def _read_chunk(reader: DraftReader, dtype: DType, count: int) -> Fill:
    form = Form(reader.number(max(Form)))
    if form is Form.CODES:
        levels = _read_levels(reader, dtype)
        return partial(_take, levels, reader.symbols(count))
    if form is Form.PLANES:
        return read_planes(reader, dtype, count)
    return _read_sparse(reader, form, dtype, count)


def _read_sparse(reader: DraftReader, form: Form, dtype: DType, count: int) -> Fill:
    background = 0
    if form is Form.SPARSE_CODES:
        background = reader.number((1 << 8 * dtype.itemsize) - 1)
        levels = _read_levels(reader, dtype)
    inside, places = read_positions(reader, count)
    if form is Form.SPARSE_CODES:
        fill_inside: Fill = partial(_take, levels, reader.symbols(inside))
    else:
        fill_inside = read_planes(reader, dtype, inside)

    def fill(out: Array) -> None:
        others = np.empty(inside, out.dtype)
        fill_inside(others)
        out[:] = background
        out[places()] = others

    return fill


def _take(levels: Array, later: Later, out: Array) -> None:
    codes = later()
    if len(codes) and int(codes.max()) >= len(levels):
        raise damaged()
    np.take(levels, codes, out=out, mode="wrap")


def _write_levels(out: Draft, levels: Array) -> None:
    out.number(len(levels))
    out.block(levels.astype(levels.dtype.newbyteorder("<")).tobytes())


def _read_levels(reader: DraftReader, dtype: DType) -> Array:
    count = reader.number(MOST_LEVELS)
    block = reader.block()
    if not count or len(block) != count * dtype.itemsize:
        raise damaged()
    return np.frombuffer(block, f"<u{dtype.itemsize}").astype(f"u{dtype.itemsize}")
