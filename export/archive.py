"""An archive: one ONNX model in one file, as small as can be, bit for bit.

    bytes   content
    2       magic
    1       version in the low six bits, form in the others
    4       CRC-32 of everything else, so that no damage goes unseen
    ...     the body, by its form:
            0   one range-coded stream: length of the skeleton, the skeleton, tensors in its order
            1   length of the stream, the stream, and blocks behind their lengths: tensors that
                are so large that they are coded in another way, those of a block together
            2   the same, and the first block is the skeleton: that of a large file
            3   the whole file by zstandard: what is no ONNX model, or written in no usual way

A stream has no borders inside: whatever is in it costs no more than its own bits. A skeleton is
coded with a text that every reader has, in which usual layers occur; as all of the format, that
text belongs to its version for ever.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import zstandard

from energy_model.errors import PostconditionError, StorageError
from export.archive_body import Form, Plan, Reader, stream_length_bytes, unzstd, zstd
from export.archive_wire import varint
from passes.coding.frames import Buffer
from passes.coding.range_coder import Encoder, Meter

MAGIC: Final = b"\x93T"
VERSION: Final = 1

_CHUNK = 1 << 20
_BEGIN = len(MAGIC) + 1
_HEAD = _BEGIN + 4


def pack(model: bytes) -> bytes:
    """Write an ONNX file as an archive, and prove that it comes back.

    Args:
        model: The file: a serialized `ModelProto`. Any other bytes are kept too, only less small.

    Raises:
        ExportError: The model keeps weights in other files.
        PostconditionError: The archive does not give the file back.
    """
    archive = _packed(model)
    if not _gives(archive, model):
        raise PostconditionError(
            "the archive does not give the file back",
            where="archive",
            remedy="This is an error of the exporter; please report it with the model.",
        )
    return archive


def unpack_bytes(archive: bytes, where: str = "archive") -> bytes:
    """The ONNX file in an archive, bit for bit.

    Args:
        archive: The bytes of the archive.
        where: What to call it in an error.

    Raises:
        StorageError: It is none, is damaged or cut off, or of a newer version.
    """
    file = io.BytesIO()
    for part in _contents(archive, where):
        file.write(part)
    return file.getvalue()


def packed_bytes(model: bytes) -> int:
    """How many bytes `pack` needs, exactly; without the proof, which takes a third of its time.

    Args:
        model: The file.

    Raises:
        ExportError: As `pack`.
    """
    return len(_packed(model))


def predict_bytes(model: bytes) -> int:
    """How many bytes `pack` needs, within 0.5 % and four bytes, without writing the stream.

    Args:
        model: The file.

    Raises:
        ExportError: As `pack`.
    """
    plan = Plan.of(model)
    if plan is None:
        return _HEAD + len(zstd(model))
    meter = Meter()
    plan.write(meter)
    stream = int(-(-meter.total // 8))
    blocks = sum(map(len, plan.blocks()))
    return _HEAD + stream_length_bytes(plan.form, stream) + stream + blocks


def graph_bytes(model: bytes) -> int | None:
    """How many bytes of the archive are the graph, names and shapes; `None` where none are apart.

    Args:
        model: The file.

    Raises:
        ExportError: As `pack`.
    """
    plan = Plan.of(model)
    if plan is None:
        return None
    meter = Meter()
    plan.write_skeleton(meter)
    return int(-(-meter.total // 8)) + sum(map(len, plan.skeleton_block()))


def _packed(model: bytes) -> bytes:
    plan = Plan.of(model)
    if plan is None:
        return _sealed(Form.WHOLE, [zstd(model)])
    encoder = Encoder()
    plan.write(encoder)
    stream = encoder.finish()
    begin = [stream] if plan.form is Form.STREAM else [varint(len(stream)), stream]
    return _sealed(plan.form, chain(begin, plan.blocks()))


def _gives(archive: bytes, model: bytes) -> bool:
    """Whether an archive holds these bytes; only one tensor of it is in memory at a time."""
    position = 0
    for part in _contents(archive, "archive"):
        view = memoryview(part)
        for begin in range(0, len(view), _CHUNK):
            chunk = view[begin : begin + _CHUNK].tobytes()
            if not model.startswith(chunk, position):
                return False
            position += len(chunk)
    return position == len(model)


def _sealed(form: Form, body: Iterable[Buffer]) -> bytes:
    """An archive, written piece by piece, so that nothing large is in memory twice."""
    begin = MAGIC + bytes([VERSION | form << 6])
    file, crc = io.BytesIO(), zlib.crc32(begin)
    file.write(begin + bytes(_HEAD - _BEGIN))
    for part in body:
        crc = zlib.crc32(part, crc)
        file.write(part)
    file.seek(_BEGIN)
    file.write(crc.to_bytes(_HEAD - _BEGIN, "big"))
    return file.getvalue()


def _contents(archive: bytes, where: str) -> Iterator[Buffer]:
    """The parts of the file in an archive, in their order.

    Raises:
        StorageError: As `unpack_bytes`.
    """
    form = _opened(archive, where)
    try:
        if form is Form.WHOLE:
            yield unzstd(memoryview(archive)[_HEAD:])
        else:
            yield from Reader(archive, _HEAD, form).parts()
    except StorageError as error:
        raise _damaged(where, error.what) from error
    # What a wrong sum did not show: bytes that no version wrote.
    except (ValueError, ArithmeticError, LookupError, MemoryError, zstandard.ZstdError) as error:
        raise _damaged(where, str(error)) from error


def _opened(archive: bytes, where: str) -> Form:
    """The form of an archive whose sum is right."""
    if len(archive) < _HEAD or not archive.startswith(MAGIC):
        raise StorageError(
            "this is no archive",
            where=where,
            remedy="Give a file that was written with form='packed'.",
        )
    head = archive[len(MAGIC)]
    version = head & 0x3F
    if version > VERSION:
        raise StorageError(
            f"the archive has version {version} and this release reads up to {VERSION}: it was "
            "written by a newer version, or is damaged",
            where=where,
            remedy="Update the compiler, or restore the file from a copy.",
        )
    crc = zlib.crc32(memoryview(archive)[_HEAD:], zlib.crc32(archive[:_BEGIN]))
    if crc != int.from_bytes(archive[_BEGIN:_HEAD], "big") or version < VERSION:
        raise _damaged(where, "its checksum is wrong")
    return Form(head >> 6)


def _damaged(where: str, why: str) -> StorageError:
    return StorageError(
        f"the archive is damaged or cut off: {why}",
        where=where,
        remedy="Restore the file from a copy, or export the model again.",
    )
