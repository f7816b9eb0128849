"""How the nonzeros of a tensor can be laid out, and how many bytes each way takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.gaps import GAP_WIDTHS, Array, Positions, encode_gaps, fillers, pack_bits, pack_nibbles

BITMAP = 1
LINEAR = 64
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT8: 8,
    TensorProto.INT4: 4,
}
FLOATS: frozenset[int] = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
CODES: frozenset[int] = frozenset({TensorProto.INT8, TensorProto.INT4})


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to store a tensor with zeros.

    Attributes:
        positions: Bits of a position: 4, 8 or 16 for gaps, 1 for a bitmap of all elements, 64 for
            the linear indices of a sparse initialiser, 0 for a tensor of zeros.
        entries: Values that are stored: one per nonzero, the fillers of gaps, and for a bitmap one
            zero that stands for all others.
        values: ONNX type of the stored values.
        size: Elements of the tensor.
    """

    positions: int
    entries: int
    values: int
    size: int

    @property
    def position_bytes(self) -> int:
        """Bytes of the positions."""
        count = self.size if self.positions == BITMAP else self.entries
        return math.ceil(self.positions * count / 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of the values."""
        return math.ceil(_BITS[self.values] * self.entries / 8)

    def payloads(self, array: Array) -> tuple[bytes, bytes]:
        """What is stored for an array: its positions and its values.

        Args:
            array: The array that the layout was made for; codes of four bits as int8.
        """
        flat = array.reshape(-1)
        positions = np.flatnonzero(flat)
        values, where = flat[positions], b""
        if self.positions == LINEAR:
            where = positions.astype("<i8").tobytes()
        elif self.positions == BITMAP:
            where = pack_bits(positions, self.size)
            values = np.concatenate([np.zeros(1, flat.dtype), values])
        elif self.positions:
            gaps, places = encode_gaps(positions, self.positions)
            where = pack_nibbles(gaps) if self.positions == 4 else _raw(gaps, self.positions)
            values = np.zeros(self.entries, flat.dtype)
            values[places] = flat[positions]
        four = self.values == TensorProto.INT4
        return where, pack_nibbles(values) if four else _raw(values, _BITS[self.values])


def _raw(values: Array, bits: int) -> bytes:
    kind = f"<{values.dtype.kind}{bits // 8}"
    return values.astype(kind).tobytes()


def layouts_of(
    array: Array, data_type: int, *, initializers: bool = False, packed: bool = True
) -> list[Layout]:
    """The ways in which a tensor can be stored; none without zeros, or for another type.

    Args:
        array: Any shape; codes of four bits as int8.
        data_type: Its ONNX type: FLOAT, FLOAT16, DOUBLE, INT8 or INT4.
        initializers: Sparse initialisers instead of nodes that decode; not for INT4.
        packed: Whether types of four bits may be used: from opset 21 on.
    """
    flat, size = array.reshape(-1), array.size
    positions: Positions = np.flatnonzero(flat)
    kept = len(positions)
    if data_type not in _BITS or kept == size:
        return []
    if initializers:
        return [] if data_type == TensorProto.INT4 else [Layout(LINEAR, kept, data_type, size)]
    if kept == 0:
        return [Layout(0, 0, data_type, size)]
    values = data_type
    if packed and data_type == TensorProto.INT8 and flat.min() >= -8 and flat.max() <= 7:
        values = TensorProto.INT4
    gaps = [
        Layout(width, kept + int(fillers(positions, width).sum()), values, size)
        for width in GAP_WIDTHS
        if packed or width > 4
    ]
    return [*gaps, Layout(BITMAP, kept + 1, values, size)]


def array_of(tensor: TensorProto) -> Array:
    """The elements of an initialiser; codes of four bits as int8."""
    array = numpy_helper.to_array(tensor)
    return array.astype(np.int8) if tensor.data_type == TensorProto.INT4 else array


def empty_tensor(name: str, data_type: int, dims: tuple[int, ...]) -> onnx.TensorProto:
    """A tensor without its elements."""
    return TensorProto(name=name, data_type=data_type, dims=dims)
