"""A tensor in as few bytes as possible, bit for bit, inside of a stream that holds many.

Its type and shape are known to both sides, and are not written.
"""

from __future__ import annotations

import numpy as np

from energy_model.errors import ArgumentError
from passes.coding.cells import Layout
from passes.coding.contents import (
    Content,
    cheapest_content,
    code_content,
    content_bits,
    content_cost,
)
from passes.coding.large import encode_large
from passes.coding.patterns import BFLOAT16, Array, array_of, bits_of, kind_of
from passes.coding.range_coder import Decoder, Encoder, Meter, damaged

LARGE = 1 << 18
"""Tensors of more symbols than this are coded by `large`, unless the caller says otherwise."""
MOST = 1 << 21
"""The largest tensor that `encode_tensor` takes, in elements."""

# Symbols that a nonzero takes: for its position, if those are written as gaps, and for its value.
_PER_GAP = 8
_PER_NONZERO = 4


def encode_tensor(out: Encoder | Meter, array: Array) -> None:
    """Write a tensor, or only count what it costs.

    Args:
        out: Where to.
        array: Floats of 16, 32 or 64 bits, integers of 8 to 64 bits, or booleans, of any shape;
            bfloat16 as uint16, int4 as int8.

    Raises:
        ArgumentError: Elements of another type, or more than `MOST`.
    """
    kind = kind_of(array.dtype)
    if array.size == 0:
        return
    if array.size > MOST:
        raise ArgumentError(
            f"a tensor of {array.size:,} elements is too long for a shared stream",
            where="encode_tensor",
            remedy="Use encode_large where is_large says so.",
        )
    layout = Layout.of(array.shape)
    bits = bits_of(array)
    content = cheapest_content(bits, kind, layout)
    if array.dtype == np.uint16:
        other = cheapest_content(bits, BFLOAT16, layout)
        if content_cost(other, BFLOAT16, layout) < content_cost(content, kind, layout):
            kind, content = BFLOAT16, other
        out.uniform(int(kind is BFLOAT16), 2)
    code_content(out, content, kind, layout)


def decode_tensor(
    source: Decoder, dtype: np.dtype[np.generic] | type[np.generic], shape: tuple[int, ...]
) -> Array:
    """Read a tensor.

    Args:
        source: Where from.
        dtype: As it was written.
        shape: As it was written.

    Returns:
        The tensor, of that type and shape.

    Raises:
        StorageError: No encoder wrote this.
        ArgumentError: A type that cannot be coded.
    """
    dtype = np.dtype(dtype)
    kind = kind_of(dtype)
    size = int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.zeros(shape, dtype)
    if size > MOST:
        raise damaged()
    if dtype == np.uint16 and source.uniform(0, 2):
        kind = BFLOAT16
    content = code_content(source, Content.blank(), kind, Layout.of(shape))
    bits = content_bits(content, kind, size)
    return array_of(bits, dtype, shape)


def tensor_bits(array: Array) -> float:
    """What a tensor costs, in bits, without its type and shape."""
    if is_large(array):
        return 8.0 * encode_large([array]).size
    meter = Meter()
    encode_tensor(meter, array)
    return meter.total


def coded_symbols(array: Array) -> int:
    """About how many symbols `encode_tensor` writes; each takes some microseconds.

    A zero is one, or less if zeros are many; what is not zero is some more.
    """
    if array.size > MOST:
        return int(array.size)
    others = int(np.count_nonzero(bits_of(array)))
    return min(int(array.size), _PER_GAP * others) + _PER_NONZERO * others


def is_large(array: Array, limit: int = LARGE) -> bool:
    """Whether `large` is to code a tensor, because one symbol at a time would take too long.

    Args:
        array: The tensor.
        limit: Most symbols that may be coded one at a time.
    """
    return coded_symbols(array) > limit
