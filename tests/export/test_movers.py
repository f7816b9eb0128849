"""Movement of values: what moves them, on floats and on codes alike; slices merged."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from export.movers import keeps_elements, merge_slices, moves_values, on_codes
from export.onnx_graph import Rewriter

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
CONSTANTS = """<int64[1] zero1 = {0}, int64[1] one1 = {1}, int64[1] two1 = {2},
  int64[1] three1 = {3}, int64[1] end = {9223372036854775807},
  int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0},
  float zero = {0}, float one = {1}, int64[2] flat = {0, -1}, int64[1] minus1 = {-1}>"""


def graph(body, output="y"):
    text = f"{HEADER}g (float[n, 2, 6, 6] x) => (float[] {output}) {CONSTANTS} {{ {body} }}"
    return Rewriter(onnx.parser.parse_model(text))


def run(model, x):
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


MOVES = {
    "y = Reshape(x, flat)": (True, True),
    "y = Flatten<axis = 1>(x)": (True, True),
    "y = Transpose<perm = [0, 2, 3, 1]>(x)": (True, True),
    "y = Slice(x, zero1, end, two1, two1)": (True, False),
    "y = MaxPool<kernel_shape = [2, 2]>(x)": (True, True),
    "y = Pad(x, pads, zero)": (True, True),
    "y = Pad(x, pads)": (True, True),
    'y = Pad<mode = "reflect">(x, pads, one)': (True, True),
    "y = Gather<axis = 1>(x, zero1)": (True, False),
    "y = Pad(x, pads, one)": (False, False),
    "y = Relu(x)": (False, False),
    "y = Add(x, one)": (False, False),
}


@pytest.mark.parametrize("body", MOVES)
def test_what_moves_values(body):
    rewriter = graph(body)
    [node] = rewriter.nodes
    assert (moves_values(node, rewriter), keeps_elements(node, rewriter)) == MOVES[body]


@pytest.mark.parametrize("body", [b for b, (moves, _) in MOVES.items() if moves])
@pytest.mark.parametrize("zero", [0, 7, 255])
def test_moving_codes_is_moving_what_they_stand_for(body, zero):
    codes = np.random.default_rng(0).integers(0, 256, (3, 2, 6, 6)).astype(np.uint8)
    scale = np.float32(0.25)
    expected = run(graph(body).model, (codes.astype(np.float32) - zero) * scale)
    rewriter = graph(body)
    [node] = rewriter.nodes
    rewriter.store("z", np.array(zero, dtype=np.uint8))
    rewriter.remove(node)
    rewriter.nodes.append(on_codes(node, "x", "z", "y"))
    rewriter.finish()
    rewriter.model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    rewriter.model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    moved = run(rewriter.model, codes)
    np.testing.assert_array_equal((moved.astype(np.float32) - zero) * scale, expected)


@settings(max_examples=40)
@given(
    axes=st.permutations([1, 2, 3]),
    starts=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    steps=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    count=st.integers(2, 3),
)
def test_merged_slices_cut_the_same(axes, starts, steps, count):
    names = [*["x", "a", "b"][:count], "y"]
    rewriter = graph("y = Relu(x)")
    rewriter.nodes = []
    for place in range(count):
        inputs = [names[place]]
        for role, value in (("s", starts[place]), ("e", 2**62), ("a", axes[place])):
            inputs.append(rewriter.store(f"{role}{place}", np.array([value])))
        inputs.append(rewriter.store(f"t{place}", np.array([steps[place]])))
        rewriter.add("Slice", inputs, names[place + 1])
    x = np.arange(72 * 3, dtype=np.float32).reshape(3, 2, 6, 6)
    expected = x
    for place in range(count):
        cut = [slice(None)] * 4
        cut[axes[place]] = slice(starts[place], None, steps[place])
        expected = expected[tuple(cut)]
    merge_slices(rewriter)
    rewriter.finish()
    assert len(rewriter.model.graph.node) == 1
    np.testing.assert_array_equal(run(rewriter.model, x), expected)


@pytest.mark.parametrize(
    "body",
    [
        "a = Slice(x, zero1, three1, two1) y = Slice(a, one1, end, two1)",  # the same axis
        "a = Slice(x, zero1, end, two1, two1) b = Slice(a, zero1, end, three1) y = Sub(b, a)",
        "a = Slice(x, zero1, end, two1) y = Slice(a, zero1, end, minus1)",  # an axis from the end
    ],
)
def test_other_slices_stay(body):
    rewriter = graph(body)
    merge_slices(rewriter)
    assert sum(node.op_type == "Slice" for node in rewriter.nodes) == 2
