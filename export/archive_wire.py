"""The wire format of protobuf as far as an archive reads it, and the messages of ONNX.

The tables belong to version 1 of the archive for ever: a field that they do not know is carried as
bytes, so that files of later versions of ONNX survive, only less small.

Source: Protocol Buffers, "Encoding"; onnx.proto3 of ONNX 1.23.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

MAX_DEPTH: Final = 100
"""Messages inside messages: as many as the libraries of protobuf read."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_MAX_VARINT = 10
_FIXED = {FIXED64: 8, FIXED32: 4}


class Kind(Enum):
    """How the content of a field of bytes is written in a skeleton."""

    TEXT = "text"
    INPUT = "node input"
    OUTPUT = "node output"
    NODE = "node name"
    TENSOR = "tensor name"
    VALUE = "value name"
    DIMS = "dimensions in one field"
    PAYLOAD = "payload"


Field = str | Kind
"""What a field holds: a message, by its name, or bytes of some kind."""

_T = Kind.TEXT

FIELDS: Final[dict[str, dict[int, Field]]] = {
    "Model": {
        2: _T, 3: _T, 4: _T, 6: _T,
        7: "Graph", 8: "OperatorSet", 14: "Entry", 20: "Training", 25: "Function",
    },
    "OperatorSet": {1: _T},
    "Entry": {1: _T, 2: _T},
    "Graph": {
        1: "Node", 2: _T, 5: "Tensor", 10: _T, 11: "Value", 12: "Value", 13: "Value",
        14: "Annotation", 15: "Sparse", 16: "Entry",
    },
    "Node": {
        1: Kind.INPUT, 2: Kind.OUTPUT, 3: Kind.NODE, 4: _T, 5: "Attribute", 6: _T, 7: _T, 8: _T,
        9: "Entry",
    },
    "Attribute": {
        1: _T, 4: _T, 5: "Tensor", 6: "Graph", 9: _T, 10: "Tensor", 11: "Graph", 13: _T,
        14: "Type", 15: "Type", 21: _T, 22: "Sparse", 23: "Sparse",
    },
    "Tensor": {1: Kind.DIMS, 8: Kind.TENSOR, 9: Kind.PAYLOAD, 12: _T, 13: "Entry", 16: "Entry"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Value": {1: Kind.VALUE, 2: "Type", 3: _T, 4: "Entry"},
    "Type": {1: "Typed", 4: "Element", 5: "Map", 6: _T, 8: "Typed", 9: "Element"},
    "Typed": {2: "Shape"},
    "Shape": {1: "Dimension"},
    "Dimension": {2: _T, 3: _T},
    "Element": {1: "Type"},
    "Map": {2: "Type"},
    "Annotation": {1: _T, 2: "Entry"},
    "Training": {1: "Graph", 2: "Graph", 3: "Entry", 4: "Entry"},
    "Function": {
        1: _T, 4: _T, 5: _T, 6: _T, 7: "Node", 8: _T, 9: "OperatorSet", 10: _T, 11: "Attribute",
        12: "Value", 13: _T, 14: "Entry",
    },
}  # fmt: skip
"""What the fields of every message hold that are more than numbers."""


class IrregularError(ValueError):
    """Bytes that are not written as protobuf writes them."""


def put_varint(out: bytearray, value: int) -> None:
    """Append a number of 0 or more, seven bits a byte, the lowest first."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def varint(value: int) -> bytes:
    """A number as `put_varint` writes it."""
    out = bytearray()
    put_varint(out, value)
    return bytes(out)


class Source:
    """Bytes that are read from the front.

    Attributes:
        data: The bytes.
        position: Where the next one is read.
        end: Where they end.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.end = len(data)

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            IrregularError: There are fewer.
        """
        return self.data[self.skip(count) : self.position]

    def view(self, count: int) -> memoryview:
        """The next bytes, not copied.

        Raises:
            IrregularError: There are fewer.
        """
        return memoryview(self.data)[self.skip(count) : self.position]

    def skip(self, count: int) -> int:
        """Pass over bytes; where they begin.

        Raises:
            IrregularError: There are fewer.
        """
        begin = self.position
        self.position = self.reach(count)
        return begin

    def reach(self, count: int) -> int:
        """Where so many bytes end.

        Raises:
            IrregularError: There are fewer.
        """
        if count > self.end - self.position:
            raise IrregularError("a field reaches beyond the end")
        return self.position + count

    def number(self) -> int:
        """A number in the shortest form.

        Raises:
            IrregularError: It has no end, is too long, or could be shorter.
        """
        begin = self.position
        value = self.any_number()
        if self.position > begin + 1 and self.data[self.position - 1] == 0:
            raise IrregularError("a number is longer than it need be")
        return value

    def any_number(self) -> int:
        """A number in any form, modulo 2**64.

        Raises:
            IrregularError: It has no end, or is too long.
        """
        value = shift = 0
        data, position, end = self.data, self.position, self.end
        while position < end and shift < 7 * _MAX_VARINT:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.position = position
                return value & 0xFFFFFFFFFFFFFFFF
            shift += 7
        raise IrregularError("a number has no end")

    def scalar(self, wire: int) -> bytes:
        """The bytes of a value that is a number.

        Raises:
            IrregularError: The wire type is that of no number, or the bytes end.
        """
        if wire in _FIXED:
            return self.take(_FIXED[wire])
        if wire != VARINT:
            raise IrregularError(f"wire type {wire} is not used by ONNX")
        begin = self.position
        self.any_number()
        return self.data[begin : self.position]
