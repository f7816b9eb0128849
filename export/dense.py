"""The form `dense`: ordinary float ONNX, zeros and all, proven equal to the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import zstandard
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import ExportError
from energy_model.hardware import Hardware
from export.fold_slices import fold_slices
from export.initializers import locate
from export.markers import bypassed, marked
from export.onnx_file import at_batch, float_model
from export.parity import Parity, check_parity
from export.recount import Recount, recount_costs, sha256
from export.tied_weights import lookup_notes
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.inputs import Call
from passes.rewrite.freeze import freeze
from passes.rewrite.quantizer_calls import quantizers
from passes.storage.atomic import storage_errors, write_file

_ZSTD_LEVEL = 10
_FLOAT_NOTE = (
    "activations stay float: the {} quantizers of the model are left out, and the file computes "
    "the model without them; form 'qdq' keeps them"
)


@dataclass(frozen=True, slots=True)
class Inside:
    """The ONNX file in an archive.

    Attributes:
        form: How the weights are stored in it.
        bytes: Its size.
        sha256: Its digest, in hexadecimal.
    """

    form: str
    bytes: int
    sha256: str


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
        notes: What a user of the file should know.
        census: How many operators of each type ONNX Runtime runs; empty if they were not counted.
        modes: Largest absolute error against torch by numeric mode of the runtime; empty where
            there is one mode alone.
        inside: The ONNX file in it, if it is an archive: what was run and counted. `bytes` and
            `recount` speak of the archive where they speak of the file as a whole.
    """

    path: Path
    form: str
    bytes: int
    bytes_zstd: int
    parity: Parity
    recount: Recount
    notes: tuple[str, ...] = ()
    census: Mapping[str, int] = field(default_factory=dict)
    modes: Mapping[str, float] = field(default_factory=dict)
    inside: Inside | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found when a draft of a file was run; see `Written`."""

    parity: Parity
    notes: tuple[str, ...] = ()
    census: Mapping[str, int] = field(default_factory=dict)
    modes: Mapping[str, float] = field(default_factory=dict)


def write_dense(graph: ModelGraph, hardware: Hardware, path: Path | str) -> Written:
    """Export a finished model as dense ONNX, check it, and only then put it in its place.

    The file is checked by `onnx.checker`, run in ONNX Runtime against torch at another batch size
    than it was traced with, and its nonzeros are counted again. Weights on a grid are written as
    the floats that they are; quantizers of activations are left out, and a note says so.

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
    left_out = len(quantizers(frozen.module))
    model = fold_slices(float_model(marked(bypassed(frozen.module))[0], graph.call))
    if rewrite is not None:
        rewrite(model)
    rounded = [_FLOAT_NOTE.format(left_out)] if left_out else []
    notes = (*rounded, *lookup_notes(frozen.module))

    def check(draft: Path, call: Call) -> Checked:
        module = bypassed(graph.runnable)
        return Checked(check_parity(draft, module, call, where=path), notes)

    return deliver(graph, hardware, path, form, model, frozen.weights, check)


def deliver(
    graph: ModelGraph,
    hardware: Hardware,
    path: Path,
    form: str,
    model: onnx.ModelProto,
    weights: Mapping[str, Tensor],
    check: Callable[[Path, Call], Checked],
) -> Written:
    """Check a finished file, count it, and only then put it in its place.

    Args:
        graph: The graph that it was written from.
        hardware: For the recount of energy.
        path: Where the file goes.
        form: Name of the form.
        model: What is to be written.
        weights: Frozen weights by site.
        check: Runs a draft of the file on inputs of another batch size than the traced one; raises
            if it is not the model.

    Raises:
        ExportError: A runtime or checker refuses the file.
        ParityError: As `check` finds.
        StorageError: The file cannot be written.
    """
    check_model(model, path)
    batch = max(3, (graph.call.batch_size or 1) + 1)
    with storage_errors(path), tempfile.TemporaryDirectory(prefix="transform-export-") as folder:
        draft = Path(folder) / "model.onnx"
        onnx.save_model(model, str(draft))
        checked = check(draft, at_batch(graph.call, batch))
        data = draft.read_bytes()
    recount = _recount(graph, model, weights, hardware)
    write_file(path, data)
    compressed = len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data))
    counted = replace(recount, sha256=sha256(path), size=len(data), parameters=_parameters(model))
    return Written(
        path,
        form,
        len(data),
        compressed,
        checked.parity,
        counted,
        checked.notes,
        checked.census,
        checked.modes,
    )


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


def check_model(model: onnx.ModelProto, path: Path) -> None:
    """Let `onnx.checker` look at everything.

    Raises:
        ExportError: It refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(
            f"onnx.checker refuses the model: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="This is an error of the exporter; please report it with the model.",
        ) from error
