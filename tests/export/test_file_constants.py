"""Constants of a file: what they decode to, as ONNX says, and how their elements are stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.constant_operators import OPERATORS
from export.constants import Constants

INT4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)


def model_of(nodes, constants, sparse=()):
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    x = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    y = (
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
        if nodes
        else []
    )
    graph = helper.make_graph(nodes, "g", x, y, tensors, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(kind, *inputs, **attributes):
    return helper.make_node(kind, list(inputs), ["y"], **attributes)


def agrees(made, constants):
    model = model_of([made], constants)
    x = np.zeros(1, np.float32)
    [expected, *_] = ReferenceEvaluator(model).run(None, {"x": x})
    found = Constants(model)["y"].values
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


FLOATS = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
CODES = np.random.default_rng(1).integers(-8, 8, (4, 6)).astype(np.int8)
LONG = np.array([7, -7, 5, 2], np.int64)
CASES = {
    "Add": (node("Add", "a", "b"), {"a": LONG, "b": LONG[:1]}),
    "BitShift": (
        node("BitShift", "a", "b", direction="RIGHT"),
        {"a": np.arange(6, dtype=np.uint8)[:, None], "b": np.arange(3, dtype=np.uint8)[None]},
    ),
    "left": (
        node("BitShift", "a", "b", direction="LEFT"),
        {"a": np.arange(6, dtype=np.uint8), "b": np.uint8(2)},
    ),
    "BitwiseAnd": (
        node("BitwiseAnd", "a", "b"),
        {"a": np.arange(6, dtype=np.uint8), "b": np.uint8(1)},
    ),
    "BitwiseXor": (
        node("BitwiseXor", "a", "b"),
        {"a": np.array([1 << 63, 5], np.uint64), "b": np.uint64((1 << 63) + 6)},
    ),
    "Cast": (node("Cast", "a", to=TensorProto.FLOAT), {"a": CODES}),
    "unsigned": (node("Cast", "a", to=TensorProto.UINT64), {"a": LONG}),
    "half": (node("Cast", "a", to=TensorProto.FLOAT16), {"a": FLOATS}),
    "Concat": (node("Concat", "a", "a", axis=1), {"a": FLOATS}),
    "ConstantOfShape": (
        node("ConstantOfShape", "a", value=helper.make_tensor("v", TensorProto.INT8, [1], [3])),
        {"a": np.array([2, 3])},
    ),
    "zeros": (node("ConstantOfShape", "a"), {"a": np.array([2, 3])}),
    "CumSum": (node("CumSum", "a", "b"), {"a": LONG, "b": np.array(0)}),
    "exclusive": (
        node("CumSum", "a", "b", exclusive=1, reverse=1),
        {"a": CODES.astype(np.int64), "b": np.array(1)},
    ),
    "Div": (node("Div", "a", "b"), {"a": FLOATS, "b": np.float32(3)}),
    "whole": (node("Div", "a", "b"), {"a": LONG, "b": np.array(2)}),
    "Equal": (node("Equal", "a", "b"), {"a": LONG, "b": np.array([7, 7, 7, 2])}),
    "Expand": (node("Expand", "a", "b"), {"a": FLOATS[:, :1], "b": np.array([2, 1, 3])}),
    "Gather": (node("Gather", "a", "b", axis=1), {"a": FLOATS, "b": np.array([[0, -1], [2, 2]])}),
    "Identity": (node("Identity", "a"), {"a": FLOATS}),
    "Mod": (node("Mod", "a", "b"), {"a": LONG, "b": np.array(3)}),
    "fmod": (node("Mod", "a", "b", fmod=1), {"a": LONG, "b": np.array(3)}),
    "Mul": (node("Mul", "a", "b"), {"a": FLOATS, "b": FLOATS[:1]}),
    "overflow": (node("Mul", "a", "b"), {"a": LONG, "b": np.array([(1 << 62) + 3])}),
    "Neg": (node("Neg", "a"), {"a": FLOATS}),
    "Range": (node("Range", "a", "b", "c"), {"a": np.array(2), "b": np.array(9), "c": np.array(3)}),
    "ReduceMin": (node("ReduceMin", "a", keepdims=0), {"a": LONG.astype(np.int32)}),
    "least of rows": (node("ReduceMin", "a", "b"), {"a": FLOATS, "b": np.array([1])}),
    "Reshape": (node("Reshape", "a", "b"), {"a": FLOATS, "b": np.array([0, -1, 2])}),
    "ScatterElements": (
        node("ScatterElements", "a", "b", "c"),
        {"a": np.zeros(9, np.float32), "b": np.array([8, 1, -2]), "c": FLOATS[0, :3]},
    ),
    "along": (
        node("ScatterElements", "a", "b", "c", axis=1),
        {"a": FLOATS, "b": np.array([[5, 1], [0, 3]]), "c": FLOATS[2:, :2]},
    ),
    "added": (
        node("ScatterElements", "a", "b", "c", reduction="add"),
        {"a": np.zeros(4, np.float32), "b": np.array([1, 1, 3]), "c": FLOATS[0, :3]},
    ),
    "ScatterND": (
        node("ScatterND", "a", "b", "c"),
        {"a": FLOATS, "b": np.array([[0, 1], [3, 5]]), "c": FLOATS[1, :2]},
    ),
    "Slice": (
        node("Slice", "a", "b", "c", "d", "e"),
        {"a": FLOATS, "b": np.array([1, -1]), "c": np.array([9, -9]), "d": np.array([0, 1]),
         "e": np.array([2, -1])},
    ),
    "short": (node("Slice", "a", "b", "c"), {"a": LONG, "b": np.array([1]), "c": np.array([-1])}),
    "Squeeze": (node("Squeeze", "a", "b"), {"a": FLOATS[None, :, None], "b": np.array([0, 2])}),
    "all": (node("Squeeze", "a"), {"a": FLOATS[None, :, None]}),
    "Sub": (node("Sub", "a", "b"), {"a": LONG, "b": np.array(1)}),
    "TopK": (
        helper.make_node("TopK", ["a", "b"], ["y", "places"], axis=0, largest=0),
        {"a": FLOATS, "b": np.array([3])},
    ),
    "Transpose": (node("Transpose", "a", perm=[1, 0]), {"a": FLOATS}),
    "turned": (node("Transpose", "a"), {"a": FLOATS}),
    "Unsqueeze": (node("Unsqueeze", "a", "b"), {"a": FLOATS, "b": np.array([0, 3])}),
    "Where": (
        node("Where", "a", "b", "c"),
        {"a": np.array(False), "b": FLOATS, "c": np.float32(np.nan)},
    ),
    "DequantizeLinear": (
        node("DequantizeLinear", "a", "b", axis=0),
        {"a": CODES, "b": np.abs(FLOATS[:, 0])},
    ),
    "columns": (
        node("DequantizeLinear", "a", "b", "c", axis=-1),
        {"a": CODES, "b": np.abs(FLOATS[0]), "c": CODES[1]},
    ),
    "blocks": (
        node("DequantizeLinear", "a", "b", axis=1, block_size=4),
        {"a": CODES, "b": np.abs(FLOATS[:, :2])},
    ),
    "one scale": (node("DequantizeLinear", "a", "b"), {"a": CODES, "b": np.float32(0.5)}),
    "a bias": (
        node("DequantizeLinear", "a", "b", axis=0),
        {"a": np.array([1 << 20, -5], np.int32), "b": np.array([0.5, 0.25], np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_compute_what_the_reference_does(name):
    agrees(*CASES[name])


@pytest.mark.parametrize("largest", [0, 1])
def test_both_outputs_of_a_selection_are_known_and_ties_go_by_place(largest):
    values = np.array([[3, 1, 3, 1, 2], [5, 5, 5, 0, 5]], np.int64)
    made = helper.make_node("TopK", ["a", "b"], ["v", "i"], axis=1, largest=largest)
    constants = Constants(model_of([made], {"a": values, "b": np.array([4])}))
    order = np.argsort(-values if largest else values, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(constants["i"].values, order)
    np.testing.assert_array_equal(constants["v"].values, np.take_along_axis(values, order, 1))


def test_every_operator_is_tested():
    assert set(OPERATORS) == {made.op_type for made, _ in CASES.values()}


@settings(max_examples=40)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 9),
    block=st.integers(2, 4),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_blocks_of_scales_by_brute_force(rows, cols, block, axis, seed):
    generator = np.random.default_rng(seed)
    codes = generator.integers(-7, 8, (rows, cols)).astype(np.int8)
    shape = [rows, cols]
    shape[axis] = -(-shape[axis] // block)
    scales = generator.random(shape).astype(np.float32)
    made = node("DequantizeLinear", "a", "b", axis=axis, block_size=block)
    found = Constants(model_of([made], {"a": codes, "b": scales}))["y"].values
    for i in range(rows):
        for j in range(cols):
            scale = scales[i // block, j] if axis == 0 else scales[i, j // block]
            assert found[i, j] == np.float32(codes[i, j]) * scale


def test_constant_nodes():
    nodes = [
        helper.make_node("Constant", [], ["a"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["b"], value_float=2.5),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(CODES)),
    ]
    constants = Constants(model_of(nodes, {}))
    np.testing.assert_array_equal(constants["a"].values, [1, 2])
    assert constants["b"].values == np.float32(2.5)
    np.testing.assert_array_equal(constants["c"].values, CODES)


def described(constants, name="y"):
    found = constants[name]
    return found.bits, found.needed, sorted(found.form)


@pytest.mark.parametrize(
    ("largest", "needed"), [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (127, 8)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_grid_is_the_narrowest_that_holds_all_codes(largest, needed, sign):
    codes = np.array([[sign * largest, 0]], np.int8)
    made = node("DequantizeLinear", "a", "b")
    constants = Constants(model_of([made], {"a": codes, "b": np.float32(0.5)}))
    assert described(constants) == (8, needed, ["codes"])


def test_the_lowest_code_of_a_type_needs_the_type():
    made = node("DequantizeLinear", "a", "b")
    constants = Constants(model_of([made], {"a": np.array([-128], np.int8), "b": np.float32(1)}))
    assert described(constants) == (8, 8, ["codes"])


def test_zero_points_shift_codes():
    made = node("DequantizeLinear", "a", "b", "c", axis=0)
    codes = np.array([[128, 131], [120, 127]], np.uint8)
    values = {"a": codes, "b": np.ones(2, np.float32), "c": np.array([128, 124], np.uint8)}
    assert described(Constants(model_of([made], values))) == (8, 4, ["codes"])


def test_packed_codes_have_their_own_width():
    made = node("DequantizeLinear", "a", "b")
    constants = Constants(
        model_of([made], {"a": CODES.clip(-3, 3).astype(INT4), "b": np.float32(1)})
    )
    assert described(constants) == (4, 3, ["codes"])
    np.testing.assert_array_equal(constants["y"].values, CODES.clip(-3, 3))


def test_codes_scaled_by_a_product_are_codes_too():
    nodes = [
        helper.make_node("Cast", ["a"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "f"], ["y"]),
    ]
    constants = Constants(model_of(nodes, {"a": CODES.clip(-7, 7), "s": FLOATS[:, :1]}))
    assert described(constants) == (8, 4, ["codes"])


def gaps_of(values):
    """A flat array as gaps and values; gaps of a byte."""
    places = np.flatnonzero(values)
    return np.diff(places, prepend=0).astype(np.uint8), values[places]


def sparse_nodes(scattered):
    return [
        helper.make_node("Cast", ["gaps"], ["steps"], to=TensorProto.INT64),
        helper.make_node("CumSum", ["steps", "axis"], ["places"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"], value=scattered),
        helper.make_node("ScatterElements", ["zeros", "places", "values"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["w"]),
    ]


def sparse_constants(whole):
    gaps, values = gaps_of(whole.reshape(-1))
    return {
        "gaps": gaps, "values": values, "axis": np.array(0), "size": np.array([whole.size]),
        "shape": np.array(whole.shape),
    }  # fmt: skip


def test_a_weight_of_gaps_and_values():
    whole = np.where(FLOATS > 0.5, FLOATS, 0)
    zero = helper.make_tensor("z", TensorProto.FLOAT, [1], [0])
    constants = Constants(model_of(sparse_nodes(zero), sparse_constants(whole)))
    np.testing.assert_array_equal(constants["w"].values, whole)
    assert described(constants, "w") == (32, 32, ["sparse"])


def test_a_weight_of_gaps_and_codes():
    whole = np.where(CODES > 2, CODES, 0)
    zero = helper.make_tensor("z", TensorProto.INT8, [1], [0])
    nodes = [*sparse_nodes(zero), node("DequantizeLinear", "w", "s", axis=0)]
    scale = np.array([0.5, 0.25, 1, 2], np.float32)
    constants = Constants(model_of(nodes, sparse_constants(whole) | {"s": scale}))
    np.testing.assert_array_equal(constants["y"].values, whole * scale[:, None])
    assert described(constants) == (8, 4, ["codes", "sparse"])


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initialisers(linear):
    whole = np.where(FLOATS > 0.5, FLOATS, 0)
    places = np.flatnonzero(whole) if linear else np.argwhere(whole)
    tensor = helper.make_sparse_tensor(
        numpy_helper.from_array(whole[whole != 0], "w"),
        numpy_helper.from_array(places.astype(np.int64), "i"),
        whole.shape,
    )
    constants = Constants(model_of([], {}, [tensor]))
    assert constants.dims("w") == whole.shape
    np.testing.assert_array_equal(constants["w"].values, whole)
    assert described(constants, "w") == (32, 32, ["sparse"])


def test_what_depends_on_an_input_or_is_not_understood_is_no_constant():
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["m"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Neg", ["r"], ["n"]),
        helper.make_node("Identity", ["a"], ["i"]),
    ]
    constants = Constants(model_of(nodes, {"a": FLOATS}))
    assert [name in constants for name in ("x", "m", "r", "n", "i", "a")] == [False] * 4 + [
        True
    ] * 2
    assert constants.get("m") is None
    with pytest.raises(KeyError):
        constants["m"]
