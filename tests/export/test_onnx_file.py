"""The float file: batch sizes, metadata, and what the exporter cannot express."""

from __future__ import annotations

import logging

import onnx
import pytest
import torch
from export_nets import Branching, TwoInputs, built
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from energy_model.errors import ExportError
from export.onnx_file import at_batch, float_model, strip_metadata
from passes.inputs import Call


@given(have=st.integers(1, 5), want=st.integers(1, 9))
def test_rows_are_repeated_or_left_out(have, want):
    x, y = torch.arange(have * 2.0).reshape(have, 2), torch.arange(have)
    scale = torch.tensor(2.0)
    call = at_batch(Call((x, scale), {"y": y}), want)
    rows = [i % have for i in range(want)]
    assert torch.equal(call.args[0], x[rows])
    assert torch.equal(call.kwargs["y"], y[rows])
    assert torch.equal(call.args[1], scale)


def test_an_input_of_another_size_than_the_first_has_no_batch():
    batched, other = torch.zeros(2, 3), torch.zeros(5, 3)
    resized = at_batch(Call((batched, other)), 4)
    assert resized.args[0].shape == (4, 3)
    assert resized.args[1] is other


def test_inputs_without_a_dimension_stay_as_they_are():
    call = Call((torch.tensor(2.0),))
    assert at_batch(call, 4) is call


@pytest.mark.slow
def test_only_the_batch_of_the_first_input_is_dynamic():
    model, (x, y) = built(TwoInputs, ((3, 6), (1, 4)))
    exported = float_model(model, Call((x, y)))
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in exported.graph.input
    ]
    assert shapes == [["batch", 6], [1, 4]]


@pytest.mark.slow
def test_an_example_of_one_row_is_dynamic_too():
    exported = float_model(nn.Linear(3, 2).eval(), Call((torch.zeros(1, 3),)))
    [value] = exported.graph.input
    first, second = value.type.tensor_type.shape.dim
    assert first.dim_param == "batch"
    assert (first.dim_value, second.dim_value) == (0, 3)


@pytest.mark.slow
def test_what_cannot_be_expressed_is_said_with_a_remedy():
    model, x = built(Branching, (2, 6))
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    with pytest.raises(ExportError, match=r"^Branching: torch\.onnx\.export cannot.*torch\.cond"):
        float_model(model, Call((x,)))
    assert {name: logging.getLogger(name).level for name in levels} == levels


@pytest.mark.slow
def test_a_failing_export_writes_nothing_to_the_streams(capfd):
    model, x = built(Branching, (2, 6))
    with pytest.raises(ExportError):
        float_model(model, Call((x,)))
    assert capfd.readouterr() == ("", "")


def test_inputs_by_position_and_by_name_are_refused():
    model, (x, y) = built(TwoInputs, ((2, 6), (2, 4)))
    with pytest.raises(ExportError, match="by position and by name"):
        float_model(model, Call((x,), {"y": y}))


def test_metadata_is_stripped_at_every_depth():
    def note(part):
        part.doc_string = "/home/someone/model.py"
        entry = part.metadata_props.add()
        entry.key, entry.value = "stack_trace", "/home/someone/model.py"

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y", "z")]
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "inner", [], [values[2]])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    weight = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    graph = helper.make_graph([branch], "outer", [values[0]], [values[1]], [weight])
    graph.value_info.append(values[2])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    nested = model.graph.node[0].attribute[0].g
    for part in (model, model.graph, model.graph.node[0], model.graph.initializer[0]):
        note(part)
    for part in (nested, nested.node[0], nested.output[0], model.graph.input[0]):
        note(part)
    assert model.SerializeToString().count(b"someone") == 16
    strip_metadata(model)
    assert b"someone" not in model.SerializeToString()
    assert not model.graph.value_info
    onnx.checker.check_model(model)
