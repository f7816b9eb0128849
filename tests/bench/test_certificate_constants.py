"""Constants that the checker computes from others: as ONNX says, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bench.certificate_constants import Constants, UnreadableError

LONG = np.array([7, -7, 5, 2, 5], np.int64)
WORDS = np.array([1 << 63, 5], np.uint64)
READ = {
    "BitwiseXor": ({}, [WORDS, WORDS[::-1]]),
    "Equal": ({}, [LONG, np.array([7, 7, 5, 2, 0])]),
    "Mod": ({}, [LONG, np.array(3)]),
    "Neg": ({}, [LONG]),
    "Range": ({}, [np.array(2), np.array(9), np.array(3)]),
    "ReduceMin": ({"keepdims": 0}, [LONG]),
    "TopK": ({"largest": 0, "axis": 0}, [LONG, np.array([4])]),
    "Where": ({}, [np.array(False), LONG, LONG[::-1]]),
}


def graph_of(kind, attributes, arrays):
    inputs = [
        numpy_helper.from_array(np.ascontiguousarray(a), f"i{n}") for n, a in enumerate(arrays)
    ]
    outputs = ["y", "places"] if kind == "TopK" else ["y"]
    node = helper.make_node(kind, [t.name for t in inputs], outputs, **attributes)
    out = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in outputs]
    return helper.make_graph([node], "g", [], out, inputs)


@pytest.mark.parametrize("kind", READ)
def test_what_a_node_of_constants_gives(kind):
    graph = graph_of(kind, *READ[kind])
    opsets = [helper.make_opsetid("", 21)]
    expected = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {})
    constants = Constants(graph)
    for value, array in zip(graph.output, expected, strict=True):
        np.testing.assert_array_equal(constants.array(value.name), array)


@pytest.mark.parametrize(
    ("kind", "attributes", "arrays"),
    [
        ("ReduceMin", {}, [LONG]),
        ("ReduceMin", {"keepdims": 0}, [LONG, np.array([0])]),
        ("TopK", {}, [LONG, np.array([2])]),
        ("TopK", {"largest": 0}, [LONG[None], np.array([2])]),
    ],
)
def test_what_it_does_not_read_it_says(kind, attributes, arrays):
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        Constants(graph_of(kind, attributes, arrays)).get("y")
