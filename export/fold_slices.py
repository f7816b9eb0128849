"""Cut weights once, at export, rather than at every inference."""

from __future__ import annotations

import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

_CUTS = frozenset({"Slice", "Split", "Transpose", "Squeeze", "Unsqueeze"})


def fold_slices(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every cut of a constant by its result, in place.

    The exporter folds only small constants. A weight that packs several (query, key and value of an
    attention) would be cut anew in every run, and nobody could count what each part holds.

    Args:
        model: A float model.

    Returns:
        The same model.
    """
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    read: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            read[name] = read.get(name, 0) + 1
    kept = []
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type not in _CUTS or not all(name in constants for name in names):
            kept.append(node)
            continue
        arrays = {name: numpy_helper.to_array(constants[name]) for name in names}
        results = ReferenceEvaluator(_single(node, model)).run(None, arrays)
        for name, value in zip(node.output, results, strict=True):
            constants[name] = numpy_helper.from_array(value, name)
        for name in names:
            read[name] -= 1
    outputs = {value.name for value in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        item for name, item in constants.items() if read.get(name, 0) > 0 or name in outputs
    )
    return model


def _single(node: onnx.NodeProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of one node."""
    untyped = onnx.TypeProto()
    untyped.tensor_type.elem_type = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_value_info(name, untyped) for name in node.input if name]
    outputs = [onnx.helper.make_value_info(name, untyped) for name in node.output]
    graph = onnx.helper.make_graph([node], "cut", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import)
