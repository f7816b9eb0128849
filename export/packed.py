"""The form `packed`: an archive, which holds an ONNX file in as few bytes as can be.

No runtime reads it: it is what is sent or stored. `export.unpack` gives the ONNX file back, bit for
bit, and that is the file which is run, compared with torch and counted here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import zstandard

from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from export.archive import graph_bytes, pack, predict_bytes
from export.dense import Inside, Written, write_dense
from export.qdq import write_qdq
from export.recount import sha256
from export.sparse import write_sparse
from passes.graph import ModelGraph
from passes.storage.atomic import storage_errors, write_file

FORM = "packed"
NOTE = (
    "An archive: {} bytes of ONNX (form {!r}) in {} bytes, of which the graph takes {}. "
    "No runtime reads it; "
    "export.unpack(path, to='model.onnx') or `transform unpack` gives the ONNX file back."
)
_WRITERS: dict[str, Callable[[ModelGraph, Hardware, Path], Written]] = {
    "dense": write_dense,
    "qdq": write_qdq,
    "sparse": write_sparse,
}


def write_packed(
    graph: ModelGraph, hardware: Hardware, path: Path | str, *, of: str | None = None
) -> Written:
    """Export a finished model as an archive, proven as the ONNX file that it holds.

    Args:
        graph: A graph whose methods are finalized.
        hardware: For the recount of energy.
        path: Where the archive goes; an existing file is replaced in one step.
        of: Form of the ONNX file: `"dense"`, `"qdq"` or `"sparse"`; by default `"qdq"` for a model
            with quantized weights, and `"dense"` otherwise. Zeros and repeated values are coded
            small in all of them.

    Raises:
        ArgumentError: `of` is none of these.
        ExportError: As the form raises it.
        ParityError: The file computes something else.
        PostconditionError: The archive does not give its ONNX file back.
        StorageError: The file cannot be written.
    """
    path, form = Path(path), of or ("qdq" if graph.encodings else "dense")
    if form not in _WRITERS:
        raise ArgumentError(
            f"an archive does not hold the form {form!r}",
            where="of",
            remedy=f"One of {', '.join(_WRITERS)}.",
        )
    with storage_errors(path), tempfile.TemporaryDirectory(prefix="transform-export-") as folder:
        draft = Path(folder) / f"{path.stem}.onnx"
        written = _WRITERS[form](graph, hardware, draft)
        model = draft.read_bytes()
        archive = pack(model)
    write_file(path, archive)
    inside = Inside(form, written.bytes, written.recount.sha256)
    compressed = len(zstandard.ZstdCompressor(level=10).compress(archive))
    note = NOTE.format(f"{inside.bytes:,}", form, f"{len(archive):,}", graph_bytes(model) or 0)
    return replace(
        written, path=path, form=FORM, bytes=len(archive), bytes_zstd=compressed,
        recount=replace(written.recount, sha256=sha256(path), size=len(archive)),
        notes=(*written.notes, note), inside=inside,
    )  # fmt: skip


def predict_packed_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the archive that would hold a model, within 0.5 % and four bytes.

    Nothing is written or proven: it takes about half the time of packing.

    Args:
        model: With its weights inside.

    Raises:
        ExportError: It keeps weights in other files.
    """
    return predict_bytes(model.SerializeToString())
