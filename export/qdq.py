"""The form `qdq`: weights as codes, activations rounded, so that a runtime computes in integers.

The float graph is exported with a marker in the place of every quantizer; what follows is surgery
on it. Quantized operators are written as QuantizeLinear and DequantizeLinear around plain ones,
which every runtime can read and those that have integer kernels replace.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from energy_model.errors import ArgumentError, ExportError
from energy_model.hardware import Hardware
from export.census import take_census
from export.dense import Checked, Written, deliver
from export.fold_slices import fold_slices
from export.markers import DOMAIN, Grid, Mark, bypassed, index_of, marked
from export.movers import merge_slices
from export.onnx_file import OPSET, float_model
from export.onnx_graph import Rewriter, value_shapes
from export.qdq_activations import Quantization
from export.qdq_layers import (
    fitted,
    integer_layers_of,
    with_float_biases,
    write_integer_layers,
)
from export.qdq_markers import (
    drop_markers,
    idle_quantizers,
    pool_globally,
    raise_markers,
    repeated_markers,
)
from export.qdq_notes import notes_of
from export.qdq_parity import check_agreement
from export.qdq_weights import (
    as_products,
    held_weights,
    require_opset,
    separated,
    write_weight,
)
from passes.graph import ModelGraph
from passes.inputs import Call
from passes.rewrite.freeze import Frozen, freeze

FORM = "qdq"
OPSETS = range(18, 26)
"""Versions of the ONNX operators that files are written in."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A quantized file that was put together.

    Attributes:
        model: The file.
        codes: Names of its tensors of codes, by quantizer and number of its call.
        bypassed: Quantizers that serve no layer in integers and were left out.
        encoded: Sites by name of their codes, stored or widened.
        floating: Sites with an encoding that are float in the file.
        integer: Sites whose input is rounded too, so that they run in integers.
        grids: The grids of its activations.
    """

    model: onnx.ModelProto
    codes: dict[tuple[str, int], str]
    bypassed: frozenset[str]
    encoded: dict[str, tuple[str, ...]]
    floating: frozenset[str]
    integer: frozenset[str]
    grids: frozenset[Grid]


def write_qdq(
    graph: ModelGraph,
    hardware: Hardware,
    path: Path | str,
    *,
    floating: frozenset[str] = frozenset(),
    opset: int = OPSET,
    form: str = FORM,
    rewrite: Callable[[onnx.ModelProto], None] | None = None,
) -> Written:
    """Export a quantized model with its codes, check it, and only then put it in its place.

    A layer runs in integers where its input is rounded and ONNX Runtime has a kernel for it. In a
    file with rounded activations all other layers are written as floats, with a note: their codes
    would be decoded anew at every inference. In a file without them all weights are codes, which
    is a matter of size for convolutions, and of speed for linear layers.

    Args:
        graph: A graph whose methods are finalized, with encodings of weights.
        hardware: For the recount of energy.
        path: Where the file goes; an existing file is replaced in one step.
        floating: Sites that stay float; quantizers that serve no other layer are left out.
        opset: Version of the ONNX operators: 18 to 25. Codes of four bits and blocks of scales
            need 21; two bits are packed from 25 on.
        form: Name of the form, where `rewrite` makes another of it.
        rewrite: Brings the finished file into that form, in place.

    Raises:
        ArgumentError: `floating` names no site, or an opset is not available.
        ExportError: Nothing is quantized, the opset cannot express a weight, the model has no ONNX
            form, or a runtime or checker refuses it.
        ParityError: The file computes something else.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    _check_arguments(graph, floating, opset, path)
    frozen = freeze(graph)
    module, marks = marked(frozen.module)
    source = fold_slices(float_model(module, graph.call, opset))
    draft = _assembled(graph, frozen, source, marks, floating, opset)
    while _for_integers(draft) and (stuck := _stuck(draft, path)):
        chosen = draft.floating | stuck
        draft = _assembled(graph, frozen, source, marks, chosen, opset)

    if rewrite is not None:
        rewrite(draft.model)

    def check(file: Path, call: Call) -> Checked:
        module = bypassed(graph.runnable, draft.bypassed)
        agreement = check_agreement(file, module, call, draft.codes, path)
        census = take_census(file, path)
        notes = notes_of(graph, draft, floating, agreement, census)
        return Checked(agreement.parity, notes, census.operators, agreement.modes)

    return deliver(graph, hardware, path, form, draft.model, frozen.weights, check)


def _check_arguments(graph: ModelGraph, floating: frozenset[str], opset: int, path: Path) -> None:
    unknown = sorted(floating - set(graph.by_name))
    if unknown:
        raise ArgumentError(
            f"no site is called {unknown[0]!r}",
            where="floating",
            remedy=f"Sites are {', '.join(list(graph.by_name)[:20])}.",
        )
    if opset not in OPSETS:
        raise ArgumentError(
            f"opset {opset!r} is not available for the form {FORM!r}",
            where="opset",
            remedy=f"Choose {OPSETS[0]} to {OPSETS[-1]}.",
        )
    if not graph.encodings:
        raise ExportError(
            "no weight of the model is quantized",
            where=str(path),
            remedy="Compress with a method that quantizes, or export with form='dense'.",
        )
    encoded = {n: e for n, e in graph.encodings.items() if n not in floating}
    require_opset(encoded, opset, str(path))


def _assembled(
    graph: ModelGraph,
    frozen: Frozen,
    source: onnx.ModelProto,
    marks: tuple[Mark, ...],
    floating: frozenset[str],
    opset: int,
) -> Draft:
    """Rewrite a copy of the float file with its markers."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    rewriter = Rewriter(model)
    pool_globally(rewriter, value_shapes(model) if marks else {})
    encodings = {n: e for n, e in frozen.encodings.items() if n not in floating}
    held = held_weights(rewriter, graph.sites, frozen.weights, encodings)
    held = separated(rewriter, held)
    idle = idle_quantizers(rewriter, marks, held)
    quantization = _quantized(rewriter, marks, idle)
    held = with_float_biases(rewriter, quantization, held)
    layers = integer_layers_of(rewriter, quantization, held)
    integer: set[str] = set()
    encoded: dict[str, tuple[str, ...]] = {}
    for weight, item in held.items():
        readers = layers.get(weight)
        if readers is not None:
            names = write_integer_layers(rewriter, fitted(item, readers), readers, opset)
            integer.update(item.sites)
        else:
            names = write_weight(rewriter, as_products(rewriter, item), opset, integer=False)
        encoded |= dict.fromkeys(names, item.sites)
    rewriter.finish()
    _drop_domain(model)
    written = frozenset(site for sites in encoded.values() for site in sites)
    left = frozenset(graph.encodings) - written
    grids = frozenset(coded.grid for coded in quantization.coded.values())
    codes = _codes(quantization, model)
    return Draft(model, codes, idle, encoded, left, frozenset(integer), grids)


def _quantized(rewriter: Rewriter, marks: tuple[Mark, ...], idle: frozenset[str]) -> Quantization:
    drop_markers(rewriter, {i for i, mark in enumerate(marks) if mark.path in idle})
    drop_markers(rewriter, repeated_markers(rewriter, marks))
    places = {i: n.output[0] for n in rewriter.nodes if (i := index_of(n)) is not None}
    raise_markers(rewriter)
    quantization = Quantization(rewriter, marks)
    quantization.insert(places)
    quantization.move_codes()
    rewriter.prune()
    merge_slices(rewriter)
    return quantization


def _codes(quantization: Quantization, model: onnx.ModelProto) -> dict[tuple[str, int], str]:
    produced = {name for node in model.graph.node for name in node.output}
    found: dict[tuple[str, int], str] = {}
    for index, name in quantization.places.items():
        mark, coded = quantization.marks[index], quantization.coded[name]
        if coded.codes in produced:
            found[mark.path, mark.call] = coded.codes
    return found


def _drop_domain(model: onnx.ModelProto) -> None:
    kept = [item for item in model.opset_import if item.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _for_integers(draft: Draft) -> bool:
    """Whether the file is meant to run in integers on x86: with rounded, unsigned activations."""
    return bool(draft.grids) and not any(grid.signed for grid in draft.grids)


def _stuck(draft: Draft, path: Path) -> frozenset[str]:
    """Sites whose codes ONNX Runtime would decode at every inference, to multiply floats."""
    with tempfile.TemporaryDirectory(prefix="transform-qdq-") as folder:
        file = Path(folder) / "model.onnx"
        onnx.save_model(draft.model, str(file))
        decoded = take_census(file, path).decoded
    found = (sites for name, sites in draft.encoded.items() if name in decoded)
    return frozenset(site for sites in found for site in sites)
