"""The forms in which a result can be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from energy_model.errors import ArgumentError, ExportError
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.graph import ModelGraph

if TYPE_CHECKING:
    from export.dense import Written

FORMS = ("auto", "dense", "qdq", "sparse", "sparse_initializers", "column_groups", "packed")


def require_form(form: str) -> None:
    """Raise for a form that no exporter writes."""
    if form not in FORMS:
        raise ArgumentError(
            f"unknown form {form!r}", where="form", remedy=f"One of {', '.join(FORMS)}."
        )


def write(
    graph: ModelGraph,
    hardware: Hardware,
    path: Path,
    form: str,
    limits: Sequence[ResolvedLimit] = (),
    opset: int | None = None,
) -> Written:
    """Write a finished model in a form; see `Compressed.export`.

    Args:
        graph: A graph whose methods are finalized.
        hardware: For the recount of energy.
        path: Where the file goes.
        form: One of `FORMS`.
        limits: What the form `"auto"` must keep.
        opset: Version of the ONNX operators; of the form `"qdq"` only.

    Raises:
        ArgumentError: Unknown form.
        ExportError: The model has no such form.
        ParityError: The file disagrees with the model.
        StorageError: The file cannot be written.
    """
    require_form(form)
    if opset is not None and form != "qdq":
        raise ArgumentError(
            f"the form {form!r} has one version of the ONNX operators",
            where="opset",
            remedy="Leave opset out, or export with form='qdq'.",
        )
    if form == "packed" or (form == "auto" and path.suffix == ".packed"):
        from export.packed import write_packed

        return write_packed(graph, hardware, path)
    if form == "auto" and graph.encodings:
        from transform.fastest_form import write_fastest

        return write_fastest(graph, hardware, path, limits)
    from export.column_groups import write_column_groups
    from export.dense import write_dense
    from export.onnx_file import OPSET
    from export.qdq import write_qdq
    from export.sparse import write_sparse

    if form == "auto":
        return _small_enough(graph, hardware, path, limits)
    if form == "qdq":
        return write_qdq(graph, hardware, path, opset=OPSET if opset is None else opset)
    if form.startswith("sparse"):
        return write_sparse(graph, hardware, path, initializers=form == "sparse_initializers")
    return (write_column_groups if form == "column_groups" else write_dense)(graph, hardware, path)


def _small_enough(
    graph: ModelGraph, hardware: Hardware, path: Path, limits: Sequence[ResolvedLimit]
) -> Written:
    """The dense file; zeros are stored as positions and values only where a limit asks for that."""
    from export.dense import write_dense
    from export.sparse import write_sparse

    dense = write_dense(graph, hardware, path)
    sizes = [limit.maximum for limit in limits if limit.key == "size"]
    if all(dense.bytes <= most for most in sizes):
        return dense
    try:
        return write_sparse(graph, hardware, path)
    except ExportError:  # no weight would get smaller
        return dense
