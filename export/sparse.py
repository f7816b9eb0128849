"""The form `sparse`: weights with zeros stored as positions and values, decoded when loaded.

It is a storage form. The decoder is made of plain operators on constants, which ONNX Runtime and
OpenVINO evaluate once, at load: the model then runs on the dense weight, no faster than `dense`,
needs as much memory, and up to four times as much while it is loaded. With the graph optimisation
of ONNX Runtime switched off it would be decoded in every run.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import onnx
import zstandard

from energy_model.errors import ExportError
from energy_model.hardware import Hardware
from export.dense import Written, write_dense, write_form
from export.markers import bypassed
from export.onnx_file import at_batch
from export.parity import check_parity
from export.qdq import write_qdq
from export.recount import sha256
from export.sparse_weights import sparsify_weights
from passes.graph import ModelGraph
from passes.storage.atomic import storage_errors, write_file

FORM = "sparse"
INITIALIZERS_FORM = "sparse_initializers"
NOTE = (
    "A storage form: the runtime unpacks the weights at load, so it runs no faster than dense and "
    "needs as much memory."
)
INITIALIZERS_NOTE = (
    f"{NOTE} Sparse initialisers: ONNX Runtime reads them; OpenVINO, onnx.reference and the full "
    "check of onnx.checker do not."
)


def write_sparse(
    graph: ModelGraph, hardware: Hardware, path: Path | str, *, initializers: bool = False
) -> Written:
    """Export a finished model with its weights stored sparsely; proven as by `write_dense`.

    A storage form: the runtime unpacks the weights at load, so the file runs no faster than a dense
    one and needs as much memory; a note says so. Of quantized models the codes are stored sparsely,
    as `write_qdq` writes them; with `initializers` their levels as floats.

    Args:
        graph: A graph whose methods are finalized.
        hardware: For the recount of energy.
        path: Where the file goes; an existing file is replaced in one step.
        initializers: Sparse initialisers instead of nodes that decode; see `sparsify_weights`. Such
            a file passes `onnx.checker` only without its full check.

    Raises:
        ExportError: No weight would get smaller, or as for `write_dense`.
        ParityError: The file computes something else.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if initializers:
        return _write_initializers(graph, hardware, path)

    def rewrite(model: onnx.ModelProto) -> None:
        require_sparse(model, path)

    if graph.encodings:
        written = write_qdq(graph, hardware, path, form=FORM, rewrite=rewrite)
    else:
        written = write_form(graph, hardware, path, FORM, rewrite)
    return replace(written, notes=(*written.notes, NOTE))


def require_sparse(
    model: onnx.ModelProto, where: Path | str, *, initializers: bool = False
) -> None:
    """`sparsify_weights`, which must make the file smaller; may follow other rewrites.

    Raises:
        ExportError: No weight has enough zeros.
    """
    if not sparsify_weights(model, initializers=initializers):
        raise ExportError(
            "no layer has enough zeros to make the file smaller",
            where=str(where),
            remedy="Export with form='auto', or compress with a tighter budget.",
        )


def _write_initializers(graph: ModelGraph, hardware: Hardware, path: Path) -> Written:
    """The dense file, fully checked, and then the same with sparse initialisers."""
    with storage_errors(path), tempfile.TemporaryDirectory(prefix="transform-export-") as folder:
        draft = Path(folder) / path.name
        written = write_dense(graph, hardware, draft)
        model = onnx.load(draft)
        require_sparse(model, path, initializers=True)
        _check_without_inference(model, path)
        onnx.save_model(model, str(draft))
        batch = at_batch(graph.call, written.parity.batch or 1)
        parity = check_parity(draft, bypassed(graph.runnable), batch, where=path)
        data = draft.read_bytes()
    write_file(path, data)
    compressed = len(zstandard.ZstdCompressor(level=10).compress(data))
    recount = replace(written.recount, sha256=sha256(path), size=len(data))
    return replace(
        written, path=path, form=INITIALIZERS_FORM, bytes=len(data), bytes_zstd=compressed,
        parity=parity, recount=recount, notes=(*written.notes, INITIALIZERS_NOTE),
    )  # fmt: skip


def _check_without_inference(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model, full_check=False)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"onnx.checker refuses the model: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="This is an error of the exporter; please report it with the model.",
        ) from error
