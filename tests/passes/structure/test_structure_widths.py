"""Costs of keep-states where operands are narrow, against models that are really cut."""

from __future__ import annotations

import numpy as np
import pytest
import structure_nets as nets
import torch
from slicing import random_state, randomize, shrunk, traced
from torch import nn

from energy_model.budget import Limit
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.quantize.encoding import Encoding
from passes.quantize.widths import with_widths
from passes.structure.costs import StructureCosts
from passes.structure.restrict import restricted
from passes.structure.select import select_global
from passes.structure.state import full_state

HARDWARE = Hardware(
    "small", array_rows=3, array_columns=2, input_cache_bytes=96, weight_cache_bytes=32
)
KEYS = ("energy", "macs")
NETS = ("Residual", "Concat", "Depthwise", "Transposed", "Tied", "Multihead", "Attention")


def narrow(name):
    """A graph with other widths in every layer, and its groups."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph, groups = traced(randomize(getattr(nets, name)()), nets.image())
    each = [Widths(2 + i % 7, 3 + i % 6, 4 + i % 5) for i in range(len(graph.sites))]
    names = [site.name for site in graph.sites]
    graph.sites = with_widths(graph.sites, dict(zip(names, each, strict=True)))
    return graph, restricted(groups, graph)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", NETS)
def test_as_the_model_that_is_cut(name):
    graph, groups = narrow(name)
    costs = StructureCosts(graph, groups, HARDWARE, KEYS)
    for seed in range(2):
        state = random_state(groups, seed)
        small = shrunk(graph, groups, state)
        table = cost_table(small, HARDWARE)
        assert costs.value("energy", state) == table.total.energy.relaxed
        assert [s.widths for s in small.sites] == [s.widths for s in graph.sites]
    whole = cost_table(graph, HARDWARE).total.energy.relaxed
    assert costs.value("energy", full_state(groups)) == whole
    assert whole < cost_table(graph, HARDWARE).total.dense
    assert sum(costs.by_layer("energy", full_state(groups)).values()) == whole
    assert isinstance(costs.value("macs", state), int)


def test_the_tally_follows_exactly():
    graph, groups = narrow("Residual")
    costs = StructureCosts(graph, groups, HARDWARE, KEYS)
    tally = costs.tally(full_state(groups))
    generator = np.random.default_rng(0)
    for _ in range(40):
        group = groups.free[generator.integers(len(groups.free))]
        unit = np.array([generator.integers(group.units)])
        if tally.state[group.name].sum() == 1 and tally.state[group.name][unit]:
            continue
        foretold = tally.after(group.name, unit)
        tally.apply(group.name, unit)
        assert tally.values == foretold == costs.tally(tally.state).values
    assert any(isinstance(value, float) for value in tally.values)


def test_bits_are_those_of_encodings_or_announced():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1))
    graph, groups = traced(randomize(model), nets.image())
    graph.encodings["2"] = Encoding(4, torch.ones(4, 1))
    graph.sites = with_widths(graph.sites, {"0": Widths(8)})
    costs = StructureCosts(graph, groups, HARDWARE, ("weight_bits",))
    assert costs.by_layer("weight_bits", full_state(groups)) == {
        "0": 8 * 162,
        "2": 4 * 24,
        "3": 64 * 8,
    }


def test_a_selection_within_a_narrow_budget():
    graph, groups = narrow("Residual")
    costs = StructureCosts(graph, groups, HARDWARE, ("energy",))
    whole = costs.value("energy", full_state(groups))
    limit = ResolvedLimit(Limit("energy", int(whole * 0.7), "MAC"), whole, int(whole * 0.7))
    generator = np.random.default_rng(0)
    scores = {group.name: generator.random(group.units) for group in groups.free}
    found = select_global(costs, groups, scores, [limit])
    table = cost_table(shrunk(graph, groups, found.state), HARDWARE)
    assert found.reached["energy"] == table.total.energy.relaxed <= limit.maximum
