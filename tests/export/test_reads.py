"""What the products of a file read: masks and codes, however they are moved on the way."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.constants import Constants
from export.reads import Reads

node = helper.make_node
INT4 = helper.tensor_dtype_to_np_dtype(TensorProto.UINT4)
CONSTANTS = {
    "s": np.float32(0.5),
    "z": np.uint8(3),
    "zs": np.int8(-3),
    "z4": np.array(3, INT4),
    "w": np.ones((4, 4, 1, 1), np.float32),
    "b": np.ones((4, 1, 1), np.float32),
    "mask": np.tile(np.array([[1, 0], [0, 1]], np.float32), (4, 3, 3)),
    "tens": np.full((4, 6, 6), 10, np.float32),
    "one": np.float32(1),
    "zero": np.float32(0),
    "low": np.uint8(0),
    "high": np.uint8(15),
    "flow": np.float32(-1),
    "fhigh": np.float32(2),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "shape": np.array([0, 4, 6, 6], np.int64),
    "starts": np.array([0, 0], np.int64),
    "ends": np.array([6, 6], np.int64),
}


def model_of(nodes, output="y"):
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items()]
    x = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])]
    y = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "g", x, y, tensors))


def read_of(nodes, output="y"):
    model = model_of(nodes, output)
    [read] = Reads(model, Constants(model)).by_weight()["w"]
    return read


def rounded(source, target, zero="z", scale="s"):
    return [
        node("QuantizeLinear", [source, scale, zero], [f"{target}_codes"]),
        node("DequantizeLinear", [f"{target}_codes", scale, zero], [target]),
    ]


CONV = node("Conv", ["h", "w"], ["y"])


@pytest.mark.parametrize(("zero", "bits"), [("z", 8), ("zs", 8), ("z4", 4)])
def test_inputs_have_the_bits_of_their_codes(zero, bits):
    assert read_of([*rounded("x", "h", zero), CONV]).inputs == bits


def test_codes_without_a_zero_point_are_bytes():
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["c"]),
        node("DequantizeLinear", ["c", "s"], ["h"]),
        CONV,
    ]
    assert read_of(nodes).inputs == 8


MOVES = {
    "Relu": [node("Relu", ["a"], ["h"])],
    "MaxPool": [node("MaxPool", ["a"], ["h"], kernel_shape=[2, 2])],
    "Reshape": [node("Reshape", ["a", "shape"], ["h"])],
    "Transpose": [node("Transpose", ["a"], ["h"], perm=[0, 1, 3, 2])],
    "Slice": [node("Slice", ["a", "starts", "ends"], ["h"])],
    "Pad": [node("Pad", ["a", "pads"], ["h"])],
    "Pad with zeros": [node("Pad", ["a", "pads", "zero"], ["h"])],
    "Concat": [*rounded("x", "a2", "zs"), node("Concat", ["a", "a2"], ["h"], axis=0)],
    "mask": [node("Mul", ["mask", "a"], ["h"])],
    "two": [node("Relu", ["a"], ["a2"]), node("Identity", ["a2"], ["h"])],
}
CHANGES = {
    "Sigmoid": [node("Sigmoid", ["a"], ["h"])],
    "Add": [node("Add", ["a", "a"], ["h"])],
    "AveragePool": [node("AveragePool", ["a"], ["h"], kernel_shape=[1, 1])],
    "Pad with ones": [node("Pad", ["a", "pads", "one"], ["h"])],
    "Concat": [node("Concat", ["a", "x"], ["h"], axis=0)],
    "factor": [node("Mul", ["tens", "a"], ["h"])],
    "product": [node("Mul", ["a", "a"], ["h"])],
}


@pytest.mark.parametrize("name", MOVES)
def test_what_only_moves_values_keeps_them_on_their_grid(name):
    assert read_of([*rounded("x", "a"), *MOVES[name], CONV]).inputs == 8


@pytest.mark.parametrize("name", CHANGES)
def test_what_computes_does_not(name):
    assert read_of([*rounded("x", "a"), *CHANGES[name], CONV]).inputs is None


def test_a_raw_input_has_no_codes():
    assert read_of([node("Conv", ["x", "w"], ["y"])]).inputs is None


def test_codes_that_are_clipped_have_fewer_bits():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["wide"]),
        node("Clip", ["wide", "low", "high"], ["c"]),
        node("MaxPool", ["c"], ["m"], kernel_shape=[1, 1]),
        node("DequantizeLinear", ["m", "s", "z"], ["h"]),
        CONV,
    ]
    assert read_of(nodes).inputs == 4
    nodes[1] = node("Clip", ["wide", "low"], ["c"])
    assert read_of(nodes).inputs == 8


def test_values_that_are_clipped_before_they_are_rounded_have_fewer_codes():
    """From -1 to 2 with steps of 0.5 and zero point 3: codes 1 to 7."""
    nodes = [node("Clip", ["x", "flow", "fhigh"], ["k"]), *rounded("k", "h"), CONV]
    assert read_of(nodes).inputs == 3


def test_a_pad_of_codes_may_add_a_code():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["wide"]),
        node("Clip", ["wide", "low", "high"], ["c"]),
        node("Pad", ["c", "pads", "z"], ["p"]),
        node("DequantizeLinear", ["p", "s", "z"], ["h"]),
        CONV,
    ]
    assert read_of(nodes).inputs == 4
    CONSTANTS["far"] = np.uint8(200)
    nodes[2] = node("Pad", ["c", "pads", "far"], ["p"])
    assert read_of(nodes).inputs == 8


FOLLOWED = {
    "nothing": [*rounded("y", "q")],
    "bias": [node("Add", ["y", "b"], ["a"]), *rounded("a", "q")],
    "relu": [node("Relu", ["y"], ["a"]), *rounded("a", "q")],
    "silu": [
        node("Sigmoid", ["y"], ["g"]), node("Mul", ["y", "g"], ["a"]), *rounded("a", "q"),
    ],
    "twice": [*rounded("y", "q0"), *rounded("y", "q1"), node("Add", ["q0", "q1"], ["q"])],
}  # fmt: skip
KEPT = {
    "nothing": [node("Identity", ["y"], ["q"])],
    "pooled": [node("MaxPool", ["y"], ["a"], kernel_shape=[2, 2]), *rounded("a", "q")],
    "residual": [node("Add", ["y", "x"], ["a"]), *rounded("a", "q")],
    "also as floats": [*rounded("y", "a"), node("Add", ["a", "y"], ["q"])],
    "gate": [node("Sigmoid", ["x"], ["g"]), node("Mul", ["y", "g"], ["a"]), *rounded("a", "q")],
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_outputs_that_only_quantizers_read_have_their_bits(name):
    assert read_of([node("Conv", ["x", "w"], ["y"]), *FOLLOWED[name]], "q").outputs == 8


@pytest.mark.parametrize("name", KEPT)
def test_outputs_that_anything_else_reads_are_floats(name):
    assert read_of([node("Conv", ["x", "w"], ["y"]), *KEPT[name]], "q").outputs is None


def test_an_output_of_the_file_is_kept_as_it_is():
    assert read_of([node("Conv", ["x", "w"], ["y"]), *rounded("y", "q")], "y").outputs is None


def test_outputs_whose_codes_are_clipped_have_fewer_bits():
    nodes = [
        node("Conv", ["x", "w"], ["y"]),
        node("QuantizeLinear", ["y", "s", "z"], ["wide"]),
        node("Clip", ["wide", "low", "high"], ["c"]),
        node("DequantizeLinear", ["c", "s", "z"], ["q"]),
    ]
    assert read_of(nodes, "q").outputs == 4


@pytest.mark.parametrize("rounding", ["before", "after", "never"])
def test_a_mask_is_seen_through_roundings(rounding):
    nodes = [node("Mul", ["x", "mask"], ["h"]), CONV]
    if rounding == "before":
        nodes = [*rounded("x", "a"), node("Mul", ["a", "mask"], ["h"]), CONV]
    elif rounding == "after":
        nodes = [node("Mul", ["x", "mask"], ["a"]), *rounded("a", "h"), CONV]
    np.testing.assert_array_equal(read_of(nodes).factor, CONSTANTS["mask"])


def test_a_weight_that_several_products_read_has_a_read_for_each():
    nodes = [
        *rounded("x", "h"),
        CONV,
        node("Identity", ["w"], ["v"]),
        node("Conv", ["x", "v"], ["y2"]),
    ]
    model = model_of(nodes)
    reads = Reads(model, Constants(model)).by_weight()
    assert [read.inputs for read in reads["w"]] == [8, None]
    assert [read.inputs for read in reads["v"]] == [None]
