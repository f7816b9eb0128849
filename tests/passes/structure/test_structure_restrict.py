"""Rules for single layers, as minimums and frozen groups."""

from __future__ import annotations

import numpy as np
import pytest
import structure_nets as nets
from slicing import shrunk, traced

from passes.graph import LayerRule
from passes.structure.restrict import restricted

NETS = [nets.Residual, nets.Concat, nets.Depthwise, nets.Flat, nets.Attention, nets.Multihead]


def kept_weights(graph, groups, state, site):
    small = shrunk(graph, groups, state)
    return small.by_name[site].size


@pytest.mark.spread(1)
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_rules_for_single_layers_hold_at_the_minimum(net, density):
    graph, groups = traced(net(), nets.image())
    for site in graph.compressible:
        graph.rules = {site.name: LayerRule(density)}
        found = restricted(groups, graph)
        state = {group.name: np.arange(group.units) < group.minimum for group in found.free}
        if state:
            kept = kept_weights(graph, found, state, site.name)
            assert kept >= graph.rules[site.name].least(site.size)


def test_a_rule_asks_no_more_than_it_needs():
    graph, groups = traced(nets.Residual(), nets.image())
    graph.rules = {"a": LayerRule(0.25)}
    assert {g.name: g.minimum for g in restricted(groups, graph).free} == {"stem": 4, "a": 3}
    graph.rules = {"stem": LayerRule(0.25)}
    assert {g.name: g.minimum for g in restricted(groups, graph).free} == {"stem": 2, "a": 1}
    graph.rules = {}
    assert {g.name: g.minimum for g in restricted(groups, graph).free} == {"stem": 1, "a": 1}


def test_a_layer_that_is_left_alone_freezes_its_groups():
    graph, groups = traced(nets.Concat(), nets.image())
    graph.rules = {"b": LayerRule(1.0)}
    found = restricted(groups, graph)
    frozen = [g.name for g in found if g.frozen and "layer 'b' is left alone" in g.why]
    assert frozen == ["a", "b"]
    assert [g.name for g in found.free] == ["stem"]
    told = [d.layer for d in found.decisions if "left alone" in d.why]
    assert told == frozen


def test_a_layer_with_a_rule_and_zeros_is_left_alone():
    model = nets.Residual()
    model.a.weight.data[0, 0, 0, 0] = 0
    graph, groups = traced(model, nets.image())
    graph.rules = {"a": LayerRule(0.5)}
    found = restricted(groups, graph)
    assert not found.free
    assert "holds zeros already" in found.by_name["a"].why
    graph.rules = {"a": LayerRule(0.0)}
    assert len(restricted(groups, graph).free) == 2
