"""Which layer a node works for: residuals, constants, computed weights, and fused names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_builder as build
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from bench.errors import BenchError
from bench.layer_marks import find_layers, layers_of_kernels, marked


def residual():
    """relu(conv a) feeds conv b, whose output it is added to; then pooling and a linear layer.

    The weight of b is stored as int8, that of the linear layer transposed.
    """
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "a.weight"], ["ca"], pads=[1] * 4),
        helper.make_node("Relu", ["ca"], ["ra"]),
        helper.make_node("DequantizeLinear", ["b.weight_quantized", "s"], ["bw"]),
        helper.make_node("Conv", ["ra", "bw"], ["cb"], pads=[1] * 4),
        helper.make_node("Add", ["ra", "cb"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Transpose", ["fc"], ["fct"]),
        helper.make_node("MatMul", ["flat", "fct"], ["y"]),
    ]
    constants = {
        "half": np.float32(0.5),
        "a.weight": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "b.weight_quantized": rng.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8),
        "s": np.float32(0.1),
        "fc": rng.standard_normal((5, 4)).astype(np.float32),
    }
    return build.model(nodes, constants, ("x", ("batch", 4, 6, 6)))


def test_every_node_has_a_layer():
    model = residual()
    layers = find_layers(model)
    assert layers.names == ("a", "b", "fc")
    kinds = [
        (n.op_type, layers.names[i]) for n, i in zip(model.graph.node, layers.nodes, strict=True)
    ]
    assert kinds == [
        ("Mul", "a"),
        ("Conv", "a"),
        ("Relu", "a"),
        ("DequantizeLinear", "b"),
        ("Conv", "b"),
        ("Add", "b"),
        ("GlobalAveragePool", "b"),
        ("Flatten", "b"),
        ("Transpose", "fc"),
        ("MatMul", "fc"),
    ]
    assert {"bw", "fct", "half"} <= layers.constant
    assert not {"x", "ra"} & layers.constant


def test_layers_by_names_that_are_given():
    names = {"b.weight_quantized": "second", "fc": "a.weight"}
    assert find_layers(residual(), names).names == ("a", "second", "a.weight")
    # The value that the product reads does as well as the initialiser behind it.
    assert find_layers(residual(), {"bw": "second", "fct": "last"}).names == ("a", "second", "last")
    # Two weights of one name are one layer.
    assert find_layers(residual(), {"fc": "a"}).names == ("a", "b")


def test_a_product_of_two_computed_values_is_no_layer():
    nodes = [
        helper.make_node("MatMul", ["w", "x"], ["a"]),
        helper.make_node("MatMul", ["a", "a"], ["b"]),
        helper.make_node("QLinearMatMul", ["b", "s", "z", "v", "s", "z", "s", "z"], ["y"]),
    ]
    constants = {"w": np.eye(4, dtype=np.float32), "s": np.float32(1), "z": np.uint8(0), "v": 1}
    assert find_layers(build.model(nodes, constants)).names == ("w", "v")


def test_without_weights_there_are_no_layers():
    with pytest.raises(BenchError, match="no layer has a weight"):
        find_layers(build.model([helper.make_node("Relu", ["x"], ["y"])], {}))


def test_a_marked_copy_computes_the_same_and_its_kernels_are_found(tmp_path):
    model = residual()
    layers = find_layers(model)
    copy = marked(model, layers)
    assert model == residual()
    onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)
    optimized = tmp_path / "optimized.onnx"
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(optimized)
    settings.log_severity_level = 3
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(m.SerializeToString(), s).run(None, {"x": x})[0]
        for m, s in ((model, onnxruntime.SessionOptions()), (copy, settings))
    ]
    np.testing.assert_array_equal(*outputs)
    graph = onnx.load(optimized)
    found = layers_of_kernels(graph)
    assert len(found) == len(graph.graph.node)
    convolutions = [layers.names[found[n.name]] for n in graph.graph.node if "Conv" in n.op_type]
    assert convolutions == ["a", "b"]
    assert layers.names[found[graph.graph.node[-1].name]] == "fc"


def test_values_are_renamed_in_branches_too():
    inner = helper.make_graph(
        [helper.make_node("Relu", ["m"], ["r"])],
        "then",
        [],
        [helper.make_empty_tensor_value_info("r")],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["m"], ["q"])],
        "else",
        [],
        [helper.make_empty_tensor_value_info("q")],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other),
    ]
    model = build.model(nodes, {"w": np.eye(4, dtype=np.float32), "yes": np.array(True)})
    copy = marked(model, find_layers(model))
    x = -np.ones((1, 4), np.float32)
    session = onnxruntime.InferenceSession(copy.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.zeros((1, 4)))


@pytest.mark.slow
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_kernels_without_a_mark_belong_to_their_neighbours(layers, data):
    """A chain in which some nodes lost their names: before them if anything is marked there."""
    lost = [data.draw(st.booleans()) for _ in layers]
    layers = sorted(layers)
    nodes = [
        helper.make_node(
            "Relu", [f"v{i}"], [f"v{i + 1}"], name=f"lost_{i}" if gone else f"layer{n:04d}_{i}_Relu"
        )
        for i, (n, gone) in enumerate(zip(layers, lost, strict=True))
    ]
    found = layers_of_kernels(build.model(nodes, {}, ("v0", ("n", 4)), f"v{len(layers)}"))
    kept = [n for n, gone in zip(layers, lost, strict=True) if not gone]
    for i, node in enumerate(nodes):
        before = [n for n, gone in zip(layers[: i + 1], lost, strict=False) if not gone]
        assert found[node.name] == (before[-1] if before else kept[0] if kept else 0)
