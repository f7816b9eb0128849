from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from energy_model.energy import activation_energy, layer_energy, nonzero_energy
from energy_model.hardware import Hardware, load_hardware
from energy_model.shapes import LayerShape
from energy_model.widths import Widths
from passes.analysis.costs import FALLBACK, cost_table
from passes.inputs import as_call
from passes.quantize.encoding import Encoding
from passes.quantize.widths import with_widths
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
CONV = LayerShape.conv(2, 4, 3, (6, 6), padding=1)
FC = LayerShape.linear(144, 5)


def convnet():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def graph_of(model, inputs):
    return trace(model, as_call(model, inputs))


def test_a_row_per_site():
    table = cost_table(graph_of(convnet(), torch.randn(3, 2, 6, 6)), EYERISS)
    assert [row.name for row in table.rows] == ["0", "3"]
    for row, shape in zip(table.rows, (CONV, FC), strict=True):
        assert row.energy == layer_energy(shape, EYERISS)
        assert (row.weights, row.nonzeros, row.bits) == (shape.weights, shape.weights, 32)
        assert row.macs == shape.macs
        assert row.floor == activation_energy(shape, EYERISS)[0] == row.energy.activations
        assert row.dense == row.energy.relaxed
        assert row.note == ""
    assert table.total.energy == table.rows[0].energy + table.rows[1].energy


def test_zeros_of_the_weights_count():
    model = convnet()
    with torch.no_grad():
        model[0].weight[:, :, 0, 0] = 0.0
        model[3].weight.view(-1)[:700] = 0.0
    table = cost_table(graph_of(model, torch.randn(3, 2, 6, 6)), EYERISS)
    conv, fc = table.rows
    assert (conv.nonzeros, fc.nonzeros) == (64, 20)
    for row, shape in ((conv, CONV), (fc, FC)):
        floor = activation_energy(shape, EYERISS)[0]
        assert row.energy.relaxed == floor + nonzero_energy(shape, EYERISS, row.nonzeros)
        assert row.dense == layer_energy(shape, EYERISS).relaxed
    counts = torch.ones(3, 3, dtype=torch.int64) * 8
    counts[0, 0] = 0
    assert conv.energy == layer_energy(CONV, EYERISS, counts.numpy())


def test_bits_are_those_of_the_stored_weight():
    table = cost_table(graph_of(convnet().half(), torch.randn(3, 2, 6, 6).half()), EYERISS)
    assert [row.bits for row in table.rows] == [16, 16]


def test_a_quantized_model_stores_its_codes_and_its_base_stays_the_original():
    graph = graph_of(convnet(), torch.randn(3, 2, 6, 6))
    dense = cost_table(graph, EYERISS)
    graph.encodings = {"0": Encoding(4, torch.ones(4, 1))}
    graph.sites = with_widths(graph.sites, {"0": Widths(4, 8, 8), "3": Widths(None, 8)})
    table = cost_table(graph, EYERISS)
    conv, fc = table.rows
    assert [(row.bits, row.charged) for row in table.rows] == [(4, 4), (32, 16)]
    assert [row.widths for row in table.rows] == [Widths(4, 8, 8), Widths(None, 8)]
    assert conv.energy == layer_energy(CONV, EYERISS, widths=Widths(4, 8, 8))
    assert fc.energy == layer_energy(FC, EYERISS, widths=Widths(None, 8))
    for row in table.rows:
        assert row.floor == row.energy.activations
        assert row.dense == dense[row.name].dense > row.energy.relaxed
    assert table.total.dense == dense.total.dense


def test_energy_charges_what_uses_are_told_whatever_is_stored():
    graph = graph_of(convnet().double(), torch.randn(3, 2, 6, 6).double())
    graph.sites = with_widths(graph.sites, {"0": Widths(8), "3": Widths(64)})
    assert [(row.bits, row.charged) for row in cost_table(graph, EYERISS)] == [(64, 8), (64, 16)]


def test_computed_weights_are_charged_as_dense():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4)), nn.Linear(4, 4))
    rows = cost_table(graph_of(model, torch.randn(3, 8)), EYERISS).rows
    assert rows[0].energy == layer_energy(LayerShape.linear(8, 4), EYERISS)
    assert "not compressible" in rows[0].note


def test_the_fallback_is_noted():
    small = Hardware("small", input_cache_bytes=16)
    rows = cost_table(graph_of(convnet(), torch.randn(3, 2, 6, 6)), small).rows
    assert rows[0].energy.fallback
    assert rows[0].note == FALLBACK


def test_without_data_every_weight_is_nonzero():
    real = cost_table(graph_of(convnet(), torch.randn(3, 2, 6, 6)), EYERISS)
    meta = graph_of(convnet().to("meta"), torch.empty(3, 2, 6, 6, device="meta"))
    assert cost_table(meta, EYERISS) == real
