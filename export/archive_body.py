"""The body of an archive: one stream of small things, and blocks behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from export.archive_skeleton import Payload, Piece, join, split
from export.archive_tensors import Array, coded_dtype, coded_shape, to_array, to_bytes
from export.archive_wire import IrregularError, Source, varint
from passes.coding.byte_model import decode_bytes, encode_bytes
from passes.coding.frames import Buffer
from passes.coding.large import decode_large, encode_large
from passes.coding.range_coder import Bit, Decoder, Encoder, Meter
from passes.coding.tensor import coded_symbols, decode_tensor, encode_tensor

BIGGEST: Final = 1 << 31
"""No ONNX file has so many bytes: protobuf allows none."""

_SHORT_SKELETON = 32 << 10
_SHORT_FILE = 8 << 20
# Symbols that are coded one at a time, in all: some ten microseconds each.
_PATIENCE, _LONG_PATIENCE = 1 << 19, 1 << 16
_SAMPLE = 4096
_LENGTH_BITS = 5
# Elements of the tensors that are coded together, unless a single one has more: they are so many
# that a step of numpy is long, and so few that their symbols take little memory.
_TOGETHER = 1 << 23
_LEVEL, _FAST_LEVEL, _SLOW_BYTES = 19, 6, 4 << 20
_PRIOR = Path(__file__).parent / "data" / "skeleton_prior_1.bin"


Type = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of a tensor as it is coded."""


class Form(IntEnum):
    """How a body is laid out; see `export.archive`."""

    STREAM = 0
    BLOCKS = 1
    LONG = 2
    WHOLE = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into the body, if it is not a whole file.

    Attributes:
        model: The ONNX file.
        skeleton: Everything but the elements of its tensors.
        payloads: Where those stand.
        large: Which of them become blocks.
    """

    model: bytes
    skeleton: bytes
    payloads: list[Payload]
    large: list[bool]

    @classmethod
    def of(cls, model: bytes) -> Plan | None:
        """The plan of a file; `None` for one without regular fields.

        Raises:
            ExportError: Elements lie in other files.
        """
        try:
            skeleton, payloads = split(model)
        except IrregularError:
            return None
        return cls(model, skeleton, payloads, _large(model, payloads))

    @property
    def form(self) -> Form:
        """How the body is laid out."""
        if len(self.model) > _SHORT_FILE or len(self.skeleton) > _SHORT_SKELETON:
            return Form.LONG
        return Form.BLOCKS if any(self.large) else Form.STREAM

    def write(self, out: Encoder | Meter) -> None:
        """Code everything that is not in blocks."""
        self.write_skeleton(out)
        if self.form is not Form.STREAM:
            code_groups(out, len(self.payloads), self._groups())
        for payload, large in zip(self.payloads, self.large, strict=True):
            if not large:
                encode_tensor(out, _array(self.model, payload))

    def write_skeleton(self, out: Encoder | Meter) -> None:
        """Code the skeleton, if that is not in a block."""
        if self.form is not Form.LONG:
            _code_length(out, len(self.skeleton))
            encode_bytes(out, self.skeleton, prior())

    def blocks(self) -> Iterator[Buffer]:
        """The blocks in pieces; one block is in memory at a time."""
        yield from self.skeleton_block()
        for tensors in self._groups():
            yield from self._block(tensors)

    def skeleton_block(self) -> Iterator[Buffer]:
        """The block of the skeleton in pieces, if it is in one."""
        if self.form is Form.LONG:
            block = zstd(self.skeleton)
            yield varint(len(block))
            yield block

    def _block(self, tensors: list[int]) -> Iterator[Buffer]:
        """The block of some tensors in pieces."""
        block = encode_large(_array(self.model, self.payloads[tensor]) for tensor in tensors)
        yield varint(block.size)
        yield from block.parts

    def _groups(self) -> list[list[int]]:
        """Which large tensors are coded together, ascending."""
        groups: list[list[int]] = []
        left = 0
        for tensor in np.flatnonzero(self.large).tolist():
            size = math.prod(self.payloads[tensor].dims)
            if not groups or size > left:
                groups.append([])
                left = _TOGETHER
            groups[-1].append(tensor)
            left -= size
        return groups


class Reader:
    """Reads a body that is not a whole file.

    Args:
        archive: The bytes of the archive.
        begin: Where its body begins.
        form: How that is laid out.

    Raises:
        IrregularError: It is cut off.
    """

    def __init__(self, archive: bytes, begin: int, form: Form) -> None:
        self.form = form
        self.blocks = Source(archive)
        self.blocks.position = begin
        size = len(archive) - begin if form is Form.STREAM else self.blocks.number()
        self.stream = Decoder(self.blocks.take(size))

    def parts(self) -> Iterator[bytes | memoryview]:
        """The parts of the file in their order; tensors are put together one by one.

        Raises:
            IrregularError: The body is damaged; coders and zstandard raise errors of their own.
        """
        pieces = join(self._skeleton())
        if sum(map(_size, pieces)) >= BIGGEST:
            raise IrregularError("the file in it would be larger than any ONNX file")
        arrays = self._arrays([_type(piece) for piece in pieces if isinstance(piece, Payload)])
        for piece in pieces:
            if isinstance(piece, Payload):
                yield to_bytes(next(arrays), piece.data_type)
            else:
                yield piece
        if self.blocks.position < self.blocks.end:
            raise IrregularError("something follows the last block")

    def _arrays(self, types: list[Type]) -> Iterator[Array]:
        """All tensors in their order."""
        groups = code_groups(self.stream, len(types)) if self.form is not Form.STREAM else []
        large = self._large(groups, types)
        inside = {tensor for tensors in groups for tensor in tensors}
        for number, (dtype, shape) in enumerate(types):
            yield next(large) if number in inside else decode_tensor(self.stream, dtype, shape)

    def _large(self, groups: list[list[int]], types: list[Type]) -> Iterator[Array]:
        """The tensors in blocks, in their order."""
        for tensors in groups:
            yield from decode_large(self._block(), [types[tensor] for tensor in tensors])

    def _block(self) -> memoryview:
        return self.blocks.view(self.blocks.number())

    def _skeleton(self) -> bytes:
        if self.form is Form.LONG:
            return unzstd(self._block())
        size = _code_length(self.stream)
        if size > _SHORT_SKELETON:
            raise IrregularError("the skeleton is too long")
        return decode_bytes(self.stream, size, prior())


def code_groups(
    coder: Encoder | Decoder | Meter, tensors: int, groups: Sequence[Sequence[int]] = ()
) -> list[list[int]]:
    """Code which tensors stand in each block.

    Args:
        coder: Where to, or where from.
        tensors: How many there are in all.
        groups: Ascending; ignored by a decoder.

    Returns:
        The groups: those given, or those read.

    Raises:
        IrregularError: A tensor stands in no block.
    """
    firsts = {group[0] for group in groups}
    inside = {tensor for group in groups for tensor in group}
    large, first = Bit(), Bit()
    found: list[list[int]] = []
    for tensor in range(tensors):
        if coder.bit(large, int(tensor in inside)):
            if coder.bit(first, int(tensor in firsts)):
                found.append([])
            elif not found:
                raise IrregularError("a tensor stands in no block")
            found[-1].append(tensor)
    return found


@cache
def prior() -> bytes:
    """The text that skeletons of version 1 are coded with; made by `skeleton_prior` of the tests.

    It belongs to the format for ever.
    """
    return _PRIOR.read_bytes()


def zstd(data: bytes) -> bytes:
    """Bytes by zstandard, with the text as its dictionary."""
    level = _LEVEL if len(data) < _SLOW_BYTES else _FAST_LEVEL
    packed: bytes = zstandard.ZstdCompressor(level, dict_data=_dictionary()).compress(data)
    return packed


def unzstd(data: bytes | memoryview) -> bytes:
    """The inverse of `zstd`.

    Raises:
        IrregularError: The bytes would be too many.
        ZstdError: They are damaged.
    """
    if not 0 <= zstandard.frame_content_size(data) < BIGGEST:
        raise IrregularError("its size is impossible")
    found: bytes = zstandard.ZstdDecompressor(dict_data=_dictionary()).decompress(data)
    return found


def _dictionary() -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(prior(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def stream_length_bytes(form: Form, stream: int) -> int:
    """Bytes in front of a stream of so many bytes."""
    return 0 if form is Form.STREAM else len(varint(stream))


def _size(piece: Piece) -> int:
    return piece.bytes if isinstance(piece, Payload) else len(piece)


def _type(payload: Payload) -> Type:
    return coded_dtype(payload.data_type), coded_shape(payload.data_type, payload.dims)


def _array(model: bytes, payload: Payload) -> Array:
    data = memoryview(model)[payload.begin : payload.begin + payload.bytes]
    return to_array(data, payload.data_type, payload.dims)


def _large(model: bytes, payloads: list[Payload]) -> list[bool]:
    """Which tensors become blocks: coding one symbol at a time has its limits.

    The smallest tensors have the most to gain. Values that hardly ever recur gain nothing.
    """
    left = _PATIENCE if len(model) <= _SHORT_FILE else _LONG_PATIENCE
    symbols, large = [], [True] * len(payloads)
    for payload in payloads:
        array = _array(model, payload)
        symbols.append(left + 1 if _is_noise(array) else coded_symbols(array))
    for place in sorted(range(len(payloads)), key=lambda place: symbols[place]):
        left -= symbols[place]
        large[place] = left < 0
    return large


def _is_noise(array: Array) -> bool:
    if array.size <= _SAMPLE:
        return False
    step = array.size // _SAMPLE
    sample = array.reshape(-1)[: _SAMPLE * step : step]
    return 2 * np.unique(sample.view(f"u{array.itemsize}")).size > _SAMPLE


def _code_length(out: Encoder | Decoder | Meter, length: int = 0) -> int:
    """Code a number below 2**31: how many bits it has, and all of them but the first."""
    bits = out.bits(length.bit_length(), _LENGTH_BITS)
    if bits < 2:
        return bits
    first = 1 << (bits - 1)
    return first | out.bits(length & (first - 1), bits - 1)
