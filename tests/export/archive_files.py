"""ONNX files for the tests of archives: small ones of every kind, and odd ones made by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]
INTEGERS = [
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32,
    TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64, TensorProto.BOOL,
]  # fmt: skip
ODD = [
    TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
    TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E8M0,
    TensorProto.INT2, TensorProto.UINT2,
]  # fmt: skip
TYPES = [*FLOATS, *INTEGERS, *ODD]


def model_of(*tensors, nodes=(), functions=(), output="y"):
    """A model that holds tensors."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["x"], ["y"])],
        "main_graph",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value(output, TensorProto.FLOAT, None)],
        list(tensors),
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def raw(data_type, dims, content, name="w"):
    """A tensor whose elements are these bytes."""
    tensor = TensorProto(data_type=data_type, dims=dims, name=name)
    tensor.raw_data = content
    return tensor


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).bytes(count)


def weights(shape, zeros=0.9, levels=8, seed=0, name="w"):
    """Weights with a few values, most of them zero."""
    generator = np.random.default_rng(seed)
    book = np.sort(generator.normal(size=levels)).astype(np.float32)
    values = book[generator.integers(levels, size=shape)]
    values[generator.random(shape) < zeros] = 0
    return numpy_helper.from_array(values, name)


def small_model():
    """A linear layer with sparse weights, its bias, and a shape: some hundred bytes."""
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["linear"], transB=1),
        helper.make_node("Reshape", ["linear", "shape"], ["y"]),
    ]
    return model_of(
        weights((20, 4), name="fc.weight"),
        numpy_helper.from_array(np.linspace(-1, 1, 20, dtype=np.float32), "fc.bias"),
        numpy_helper.from_array(np.array([-1, 20]), "shape"),
        nodes=nodes,
    )


def with_everything():
    """Attributes of every kind, a subgraph, a function, annotations, metadata, sparse weights."""
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=weights((3, 5), name=""))], "then", [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
        [weights((6, 6), name="inner")],
    )  # fmt: skip
    sparse = helper.make_sparse_tensor(
        raw(TensorProto.FLOAT, [3], random_bytes(12), "sparse"),
        numpy_helper.from_array(np.array([0, 5, 17])), [4, 5],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["flag"], ["y"], "node_if", then_branch=branch, else_branch=branch),
        helper.make_node(
            "Odd", ["x"], ["z"], domain="mine", a=1, b=2.5, c="text", d=[1, -2], e=[0.5, 1.5],
            f=["one", "two"], g=weights((2, 9)), h=[weights((3, 3)), weights((2, 8), seed=1)],
            i=b"\0\1\2", j=sparse,
        ),
        helper.make_node("Const", [], ["k"], domain="mine"),
    ]  # fmt: skip
    function = helper.make_function(
        "mine", "Const", [], ["k"],
        [helper.make_node("Constant", [], ["k"], value=weights((7, 7), name="deep"))],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    model = model_of(weights((5, 5)), nodes=nodes, functions=[function])
    model.graph.sparse_initializer.append(sparse)
    model.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "n"]))
    model.doc_string = "a text with a zero \0 in it, and \1 and \4"
    model.graph.initializer.append(
        helper.make_tensor("text", TensorProto.STRING, [2], [b"a\0b", b""])
    )
    model.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [0.5, 2.0]))
    model.graph.initializer.append(helper.make_tensor("long", TensorProto.INT64, [1], [-7]))
    helper.set_model_props(model, {"author": "someone", "empty": ""})
    annotation = model.graph.quantization_annotation.add(tensor_name="w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    return model


def equal_models(left, right):
    return onnx.ModelProto.FromString(left) == right
