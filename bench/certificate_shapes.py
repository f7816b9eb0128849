"""Shapes of all values of an ONNX file at batch 1, for `check_certificate.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from bench.certificate_constants import DECODERS, Array, attributes_of

Shape = tuple[int, ...]

SMALL = 4096
"""Constants of more elements say nothing about shapes."""
ROUNDS = 20
LIKE_THEIR_INPUT = frozenset({"GroupNormalization", "RMSNormalization"})


def inferred_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shape of every value for which it can be told, by name.

    ONNX infers them. Where it loses a shape that is computed from others, those are computed here
    and ONNX is asked again.
    """
    draft = _without_weights(model)
    shapes = _asked(draft)
    for _ in range(ROUNDS):
        if not _filled_in(draft.graph, shapes):
            break
        shapes = _asked(draft)
    return shapes


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose shapes are those of its inputs, at batch 1, and whose weights are left out."""
    draft = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    draft.functions.extend(model.functions)
    graph = draft.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for output in model.graph.output:
        graph.output.add().CopyFrom(output)
        graph.output[-1].type.tensor_type.ClearField("shape")  # it may be stale or symbolic
    for value in graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and (place == 0 or dim.dim_param == "batch"):
                dim.dim_value = 1
    tensors = [(t, t.name, t.dims, t.data_type) for t in model.graph.initializer]
    for sparse in model.graph.sparse_initializer:
        values = sparse.values
        tensors.append((values, values.name, sparse.dims, values.data_type))
    for tensor, name, dims, data_type in tensors:
        if tensor.dims == dims and math.prod(dims) <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(name, data_type, list(dims)))
    return draft


def _asked(draft: onnx.ModelProto) -> dict[str, Shape]:
    graph = shape_inference.infer_shapes(draft, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    tensors = ((v.name, v.type.tensor_type) for v in values)
    dims = {name: tensor.shape.dim for name, tensor in tensors if tensor.HasField("shape")}
    known = {n: each for n, each in dims.items() if all(d.HasField("dim_value") for d in each)}
    shapes = {name: tuple(d.dim_value for d in each) for name, each in known.items()}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _filled_in(graph: onnx.GraphProto, shapes: dict[str, Shape]) -> bool:
    """Put constants where shapes are computed from known ones; whether there were any."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    told = {value.name for value in (*graph.value_info, *graph.output)}
    computed: dict[str, Array] = {}
    kept = []
    for node in graph.node:
        output = node.output[0] if len(node.output) == 1 else ""
        value = None if output in told else _folded(node, arrays, shapes)
        if value is not None and output:
            arrays[output] = computed[output] = value
            continue
        kept.append(node)
        like = node.op_type in LIKE_THEIR_INPUT and node.input[0] in shapes
        if like and output not in shapes and output not in told:
            dims = shapes[node.input[0]]
            info = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, dims)
            graph.value_info.append(info)
            computed[output] = np.zeros(0)
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in computed.items()
        if name not in {info.name for info in graph.value_info}
    )
    del graph.node[:]
    graph.node.extend(kept)
    return bool(computed)


def _folded(node: onnx.NodeProto, arrays: dict[str, Array], shapes: dict[str, Shape]) -> Any:
    """The value of a node of small constants or of a known shape; None for any other."""
    found = attributes_of(node)
    if node.op_type == "Shape" and node.input[0] in shapes:
        dims = shapes[node.input[0]][found.get("start", 0) : found.get("end")]
        return np.array(dims, np.int64)
    if node.op_type not in DECODERS or any(n not in arrays for n in node.input if n):
        return None
    try:
        value = DECODERS[node.op_type]([arrays.get(n) for n in node.input], found)
    except (ValueError, IndexError, TypeError, LookupError):
        return None  # its shape stays unknown
    return value if np.size(value) <= SMALL else None
