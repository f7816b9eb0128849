"""Markers: quantizers become opaque nodes, and are put back as they were."""

from __future__ import annotations

import pytest
import torch
from quantized_nets import quantize, seeded
from torch import nn

from energy_model.hardware import load_hardware
from export.dense import write_dense
from export.markers import Grid, bypassed, index_of, marked
from export.onnx_file import float_model
from passes.quantize.activations import ActivationQuantizer
from passes.rewrite.freeze import freeze
from passes.rewrite.quantizer_calls import quantizers


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
        self.rounding = ActivationQuantizer()
        self.rounding.set_range(-2.0, 2.0)
        self.unset = ActivationQuantizer()

    def forward(self, x):
        return self.second(self.rounding(self.unset(self.first(self.rounding(x)))))


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, ActivationQuantizer) or super().is_leaf_module(m, name)


def traced(model):
    return torch.fx.GraphModule(model, _Tracer().trace(model))


def test_every_call_has_a_mark_and_those_without_a_range_none():
    module = traced(Shared().eval())
    copy, marks = marked(module)
    assert [(mark.path, mark.call) for mark in marks] == [("rounding", 0), ("rounding", 1)]
    assert marks[0].grid == marks[1].grid == Grid.of(module.rounding)
    assert not quantizers(copy)
    assert set(quantizers(module)) == {"rounding", "unset"}


def test_a_model_without_quantizers_is_left_alone():
    module = traced(nn.Sequential(nn.Linear(3, 2)))
    assert marked(module) == (module, ())
    assert bypassed(module) is module


@pytest.mark.slow
def test_markers_pass_through_the_exporter_with_a_dynamic_batch():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (2, 6))
    graph = quantize(model, x)
    module, marks = marked(freeze(graph).module)
    exported = float_model(module, graph.call)
    assert [index_of(n) for n in exported.graph.node if index_of(n) is not None] == [0, 1, 2]
    assert len(marks) == 3
    [output] = exported.graph.output
    first, second = output.type.tensor_type.shape.dim
    assert (first.dim_param, second.dim_value) == ("batch", 3)
    assert {item.name for item in exported.graph.initializer} == set(model.state_dict())


def test_bypassed_quantizers_change_nothing():
    model = Shared().eval()
    x = torch.randn(4, 6)
    plain = bypassed(model)
    assert torch.equal(plain(x), model.second(model.first(x)))
    assert not torch.equal(plain(x), model(x))
    assert torch.equal(bypassed(model, ["unset"])(x), model(x))


@pytest.mark.parametrize(
    ("bits", "signed", "low", "narrow"), [(8, False, 0, False), (5, True, -16, True)]
)
def test_the_grid_of_a_quantizer(bits, signed, low, narrow):
    quantizer = ActivationQuantizer(bits, signed=signed)
    quantizer.set_range(0.0, 2.0)
    grid = Grid.of(quantizer)
    assert (grid.low, grid.zero, grid.signed, grid.narrow) == (low, low, signed, narrow)
    assert grid.scale == float(quantizer.scale)


@pytest.mark.slow
def test_a_dense_file_leaves_the_quantizers_out_and_says_so(tmp_path):
    model, x = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (2, 6))
    graph = quantize(model, x, activations=3)
    written = write_dense(graph, load_hardware("eyeriss"), tmp_path / "model.onnx")
    assert written.parity.max_abs_error < 1e-5
    with torch.no_grad():
        difference = (graph.runnable(x) - bypassed(graph.runnable)(x)).abs().max()
    assert difference > 1e-2
    [note] = written.notes
    assert "the 3 quantizers of the model are left out" in note
    assert not written.census
    assert not written.modes
    assert all(bool(part.ready) for part in quantizers(graph.runnable).values())
