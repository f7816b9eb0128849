"""Elements of ONNX tensors as arrays of numbers that can be coded, and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Layout(NamedTuple):
    """How the elements of a tensor lie in bytes.

    Attributes:
        dtype: What one is read as, least significant byte first.
        bits: Bits of one.
        words: How many of `dtype` make one element.
    """

    dtype: np.dtype[Any]
    bits: int
    words: int = 1


def _layout(name: str, bits: int = 0, words: int = 1) -> Layout:
    dtype = np.dtype(name).newbyteorder("<")
    return Layout(dtype, bits or dtype.itemsize * 8 * words, words)


LAYOUTS = {
    1: _layout("float32"), 2: _layout("uint8"), 3: _layout("int8"), 4: _layout("uint16"),
    5: _layout("uint16"), 6: _layout("int32"), 7: _layout("int64"), 9: _layout("uint8"),
    10: _layout("float16"), 11: _layout("float64"), 12: _layout("int32"), 13: _layout("int64"),
    14: _layout("float32", words=2), 15: _layout("float64", words=2), 16: _layout("uint16"),
    17: _layout("uint8"), 18: _layout("uint8"), 19: _layout("uint8"), 20: _layout("uint8"),
    21: _layout("uint8", 4), 22: _layout("int8", 4), 23: _layout("uint8", 4),
    24: _layout("uint8"), 25: _layout("uint8", 2), 26: _layout("int8", 2),
}  # fmt: skip
"""By ONNX's number of the type; what has none, such as strings, has no elements in bytes."""

_LARGEST = 1 << 31


def payload_bytes(data_type: int, dims: Sequence[int]) -> int | None:
    """Bytes of the elements of a tensor; None where they are not known, or beyond 2 GiB.

    Args:
        data_type: As ONNX numbers it.
        dims: Shape.
    """
    layout = LAYOUTS.get(data_type)
    if layout is None:
        return None
    size = math.prod(dims) * layout.bits + 7 >> 3
    return size if size < _LARGEST else None


def is_padded_with_zeros(data_type: int, dims: Sequence[int], last: int) -> bool:
    """Whether what the elements leave of the last byte is zero.

    Args:
        data_type: A type with a layout.
        dims: Shape.
        last: The last byte.
    """
    used = math.prod(dims) * LAYOUTS[data_type].bits % 8
    return used == 0 or last >> used == 0


def to_array(data: memoryview, data_type: int, dims: Sequence[int]) -> Array:
    """The elements of a tensor as they are coded; those of less than a byte stand in one each.

    Args:
        data: `payload_bytes` many.
        data_type: As ONNX numbers it.
        dims: Shape.

    Returns:
        Shape `dims`; of complex numbers `(*dims, 2)`.
    """
    layout = LAYOUTS[data_type]
    raw = np.frombuffer(data, layout.dtype)
    if layout.bits < 8:
        raw = _spread(raw, layout.bits)[: math.prod(dims)]
    return raw.reshape(coded_shape(data_type, dims))


def to_bytes(array: Array, data_type: int) -> memoryview:
    """The inverse of `to_array`.

    Args:
        array: Elements as they are coded.
        data_type: As ONNX numbers it.
    """
    layout = LAYOUTS[data_type]
    flat = np.ascontiguousarray(array, layout.dtype).reshape(-1)
    if layout.bits < 8:
        flat = _packed(flat.view(np.uint8), layout.bits)
    return flat.view(np.uint8).data


def coded_dtype(data_type: int) -> np.dtype[Any]:
    """What the elements of a type are coded as."""
    return LAYOUTS[data_type].dtype


def coded_shape(data_type: int, dims: Sequence[int]) -> tuple[int, ...]:
    """The shape in which they are coded."""
    words = LAYOUTS[data_type].words
    return (*dims, words) if words > 1 else tuple(dims)


def _spread(raw: Array, bits: int) -> Array:
    """Elements of less than a byte, the first in the lowest bits, one per byte, signs extended."""
    parts = np.empty((raw.size, 8 // bits), raw.dtype)
    for place in range(8 // bits):
        # Up to the top and down again: the shift of a signed number keeps its sign.
        parts[:, place] = np.left_shift(raw, 8 - bits * (place + 1)) >> (8 - bits)
    return parts.reshape(-1)


def _packed(codes: Array, bits: int) -> Array:
    """The inverse of `_spread`, with zeros in what is left of the last byte."""
    each = 8 // bits
    padded = np.zeros((-(-codes.size // each), each), np.uint8)
    padded.reshape(-1)[: codes.size] = codes & (1 << bits) - 1
    result = padded[:, 0].copy()
    for place in range(1, each):
        result |= padded[:, place] << np.uint8(bits * place)
    return result
