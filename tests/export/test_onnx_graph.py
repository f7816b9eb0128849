"""Rewriting ONNX graphs: order, dead nodes, names, shapes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from energy_model.errors import PostconditionError
from export.onnx_graph import Rewriter, attributes, read_by, value_shapes

TEXT = """
<ir_version: 10, opset_import: ["" : 21, "transform" : 1]>
g (float[n, 4] x) => (float[n, 3] y)
  <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[2] unused = {1, 2}>
{
  a = MatMul(x, w)
  dead = Relu(a)
  b = transform.Quantizer(a)
  y = Relu(b)
}
"""


def rewriter():
    return Rewriter(onnx.parser.parse_model(TEXT))


def test_what_no_output_needs_is_left_out():
    graph = rewriter()
    graph.finish()
    assert [node.output[0] for node in graph.model.graph.node] == ["a", "b", "y"]
    assert [item.name for item in graph.model.graph.initializer] == ["w"]


def test_nodes_are_sorted_again():
    graph = rewriter()
    graph.nodes.reverse()
    bias = graph.store(graph.fresh("bias"), np.ones(3, dtype=np.float32))
    graph.add("Add", ["a", bias], "shifted")
    [marker] = [node for node in graph.nodes if node.output[0] == "b"]
    marker.input[0] = "shifted"
    graph.finish()
    assert [node.output[0] for node in graph.model.graph.node] == ["a", "shifted", "b", "y"]
    assert {item.name for item in graph.model.graph.initializer} == {"w", "bias"}


def test_a_cycle_is_an_error_of_ours():
    graph = rewriter()
    graph.redirect("x", "y")
    with pytest.raises(PostconditionError, match="no order"):
        graph.finish()


def test_what_nothing_computes_is_an_error_of_ours():
    graph = rewriter()
    graph.redirect("x", "nowhere")
    with pytest.raises(PostconditionError, match="'nowhere'"):
        graph.prune()


def test_names_are_never_given_twice():
    graph = rewriter()
    assert graph.fresh("new") == "new"
    assert graph.fresh("new") == "new_1"
    assert graph.fresh("x") == "x_1"
    assert graph.fresh("w") == "w_1"


def test_a_scalar_keeps_its_shape():
    graph = rewriter()
    graph.store("scale", np.array(0.5, dtype=np.float32))
    assert list(graph.stored["scale"].dims) == []
    assert graph.array("scale") == 0.5
    assert graph.array("a") is None


def test_readers_are_listed_once_for_every_time():
    graph = rewriter()
    graph.add("Add", ["a", "a"], "twice")
    assert [node.op_type for node in graph.readers()["a"]] == ["Relu", "Quantizer", "Add", "Add"]


def test_shapes_go_through_operators_that_nobody_knows():
    shapes = value_shapes(onnx.parser.parse_model(TEXT))
    assert shapes["b"] == shapes["y"] == [None, 3]


def test_shapes_need_no_large_constants():
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 32], np.zeros(2048, np.float32))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))
    assert value_shapes(model)["y"] == [None, 32]
    assert list(model.graph.initializer[0].dims) == [64, 32]


def test_what_branches_read_counts():
    inner = helper.make_graph(
        [helper.make_node("Add", ["outside", "own"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [helper.make_tensor("own", TensorProto.FLOAT, [], [1.0])],
    )
    branch = helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner)
    assert set(read_by(branch)) == {"condition", "outside"}
    assert set(attributes(branch)) == {"then_branch", "else_branch"}
