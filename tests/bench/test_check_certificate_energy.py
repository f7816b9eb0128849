"""The checker's own energy model: oracles, hand-computed values, and the compiler's model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_builder as build
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from bench.certificate_energy import ENERGY
from bench.certificate_energy import totals as summed
from bench.certificate_files import Graph, energy_of
from energy_model import LayerShape, layer_energy, load_hardware

ORACLE = Path(__file__).parents[1] / "data" / "energy-oracle.json"
EYERISS = load_hardware("eyeriss")
HARDWARE = EYERISS.to_dict()


def totals(proto, hardware=HARDWARE):
    graph = Graph(proto)
    found = summed(energy_of(use, hardware) for use in graph.uses())
    assert not graph.unread
    return found


def expected(shape, hardware=EYERISS, counts=None):
    energy = layer_energy(shape, hardware, counts)
    kept = shape.weights if counts is None else int(counts.sum())
    macs = {"macs": shape.macs, "sparse_macs": shape.macs * kept // shape.weights}
    return {key: getattr(energy, key) for key in ENERGY} | macs


@pytest.mark.parametrize("variant", ["dense", "w50"])
def test_lenet5_oracle(variant):
    rows = json.loads(ORACLE.read_text())["lenet5"][variant]
    found = totals(build.lenet5(build.ones if variant == "dense" else build.every_other))
    sums = {key: sum(row[key] for row in rows) for key in ("W", "C", "rC", "X")}
    assert found["weights"] == sums["W"]
    assert found["compute"] == sums["C"]
    assert found["compute_relaxed"] == sums["rC"]
    assert found["activations"] == sums["X"]
    assert found["relaxed"] == {"dense": 17107544, "w50": 9856244}[variant]
    assert found["positions"] == 0
    assert found["macs"] == 416520
    assert found["sparse_macs"] == {"dense": 416520, "w50": 416520 // 2}[variant]


@pytest.mark.parametrize(
    ("weight", "data", "attributes", "answer"),
    [
        ((1, 1, 3, 3), (1, 4, 4), {}, (1890, 108, 108, 4252)),
        ((3, 2, 3, 3), (2, 5, 5), {"pads": [1] * 4}, (13122, 3042, 4050, 28042)),
        (
            (128, 4, 3, 3),
            (128, 14, 14),
            {"pads": [1] * 4, "group": 32},
            (3933184, 2457600, 2709504, 12083200),
        ),
        (
            (96, 1, 3, 3),
            (96, 112, 112),
            {"pads": [1] * 4, "group": 96, "strides": [2, 2]},
            (4240512, 8032032, 8128512, 549890208),
        ),
        (
            (64, 3, 7, 7),
            (3, 224, 224),
            {"pads": [3] * 4, "strides": [2, 2]},
            (1289148160, 348643584, 354041856, 363643688),
        ),
        (
            (64, 64, 3, 3),
            (64, 224, 224),
            {"pads": [1] * 4},
            (30182653952, 5516083200, 5549064192, 5252390400),
        ),
        (
            (192, 64, 5, 5),
            (64, 27, 27),
            {"pads": [2] * 4},
            (4035072000, 613453824, 671846400, 331271424),
        ),
    ],
)
def test_convolution_oracles(weight, data, attributes, answer):
    """Single layers with known integers: weights, compute exact and relaxed, activations."""
    found = totals(build.layer("Conv", build.ones(*weight), ("n", *data), **attributes))
    keys = ("weights", "compute", "compute_relaxed", "activations")
    assert tuple(found[key] for key in keys) == answer
    assert found["exact"] == answer[0] + answer[1] + answer[3]
    assert found["relaxed"] == answer[0] + answer[2] + answer[3]


@pytest.mark.parametrize("transposed", [0, 1])
def test_fully_connected_oracle_beyond_the_input_cache(transposed):
    weight = build.ones(100, 60000) if transposed else build.ones(60000, 100)
    found = totals(build.layer("Gemm", weight, ("n", 60000), transB=transposed))
    assert (found["weights"], found["compute"]) == (1242000000, 18000000)
    assert (found["activations"], found["exact"]) == (33220000, 1293220000)


def test_hand_computed_matrix_product_on_tokens():
    # 3 tokens, 4 -> 5 features, 7 of 20 weights: one tile of rows, one of columns.
    weight = np.zeros((4, 5), dtype=np.float32)
    weight.flat[:7] = 2.0
    found = totals(build.layer("MatMul", weight, ("n", 3, 4)))
    assert found["weights"] == 200 * 7 + 6 * 7 + 3 * 7
    assert found["compute"] == found["compute_relaxed"] == 3 * 3 * 7
    assert found["activations"] == 200 * (12 + 15) + 6 * 12 + 5 * 12
    assert (found["macs"], found["sparse_macs"]) == (3 * 20, 3 * 7)


def test_index_bits_charge_a_position_per_nonzero():
    hardware = HARDWARE | {"index_bits": 5, "weight_cache_bytes": 8}
    found = totals(build.layer("MatMul", build.ones(4, 5), ("n", 13, 4)), hardware)
    # Two row tiles; 4 words fit: ceil((200 + 12) * 5 / 16) = 67, ceil((400 + 12) * 5 / 16) = 129.
    assert found["positions"] == 4 * 67 + 16 * 129
    shape = LayerShape.linear(4, 5, positions=13)
    assert found == expected(shape, load_hardware(hardware))


sizes = st.integers(1, 4)


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 2))
    each = st.lists(sizes, min_size=dims, max_size=dims)
    return {
        "channels": (draw(sizes), draw(sizes)),
        "groups": draw(st.integers(1, 3)),
        "kernel": draw(each),
        "size": [draw(st.integers(8, 14)) for _ in range(dims)],
        "stride": draw(each),
        "dilation": [draw(st.integers(1, 2)) for _ in range(dims)],
        "padding": [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(dims)],
        "seed": draw(st.integers(0, 9)),
        "cache": draw(st.sampled_from([40, 200, 1000, 102400])),
    }


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@settings(max_examples=60)
@given(case=convolutions())
def test_agrees_with_the_compilers_model(op, case):
    """Any kernel, stride, dilation, groups, padding and cache size, one or two dimensions."""
    transposed, groups = op == "ConvTranspose", case["groups"]
    c_in, c_out = (groups * count for count in case["channels"])
    generator = np.random.default_rng(case["seed"])
    outer = (c_in, c_out // groups) if transposed else (c_out, c_in // groups)
    weight = generator.integers(0, 2, (*outer, *case["kernel"])).astype(np.float32)
    pads = [side[0] for side in case["padding"]] + [side[1] for side in case["padding"]]
    attributes = {
        "group": groups,
        "strides": case["stride"],
        "dilations": case["dilation"],
        "pads": pads,
    }
    make = LayerShape.conv_transpose if transposed else LayerShape.conv
    shape = make(
        c_in,
        c_out,
        case["kernel"],
        case["size"],
        stride=case["stride"],
        padding=case["padding"],
        dilation=case["dilation"],
        groups=groups,
    )
    counts = (weight != 0).sum(axis=(0, 1)).astype(np.int64)
    hardware = load_hardware(
        HARDWARE | {"input_cache_bytes": case["cache"], "weight_cache_bytes": 40}
    )
    found = totals(
        build.layer(op, weight, ("n", c_in, *case["size"]), **attributes), hardware.to_dict()
    )
    assert found == expected(shape, hardware, counts)


def test_output_padding_of_a_transposed_convolution():
    weight = build.ones(2, 3, 3, 3)
    attributes = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    shape = LayerShape.conv_transpose(2, 3, 3, [5, 5], stride=2, padding=1, output_padding=1)
    assert totals(build.layer("ConvTranspose", weight, ("n", 2, 5, 5), **attributes)) == expected(
        shape
    )


def _padded(mode="constant", value=0.0, amounts=(0, 0, 1, 2, 0, 0, 3, 0)):
    nodes = [
        helper.make_node("Pad", ["x", "amounts", "value"], ["p"], mode=mode),
        helper.make_node("Conv", ["p", "w"], ["y"], pads=[1, 0, 0, 0]),
    ]
    constants = {
        "amounts": np.array(amounts, dtype=np.int64),
        "value": np.float32(value),
        "w": build.ones(3, 2, 3, 3),
    }
    return build.model(nodes, constants, ("x", ("n", 2, 6, 6)))


def test_a_zero_pad_before_a_convolution_is_its_padding():
    merged = build.layer("Conv", build.ones(3, 2, 3, 3), ("n", 2, 6, 6), pads=[2, 2, 3, 0])
    assert totals(_padded()) == totals(merged)


def test_a_pad_on_named_axes_is_understood():
    nodes = [
        helper.make_node("Pad", ["x", "amounts", "", "axes"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"]),
    ]
    constants = {
        "amounts": np.array([1, 2], dtype=np.int64),
        "axes": np.array([-1], dtype=np.int64),
        "w": build.ones(3, 2, 3, 3),
    }
    padded = build.model(nodes, constants, ("x", ("n", 2, 6, 6)))
    merged = build.layer("Conv", build.ones(3, 2, 3, 3), ("n", 2, 6, 6), pads=[0, 1, 0, 2])
    assert totals(padded) == totals(merged)


@pytest.mark.parametrize(
    "other", [{"value": 1.0}, {"mode": "reflect"}, {"amounts": (0, 0, 1, 2, 0, 0, 3, -1)}]
)
def test_another_pad_makes_real_inputs(other):
    assert totals(_padded(**other))["activations"] > 0
    assert totals(_padded(**other)) != totals(_padded())


def test_a_shared_weight_counts_once_and_costs_twice():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    graph = Graph(build.model(nodes, {"w": build.every_other(4, 4)}, ("x", ("n", 4))))
    found = summed(energy_of(use, HARDWARE) for use in graph.uses())
    assert {name: weight.nonzeros for name, weight in graph.weights.items()} == {"w": 8}
    single = totals(build.layer("MatMul", build.every_other(4, 4), ("n", 4)))
    assert found == {key: 2 * value for key, value in single.items()}


def test_weights_are_found_through_views():
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=1),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        helper.make_node("Identity", ["t"], ["i"]),
        helper.make_node("Gemm", ["x", "i"], ["y"]),
    ]
    constants = {
        "w": build.every_other(24).astype(np.float16),
        "shape": np.array([6, -1], dtype=np.int64),
    }
    graph = Graph(build.model(nodes, constants, ("x", ("n", 4))))
    assert [use.nonzero.shape for use in graph.uses()] == [(1, 6, 4)]
    assert (graph.weights["w"].nonzeros, graph.weights["w"].bits) == (12, 16)


def test_a_weight_on_the_left_and_a_batched_weight():
    nodes = [helper.make_node("MatMul", ["w", "x"], ["y"])]
    left = build.model(nodes, {"w": build.ones(5, 4)}, ("x", ("n", 4, 3)))
    assert totals(left) == expected(LayerShape.linear(4, 5, positions=3))
    batched = build.layer("MatMul", build.ones(2, 4, 5), ("n", 2, 3, 4))
    assert totals(batched) == expected(LayerShape.linear(8, 10, positions=3, groups=2))


def test_two_computed_operands_are_no_weighted_node():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    assert totals(build.model(nodes, {}, ("x", ("n", 3, 4))))["macs"] == 0


@pytest.mark.parametrize(("directions", "op", "gates"), [(1, "LSTM", 4), (2, "GRU", 3)])
def test_a_recurrent_layer_is_charged_per_step(directions, op, gates):
    steps, features, hidden = 5, 3, 2
    direction = "forward" if directions == 1 else "bidirectional"
    node = helper.make_node(op, ["x", "w", "r"], ["y"], hidden_size=hidden, direction=direction)
    constants = {
        "w": build.ones(directions, gates * hidden, features),
        "r": build.ones(directions, gates * hidden, hidden),
    }
    # The batch is the second dimension here.
    found = totals(build.model([node], constants, ("x", (steps, "batch", features))))
    kernel = expected(LayerShape.linear(features, gates * hidden, positions=steps))
    recurrence = expected(LayerShape.linear(hidden, gates * hidden))
    assert found == {key: directions * (kernel[key] + steps * recurrence[key]) for key in found}


def unread(proto):
    graph = Graph(proto)
    assert list(graph.uses()) == []
    return {node.why: node.weights for node in graph.unread.values()}


def test_what_cannot_be_recounted_is_named():
    [why] = unread(build.layer("MatMul", build.ones(4, 5), ("n", "tokens", 4)))
    assert why == "the shape of 'y' is unknown at batch 1"
    [why] = unread(build.layer("Conv", build.ones(3, 2, 3), ("n", 2, 6), auto_pad="SAME_UPPER"))
    assert "padding to the runtime" in why
