"""Costs counted from a file's arrays instead of the model's weights."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from energy_model.hardware import load_hardware
from export.initializers import Stored
from export.recount import recount_costs, sha256
from passes.analysis.costs import cost_table
from passes.inputs import Call
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")


def conv_and_linear():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3)).eval()
    graph = trace(model, Call((torch.zeros(1, 1, 4, 4),)))
    stored = {
        site.name: Stored(f"{site.name}.weight", graph.weight(site).numpy().copy(), True)
        for site in graph.sites
    }
    return model, graph, stored


def test_the_same_arrays_cost_what_the_model_costs():
    _, graph, stored = conv_and_linear()
    before = cost_table(graph, EYERISS)
    assert recount_costs(graph, before, stored, EYERISS) == before


def test_the_arrays_count_not_the_model():
    model, graph, stored = conv_and_linear()
    before = cost_table(graph, EYERISS)
    stored["0"].values[0, 0, 0, 0] = 0
    stored["2"].values[:, ::2] = 0
    after = recount_costs(graph, before, stored, EYERISS)
    assert (after["0"].nonzeros, after["2"].nonzeros) == (17, 48)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 0
        model[2].weight[:, ::2] = 0
    assert after == cost_table(graph, EYERISS)


def test_which_offset_is_zero_matters_to_the_exact_energy():
    _, graph, stored = conv_and_linear()
    before = cost_table(graph, EYERISS)
    corner, centre = stored["0"].values.copy(), stored["0"].values.copy()
    corner[0, 0, 0, 0] = centre[0, 0, 1, 1] = 0
    energies = []
    for values in (corner, centre):
        arrays = stored | {"0": Stored("0.weight", values, True)}
        energies.append(recount_costs(graph, before, arrays, EYERISS)["0"].energy)
    # On 4 x 4 with padding 1 the corner of the kernel meets 9 inputs, its centre 16.
    assert energies[0].exact - energies[1].exact == 3 * (16 - 9)
    assert energies[0].relaxed == energies[1].relaxed


def test_the_width_is_that_of_the_file():
    _, graph, stored = conv_and_linear()
    before = cost_table(graph, EYERISS)
    half = stored | {"2": Stored("2.weight", stored["2"].values.astype(np.float16), True)}
    after = recount_costs(graph, before, half, EYERISS)
    assert (before["2"].bits, after["2"].bits, after["0"].bits) == (32, 16, 32)


def test_a_linear_layer_may_lie_in_any_order_a_convolution_may_not():
    _, graph, stored = conv_and_linear()
    before = cost_table(graph, EYERISS)
    shuffled = {
        name: Stored("val", np.ascontiguousarray(s.values.reshape(-1)[::-1]), False)
        for name, s in stored.items()
    }
    shuffled["0"].values[0] = shuffled["2"].values[0] = 0
    after = recount_costs(graph, before, shuffled, EYERISS)
    assert after["2"].nonzeros == before["2"].nonzeros - 1
    assert after["2"].energy.exact < before["2"].energy.exact
    # Offsets are unknown: the energy stays that of the model, an upper bound.
    assert after["0"].nonzeros == before["0"].nonzeros - 1
    assert after["0"].energy == before["0"].energy


def test_what_is_not_in_the_file_keeps_its_row():
    _, graph, stored = conv_and_linear()
    before = cost_table(graph, EYERISS)
    del stored["0"]
    assert recount_costs(graph, before, stored, EYERISS)["0"] == before["0"]


def test_the_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()
