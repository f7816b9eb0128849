"""An ONNX file without the elements of its tensors, written so that it repeats itself.

The skeleton says the same as the file, byte for byte: fields in their order, unknown ones included.
Lengths of messages are left out, for they follow from the content; a message ends with a zero. No
field is numbered zero, so that its tags are free: one of them is a dimension of a tensor that is
the first of the tensor before, as that of a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from energy_model.errors import ExportError
from export.archive_names import Names, read_text, write_text
from export.archive_tensors import is_padded_with_zeros, payload_bytes
from export.archive_wire import (
    BYTES,
    FIELDS,
    MAX_DEPTH,
    IrregularError,
    Kind,
    Source,
    put_varint,
    varint,
)

_INLINE = 8
"""Elements of so few bytes stay in the skeleton, among others that look alike."""

_END, _SAME_DIM, _TAKEN = 0, 1, 0
_DIMS_TAG, _TYPE_TAG, _LOCATION_TAG = 1 << 3, 2 << 3, 14 << 3
_EXTERNAL = b"\x01"


@dataclass(frozen=True, slots=True)
class Payload:
    """The elements of a tensor, `raw_data` in ONNX.

    Attributes:
        data_type: As ONNX numbers it.
        dims: Shape.
        bytes: How many.
        begin: Where they stand in the file; 0 when read from a skeleton.
    """

    data_type: int
    dims: tuple[int, ...]
    bytes: int
    begin: int = 0


Piece = bytes | Payload


class _Tensor:
    """What is known of a tensor when its elements come.

    Attributes:
        dims: Shape.
        data_type: As ONNX numbers it.
        first: Its first dimension as it is written; empty without any.
    """

    def __init__(self) -> None:
        self.dims: list[int] = []
        self.data_type = 0
        self.first = b""

    def note(self, tag: int, scalar: bytes) -> None:
        """Take in a number."""
        if tag == _DIMS_TAG:
            self.dims.append(Source(scalar).any_number())
            self.first = self.first or scalar
        elif tag == _TYPE_TAG:
            self.data_type = Source(scalar).any_number()

    def note_packed(self, numbers: bytes) -> None:
        """Take in all dimensions at once."""
        source = Source(numbers)
        while source.position < source.end:
            self.dims.append(source.any_number())

    def payload(self, begin: int = 0) -> Payload | None:
        """Its elements, if they are worth taking out."""
        size = payload_bytes(self.data_type, self.dims)
        if size is None or size <= _INLINE:
            return None
        return Payload(self.data_type, tuple(self.dims), size, begin)


def split(model: bytes) -> tuple[bytes, list[Payload]]:
    """Take the elements out of an ONNX file.

    Args:
        model: The file.

    Returns:
        The skeleton, and where the elements stand, in its order.

    Raises:
        IrregularError: The bytes are no protobuf, or not as its libraries write it.
        ExportError: Elements lie in other files.
    """
    splitter = _Splitter(model)
    splitter.message("Model", len(model), 0)
    return bytes(splitter.out), splitter.payloads


class _Splitter:
    def __init__(self, model: bytes) -> None:
        self.source = Source(model)
        self.out = bytearray()
        self.payloads: list[Payload] = []
        self.names = Names()
        self.dim = b""

    def message(self, message: str, end: int, depth: int) -> None:
        source, out, fields = self.source, self.out, FIELDS.get(message, {})
        outer, source.end = source.end, end
        if depth > MAX_DEPTH:
            raise IrregularError("messages are nested too deeply")
        tensor = _Tensor()
        if message == "Node":
            self.names.begin_node()
        while source.position < end:
            tag = source.number()
            number, wire = tag >> 3, tag & 7
            if number == _END:
                raise IrregularError("a field is numbered zero")
            if wire != BYTES:
                scalar = source.scalar(wire)
                self._scalar(message, tag, scalar, tensor)
                continue
            put_varint(out, tag)
            size = source.number()
            inner = fields.get(number)
            if isinstance(inner, str):
                self.message(inner, source.reach(size), depth + 1)
            else:
                self._bytes(inner, size, tensor)
        out.append(_END)
        source.end = outer
        self.dim = tensor.first or self.dim

    def _scalar(self, message: str, tag: int, scalar: bytes, tensor: _Tensor) -> None:
        if message == "Tensor":
            _require_inside(tag, scalar)
            tensor.note(tag, scalar)
            if tag == _DIMS_TAG and scalar == self.dim:
                self.out.append(_SAME_DIM)
                return
        put_varint(self.out, tag)
        self.out += scalar

    def _bytes(self, kind: Kind | None, size: int, tensor: _Tensor) -> None:
        source, out = self.source, self.out
        if kind is Kind.PAYLOAD:
            begin = source.skip(size)
            payload = tensor.payload(begin)
            if payload is not None and self._can_take(payload, size):
                out.append(_TAKEN)
                self.payloads.append(payload)
            else:
                put_varint(out, size + 1)
                out += source.data[begin : begin + size]
        elif kind in (None, Kind.DIMS):
            content = source.take(size)
            put_varint(out, size)
            out += content
            if kind is Kind.DIMS:
                tensor.note_packed(content)
        elif kind is Kind.TEXT:
            write_text(out, source.take(size))
        else:
            self.names.write(out, kind, source.take(size))

    def _can_take(self, payload: Payload, size: int) -> bool:
        """Whether so many bytes are just its elements."""
        if payload.bytes != size:
            return False
        last = self.source.data[payload.begin + size - 1]
        return is_padded_with_zeros(payload.data_type, payload.dims, last)


def _require_inside(tag: int, scalar: bytes) -> None:
    if tag == _LOCATION_TAG and scalar == _EXTERNAL:
        raise ExportError(
            "the model keeps weights in other files, and an archive is one file",
            remedy="Load it with onnx.load, and save it with onnx.save in one file.",
        )


def join(skeleton: bytes) -> list[Piece]:
    """Write the file again.

    Args:
        skeleton: As `split` returns it.

    Returns:
        The bytes of the file in their order, with payloads between them.

    Raises:
        IrregularError: It is no skeleton.
    """
    joiner = _Joiner(skeleton)
    pieces, _ = joiner.message("Model", 0)
    if joiner.source.position < joiner.source.end:
        raise IrregularError("something follows the skeleton")
    return list(_merged(pieces))


class _Joiner:
    def __init__(self, skeleton: bytes) -> None:
        self.source = Source(skeleton)
        self.names = Names()
        self.dim = b""

    def message(self, message: str, depth: int) -> tuple[list[Piece], int]:
        """The pieces of a message, and its size in bytes."""
        source, fields = self.source, FIELDS.get(message, {})
        if depth > MAX_DEPTH:
            raise IrregularError("messages are nested too deeply")
        tensor, pieces, total = _Tensor(), list[Piece](), 0
        if message == "Node":
            self.names.begin_node()
        while tag := source.number():
            number, wire = tag >> 3, tag & 7
            content, size = list[Piece](), 0
            if number == _END or wire != BYTES:
                head = self._scalar(message, tag, tensor)
            else:
                inner = fields.get(number)
                if isinstance(inner, str):
                    content, size = self.message(inner, depth + 1)
                else:
                    piece = self._bytes(inner, tensor)
                    content, size = [piece], _size(piece)
                head = varint(tag) + varint(size)
            pieces += [head, *content]
            total += len(head) + size
        self.dim = tensor.first or self.dim
        return pieces, total

    def _scalar(self, message: str, tag: int, tensor: _Tensor) -> bytes:
        if message == "Tensor" and tag == _SAME_DIM and self.dim:
            tag, scalar = _DIMS_TAG, self.dim
        elif tag >> 3 == _END:
            raise IrregularError("a field is numbered zero")
        else:
            scalar = self.source.scalar(tag & 7)
        if message == "Tensor":
            tensor.note(tag, scalar)
        return varint(tag) + scalar

    def _bytes(self, kind: Kind | None, tensor: _Tensor) -> Piece:
        source = self.source
        if kind is Kind.PAYLOAD:
            size = source.number()
            if size != _TAKEN:
                return source.take(size - 1)
            payload = tensor.payload()
            if payload is None:
                raise IrregularError("a tensor has no size")
            return payload
        if kind in (None, Kind.DIMS):
            content = source.take(source.number())
            if kind is Kind.DIMS:
                tensor.note_packed(content)
            return content
        return read_text(source) if kind is Kind.TEXT else self.names.read(source, kind)


def _size(piece: Piece) -> int:
    return piece.bytes if isinstance(piece, Payload) else len(piece)


def _merged(pieces: list[Piece]) -> Iterator[Piece]:
    """The same, with no two pieces of bytes in a row."""
    waiting = bytearray()
    for piece in pieces:
        if isinstance(piece, bytes):
            waiting += piece
            continue
        yield bytes(waiting)
        waiting.clear()
        yield piece
    yield bytes(waiting)
