"""The form `dense`: ordinary float ONNX, zeros and all, proven equal to the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import zstandard
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import ExportError
from energy_model.hardware import Hardware
from export.fold_slices import fold_slices
from export.initializers import locate
from export.onnx_file import at_batch, float_model
from export.parity import Parity, check_parity
from export.recount import Recount, recount_costs, sha256
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.rewrite.freeze import freeze
from passes.storage.atomic import storage_errors, write_file

_ZSTD_LEVEL = 10


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written and checked.

    Attributes:
        path: The file.
        form: How the weights are stored.
        bytes: Its size.
        bytes_zstd: Its size after zstandard, level 10.
        parity: Agreement with torch.
        recount: What was counted from it.
    """

    path: Path
    form: str
    bytes: int
    bytes_zstd: int
    parity: Parity
    recount: Recount


def write_dense(graph: ModelGraph, hardware: Hardware, path: Path | str) -> Written:
    """Export a finished model as dense ONNX, check it, and only then put it in its place.

    The file is checked by `onnx.checker`, run in ONNX Runtime against torch at another batch size
    than it was traced with, and its nonzeros are counted again.

    Args:
        graph: A graph whose methods are finalized.
        hardware: For the recount of energy.
        path: Where the file goes; an existing file is replaced in one step.

    Raises:
        ExportError: The model has no ONNX form, or a runtime or checker refuses it.
        ParityError: The file computes something else.
        StorageError: The file cannot be written.
    """
    return write_form(graph, hardware, path, "dense")


def write_form(
    graph: ModelGraph,
    hardware: Hardware,
    path: Path | str,
    form: str,
    rewrite: Callable[[onnx.ModelProto], None] | None = None,
) -> Written:
    """Export as `write_dense` does, in another form.

    Args:
        graph: A graph whose methods are finalized.
        hardware: For the recount of energy.
        path: Where the file goes.
        form: Name of the form.
        rewrite: Brings the float model into that form, in place.

    Raises:
        ExportError: As for `write_dense`.
        ParityError: The file computes something else.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    frozen = freeze(graph)
    model = fold_slices(float_model(frozen.module, graph.call))
    if rewrite is not None:
        rewrite(model)
    _check_model(model, path)
    batch = max(3, (graph.call.batch_size or 1) + 1)
    with storage_errors(path), tempfile.TemporaryDirectory(prefix="transform-export-") as folder:
        draft = Path(folder) / "model.onnx"
        onnx.save_model(model, str(draft))
        parity = check_parity(draft, graph.runnable, at_batch(graph.call, batch), where=path)
        data = draft.read_bytes()
    recount = _recount(graph, model, frozen.weights, hardware)
    write_file(path, data)
    compressed = len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data))
    counted = replace(recount, sha256=sha256(path), size=len(data), parameters=_parameters(model))
    return Written(path, form, len(data), compressed, parity, counted)


def _recount(
    graph: ModelGraph, model: onnx.ModelProto, weights: Mapping[str, Tensor], hardware: Hardware
) -> Recount:
    stored = locate(model, graph.sites, weights)
    costs: CostTable = cost_table(graph, hardware)
    return Recount(recount_costs(graph, costs, stored, hardware), stored, "", 0, 0)


def _parameters(model: onnx.ModelProto) -> int:
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    tensors = (t for t in model.graph.initializer if t.data_type in floating)
    total = 0
    for tensor in tensors:
        size = 1
        for dim in tensor.dims:
            size *= dim
        total += size
    return total


def _check_model(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(
            f"onnx.checker refuses the model: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="This is an error of the exporter; please report it with the model.",
        ) from error
