"""Markers are dropped, raised and grouped without a change of the function."""

from __future__ import annotations

import onnx
import pytest

from export.markers import Grid, Mark, index_of
from export.onnx_graph import Rewriter, value_shapes
from export.qdq_activations import Quantization
from export.qdq_markers import (
    drop_markers,
    idle_quantizers,
    pool_globally,
    raise_markers,
    repeated_markers,
)

HEADER = '<ir_version: 10, opset_import: ["" : 21, "transform" : 1]>\n'
CONSTANTS = """<float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2, 2, 1, 1] v = {1, 2, 3, 4},
  int64[2] space = {-1, -2}, int64[2] other = {1, -1}, int64[4] pads = {0, 1, 1, 0}>"""


def graph(body):
    text = f"{HEADER}g (float[n, 2, 6, 6] x) => (float[] y) {CONSTANTS} {{ {body} }}"
    return Rewriter(onnx.parser.parse_model(text))


def q(output, index, source):
    return f"{output} = transform.Quantizer<index = {index}>({source})\n"


def marks(*scales):
    return [Mark(f"q{i}", 0, Grid(s, 0, 0, 255)) for i, s in enumerate(scales)]


def kinds(rewriter):
    rewriter.finish()
    return [node.op_type for node in rewriter.model.graph.node]


@pytest.mark.parametrize(
    ("between", "scales", "repeated"),
    [
        ("b = MaxPool<kernel_shape = [2, 2]>(a)\n", (1, 1), True),
        ("b = Relu(a)\n", (1, 1), True),
        ("b = Concat<axis = 1>(a, a)\n", (1, 1), True),
        ("c = Relu(x)\n b = Concat<axis = 1>(a, c)\n", (1, 1), False),
        ("b = MaxPool<kernel_shape = [2, 2]>(a)\n", (1, 2), False),
        ("b = Sigmoid(a)\n", (1, 1), False),
        ("b = AveragePool<kernel_shape = [2, 2]>(a)\n", (1, 1), False),
    ],
)
def test_a_marker_of_values_on_its_grid_is_repeated(between, scales, repeated):
    rewriter = graph(q("a", 0, "x") + between + q("y", 1, "b"))
    assert repeated_markers(rewriter, marks(*scales)) == ({1} if repeated else frozenset())


def test_an_output_keeps_its_name_when_its_marker_goes():
    rewriter = graph("b = Relu(x)\n c = Sigmoid(b)\n" + q("y", 0, "b"))
    drop_markers(rewriter, {0})
    rewriter.finish()
    assert [list(node.output) for node in rewriter.model.graph.node] == [["y"]]
    rewriter = graph(q("y", 0, "x"))
    drop_markers(rewriter, {0})
    assert kinds(rewriter) == ["Identity"]


def test_markers_rise_to_the_layer():
    body = "c = Conv(x, w)\n m = MaxPool<kernel_shape = [2, 2]>(c)\n r = Flatten(m)\n"
    rewriter = graph(body + q("y", 0, "r"))
    raise_markers(rewriter)
    assert kinds(rewriter) == ["Conv", "Quantizer", "MaxPool", "Flatten"]
    assert rewriter.model.graph.node[-1].output[0] == "y"


def test_a_marker_behind_a_concatenation_becomes_one_for_each_part():
    body = "c = Conv(x, w)\n d = Conv(x, v)\n r = Concat<axis = 1>(c, d)\n"
    rewriter = graph(body + q("y", 0, "r"))
    raise_markers(rewriter)
    assert kinds(rewriter).count("Quantizer") == 2
    assert rewriter.model.graph.node[-1].op_type == "Concat"


@pytest.mark.parametrize(
    "body",
    [
        "m = MaxPool<kernel_shape = [2, 2]>(x)\n" + q("y", 0, "m"),  # from an input of the model
        "c = Conv(x, w)\n m = Flatten(c)\n" + q("a", 0, "m") + "y = Sub(a, m)\n",  # read twice
        "c = Conv(x, w)\n m = Sigmoid(c)\n" + q("y", 0, "m"),
        q("a", 0, "x") + "m = Flatten(a)\n" + q("y", 1, "m"),
    ],
)
def test_other_markers_stay_where_they_are(body):
    rewriter = graph(body)
    before = [node.op_type for node in rewriter.nodes]
    raise_markers(rewriter)
    assert [node.op_type for node in rewriter.nodes] == before


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ("y = ReduceMean<keepdims = 1>(a, space)", ["GlobalAveragePool"]),
        ("y = ReduceMean<keepdims = 0>(a, space)", ["GlobalAveragePool", "Flatten"]),
        ("y = ReduceMean<keepdims = 1>(a, other)", ["ReduceMean"]),
    ],
)
def test_means_over_space_are_pools(mean, expected):
    rewriter = graph(q("a", 0, "x") + mean)
    pool_globally(rewriter, value_shapes(rewriter.model))
    assert kinds(rewriter)[1:] == expected


def test_a_mean_of_floats_stays():
    rewriter = graph("a = Relu(x)\n y = ReduceMean<keepdims = 1>(a, space)")
    pool_globally(rewriter, value_shapes(rewriter.model))
    assert kinds(rewriter) == ["Relu", "ReduceMean"]


CHAIN = (
    q("a", 0, "x") + "c = Conv(a, w)\n r = Relu(c)\n" + q("b", 1, "r") + "d = Conv(b, v)\n"
    "e = Sigmoid(d)\n" + q("y", 2, "e")
)


@pytest.mark.parametrize(
    ("integer", "idle"),
    [({"w", "v"}, set()), ({"w"}, {"q2"}), ({"v"}, {"q0"}), (set(), {"q0", "q1", "q2"})],
)
def test_quantizers_that_touch_no_integer_layer_are_idle(integer, idle):
    assert idle_quantizers(graph(CHAIN), marks(1, 1, 1), integer) == idle


def test_one_needed_call_keeps_a_quantizer():
    shared = [Mark("q", call, Grid(1.0, 0, 0, 255)) for call in range(3)]
    assert idle_quantizers(graph(CHAIN), shared, {"w"}) == frozenset()


def test_a_residual_stream_is_one_region():
    body = q("a", 0, "x") + "c = Conv(a, w)\n" + q("b", 1, "c") + "s = Add(a, b)\n"
    body += q("t", 2, "s") + "d = Conv(t, v)\n" + q("y", 3, "d")
    assert idle_quantizers(graph(body), marks(1, 2, 3, 4), {"w"}) == {"q3"}


def test_codes_move_where_values_did():
    body = q("a", 0, "x") + "m = MaxPool<kernel_shape = [2, 2]>(a)\n f = Flatten(m)\n"
    rewriter = graph(body + "s = Sigmoid(a)\n y = Concat<axis = 0>(f, f)")
    quantization = Quantization(rewriter, marks(1))
    quantization.insert({0: "a"})
    quantization.move_codes()
    assert kinds(rewriter) == [
        *["QuantizeLinear", "MaxPool", "Flatten", "Concat", "DequantizeLinear"]
    ]
    assert quantization.coded["y"].grid == quantization.coded["a"].grid


def test_parts_on_different_grids_are_joined_as_floats():
    rewriter = graph(q("a", 0, "x") + q("b", 1, "x") + "y = Concat<axis = 1>(a, b)")
    quantization = Quantization(rewriter, marks(1, 2))
    quantization.insert({0: "a", 1: "b"})
    quantization.move_codes()
    assert kinds(rewriter)[-1] == "Concat"


def test_narrow_codes_are_clipped_as_codes():
    rewriter = graph(q("y", 0, "x"))
    quantization = Quantization(rewriter, [Mark("q", 0, Grid(0.5, 3, 0, 15))])
    quantization.insert({0: "y"})
    assert kinds(rewriter) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    assert all(index_of(node) is None for node in rewriter.nodes)
    assert [int(rewriter.array(name)) for name in rewriter.model.graph.node[1].input[1:]] == [0, 15]
