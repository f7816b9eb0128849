"""Times by layer: their structure and sums; how fast they are is not asserted."""

from __future__ import annotations

import numpy as np
import onnx_builder as build
import pytest
from onnx import helper

from bench.errors import BenchError
from bench.layer_borders import conversion_times, handed_on, layer_borders
from bench.layer_plan import LayerPlan, plan_layers
from bench.layer_times import (
    _per_inference,
    _Settings,
    kernel_times,
    layer_times,
    paired_layer_times,
)
from energy_model.errors import ArgumentError

QUICK = {"rounds": 2, "runs": 3}
LENET5 = ["features.0", "features.3", "classifier.0", "classifier.2", "classifier.4"]


@pytest.fixture(scope="module")
def lenet5(tmp_path_factory):
    return build.save(build.lenet5(), tmp_path_factory.mktemp("times") / "lenet5.onnx")


@pytest.fixture(scope="module")
def integer(tmp_path_factory):
    """LeNet-5 with its second convolution in integers: Q, DQ, Conv, Q, DQ."""
    proto = build.lenet5()
    grid = ["scale", "zero"]
    where = next(i for i, n in enumerate(proto.graph.node) if n.output[0] == "c2")
    nodes = [
        helper.make_node("QuantizeLinear", ["p1", *grid], ["p1q"]),
        helper.make_node("DequantizeLinear", ["p1q", *grid], ["p1d"]),
        helper.make_node("DequantizeLinear", ["features.3.weight_quantized", "wscale"], ["w2"]),
        helper.make_node("Conv", ["p1d", "w2"], ["c2f"]),
        helper.make_node("QuantizeLinear", ["c2f", *grid], ["c2q"]),
        helper.make_node("DequantizeLinear", ["c2q", *grid], ["c2"]),
    ]
    constants = {
        "scale": np.float32(0.1),
        "zero": np.uint8(0),
        "wscale": np.float32(0.01),
        "features.3.weight_quantized": np.ones((16, 6, 5, 5), np.int8),
    }
    before, after = list(proto.graph.node)[:where], list(proto.graph.node)[where + 1 :]
    kept = [i for i in proto.graph.initializer if i.name != "features.3.weight"]
    made = build.model([*before, *nodes, *after], constants, ("x", ("batch", 1, 32, 32)))
    made.graph.initializer.extend(kept)
    return build.save(made, tmp_path_factory.mktemp("times") / "integer.onnx")


def test_both_forms_have_the_same_layers(lenet5, integer):
    floats, integers = paired_layer_times([lenet5, integer], **QUICK)
    assert list(floats) == list(integers) == LENET5
    assert all(0 <= time < 1e3 for time in (*floats.values(), *integers.values()))
    assert floats["features.3"] > 0
    assert integers["features.3"] > 0


def test_layers_add_up_to_the_kernels(lenet5, monkeypatch):
    """With the clock replaced by one millisecond a kernel, the sum counts the kernels."""
    monkeypatch.setattr("bench.layer_times._per_inference", lambda *_: 1000.0)
    times = layer_times(lenet5, **QUICK)
    assert sum(times.values()) == len(kernel_times(lenet5, **QUICK))
    assert all(time >= 1 for time in times.values())


def test_names_are_taken_from_the_caller(lenet5):
    times = layer_times(lenet5, names={"features.0.weight": "first"}, **QUICK)
    assert list(times) == ["first", *LENET5[1:]]


def test_a_time_is_the_median_over_rounds_of_the_middle_of_each():
    settings = _Settings(1, 1, 3, 4, 0, {}, 1.0)
    warm, slow = [900.0] * 5, [100, 200, 300, 400]
    # A stall in a round does not count, and neither does a slow round.
    times = [*warm, 1, 3, 4, 9000, *slow, 4, 6, 5, 5]
    assert _per_inference(times, settings) == 5
    # A kernel that runs twice in an inference counts twice.
    assert _per_inference([t for t in times for _ in range(2)], settings) == 10
    # One that ran in some inferences only is averaged over all.
    assert _per_inference([34.0], settings) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"rounds": 0}, "rounds is 0"), ({"runs": 0}, "runs is 0"), ({"names": []}, "0 names for 1")],
)
def test_bad_arguments(lenet5, changes, told):
    with pytest.raises(ArgumentError, match=told):
        paired_layer_times([lenet5], **changes)


def test_files_that_cannot_be_read(tmp_path):
    for call in (layer_times, layer_borders):
        with pytest.raises(BenchError, match="cannot be read") as caught:
            call(tmp_path / "gone.onnx")
        assert caught.value.model == str(tmp_path / "gone.onnx")


def test_what_layers_hand_on(lenet5):
    names = [(name, made, read) for name, made, read in handed_on(build.lenet5())]
    assert names == [
        ("p1", "features.0", ("features.3",)),
        ("f", "features.3", ("classifier.0",)),
        ("r3", "classifier.0", ("classifier.2",)),
        ("r4", "classifier.2", ("classifier.4",)),
    ]
    borders = layer_borders(lenet5, rounds=2, runs=2)
    assert [(b.producer, b.consumers) for b in borders] == [(m, r) for _, m, r in names]
    assert all(b.quantize_ms >= 0 and b.dequantize_ms >= 0 for b in borders)


def test_a_value_that_several_layers_read_is_one_border():
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("MatMul", ["p", "b"], ["q"]),
        helper.make_node("MatMul", ["p", "c"], ["r"]),
        helper.make_node("Add", ["q", "r"], ["y"]),
    ]
    eye = np.eye(4, dtype=np.float32)
    found = handed_on(build.model(nodes, {"a": eye, "b": eye, "c": eye}))
    assert found == [("p", "a", ("b", "c")), ("q", "b", ("c",))]


def test_one_layer_has_no_borders(tmp_path):
    path = build.save(build.layer("MatMul", build.ones(4, 5), ("n", 4)), tmp_path / "m.onnx")
    assert layer_borders(path) == ()


def test_conversions_have_a_time_for_every_size():
    found = conversion_times([64, 4096, 64], rounds=2, runs=2)
    assert list(found) == [64, 4096]
    assert all(time >= 0 for pair in found.values() for time in pair)


@pytest.mark.slow
def test_the_plan_is_a_table(lenet5, integer):
    plan = plan_layers(lenet5, integer, rounds=2)
    assert isinstance(plan, LayerPlan)
    assert plan.floating <= set(LENET5)
    every = [frozenset(LENET5), frozenset[str](), plan.floating]
    assert plan.predicted(plan.floating) <= 1.05 * min(map(plan.predicted, every[:2])) + 1e-9
    told = plan.to_dict()
    assert told["predicted_ms"]["mixed"] == plan.predicted(plan.floating)
    lines = plan.to_markdown().splitlines()
    assert len(lines) == 2 + len(LENET5) + 1
    assert [line.split(" | ")[0] for line in lines[2:-1]] == [f"| {name}" for name in LENET5]
