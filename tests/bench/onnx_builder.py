"""Small ONNX models for the tests of `bench`, built node by node and so without our exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def ones(*shape):
    return np.ones(shape, dtype=np.float32)


def every_other(*shape):
    """Ones whose odd flat positions are zero: the variant w50 of the energy oracles."""
    flat = np.ones(int(np.prod(shape)), dtype=np.float32)
    flat[1::2] = 0
    return flat.reshape(shape)


def model(nodes, constants, inputs=("x", ("batch", 4)), output="y"):
    """A model of one input; `constants` are its initialisers by name."""
    name, shape = inputs
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def layer(op, weight, shape, **attributes):
    """A model of one node `op(x, w)`."""
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    return model([node], {"w": weight}, ("x", shape))


def lenet5(fill=ones):
    """LeNet-5 on 1 x 32 x 32 with a dynamic batch; weights carry torch's names."""
    weights = {
        "features.0.weight": fill(6, 1, 5, 5),
        "features.3.weight": fill(16, 6, 5, 5),
        "classifier.0.weight": fill(120, 400),
        "classifier.2.weight": fill(84, 120),
        "classifier.4.weight": fill(10, 84),
    }
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["x", "features.0.weight"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], **pool),
        helper.make_node("Conv", ["p1", "features.3.weight"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], **pool),
        helper.make_node("Reshape", ["p2", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "classifier.0.weight"], ["g1"], transB=1),
        helper.make_node("Relu", ["g1"], ["r3"]),
        helper.make_node("Gemm", ["r3", "classifier.2.weight"], ["g2"], transB=1),
        helper.make_node("Relu", ["g2"], ["r4"]),
        helper.make_node("Gemm", ["r4", "classifier.4.weight"], ["y"], transB=1),
    ]
    constants = weights | {"flat": np.array([-1, 400], dtype=np.int64)}
    return model(nodes, constants, ("x", ("batch", 1, 32, 32)))


def save(proto, path: Path) -> Path:
    onnx.save(proto, path)
    return path
