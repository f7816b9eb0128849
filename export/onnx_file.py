"""Float ONNX from a frozen module: one file, nothing in it that the runtime does not need."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.errors import ExportError
from export.tied_weights import marked_lookups, write_lookups
from passes.inputs import Call

OPSET = 21


def float_model(module: nn.Module, call: Call, opset: int = OPSET) -> onnx.ModelProto:
    """Export a frozen module with `torch.onnx.export` (dynamo), the batch dynamic.

    Args:
        module: In evaluation mode.
        call: Example arguments, any batch size.
        opset: Version of the ONNX operators.

    Returns:
        The model at that opset, without the exporter's metadata: stack traces and paths of the
        machine that exported it would outweigh a small network.

    Raises:
        ExportError: The exporter cannot express the model.
    """
    example = at_batch(call, max(2, call.batch_size or 2))
    try:
        with _quiet(), torch.no_grad(), marked_lookups(module) as lookups:
            # A dict in the last place would be taken for keyword arguments.
            last_is_dict = bool(example.args) and isinstance(example.args[-1], dict)
            program = torch.onnx.export(
                module,
                (*example.args, {}) if last_is_dict else example.args,
                kwargs=dict(example.kwargs),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=_dynamic_shapes(example),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export cannot express this model: {_innermost(error)}",
            where=type(module).__name__,
            remedy="Data-dependent Python control flow has no ONNX form: replace it by torch.where "
            "or torch.cond, or export the parts separately.",
        ) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing", where=type(module).__name__)
    model: onnx.ModelProto = program.model_proto
    strip_metadata(model)
    write_lookups(model, lookups)
    return model


def at_batch(call: Call, size: int) -> Call:
    """The same inputs at another batch size, rows repeated or left out."""
    batch = call.batch_size
    if batch is None:
        return call

    def resize(tensor: Tensor) -> Tensor:
        if not call.batched(tensor):
            return tensor
        return tensor.detach()[torch.arange(size, device=tensor.device) % batch].contiguous()

    return call.map(resize)


def _dynamic_shapes(call: Call) -> Any:
    """The first dimension of every batched tensor is the one symbol `batch`."""
    if call.batch_size is None:
        return None
    dimension = torch.export.Dim("batch")

    def spec(leaf: Any) -> Any:
        return {0: dimension} if isinstance(leaf, Tensor) and call.batched(leaf) else None

    args = pytree.tree_map(spec, tuple(call.args))
    kwargs = pytree.tree_map(spec, dict(call.kwargs))
    return {**_positional(args), **kwargs} if call.kwargs else args


def _positional(args: tuple[Any, ...]) -> dict[str, Any]:
    if args:
        raise ExportError(
            "inputs are given both by position and by name",
            remedy="Give all of example_inputs in one way.",
        )
    return {}


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300].rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress and its own deprecations; neither is the user's."""
    names = ("torch.onnx", "onnxscript", "torch.export", "torch.fx", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    redirected = contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink)
    with warnings.catch_warnings(), redirected[0], redirected[1]:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove stack traces, doc strings and inferred shapes; the function stays as it is."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        for field in ("metadata_props", "value_info"):
            if hasattr(graph, field):
                del getattr(graph, field)[:]
        for part in (*graph.node, *getattr(graph, "initializer", ()), *_values(graph)):
            part.doc_string = ""
            del part.metadata_props[:]
        for node in graph.node:
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def _values(graph: Any) -> list[Any]:
    return [v for v in (*graph.input, *graph.output) if not isinstance(v, str)]
