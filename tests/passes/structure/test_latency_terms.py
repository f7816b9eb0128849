"""Latency as a cost of keep-states: the model at the widths that layers really have."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import structure_nets as nets
from slicing import random_state, randomize, shrunk, traced

from energy_model.budget import Limit
from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from energy_model.hardware import load_hardware
from energy_model.latency import LatencyModel, LayerTime
from energy_model.resolved import ResolvedLimit
from passes.structure.costs import StructureCosts
from passes.structure.importance import random_scores
from passes.structure.latency_terms import Widths
from passes.structure.restrict import restricted
from passes.structure.select import repair, select_global, select_smallest
from passes.structure.state import full_state

HARDWARE = load_hardware("eyeriss")
NETS = {
    "residual": nets.Residual,
    "concat": nets.Concat,
    "depthwise": nets.Depthwise,
    "transposed": nets.Transposed,
    "flat": nets.Flat,
    "tied": nets.Tied,
    "attention": nets.Attention,
}
# Faster at even inputs: not monotone, as kernels are that work in vectors.
EVEN = tuple((i, o, 1e-5 * (1 + i % 2) * (o + 1)) for i in range(1, 40) for o in range(1, 40))


def case(name, points=()):
    graph, found = traced(randomize(NETS[name]()), nets.image())
    groups = restricted(found, graph)
    time = LayerTime((1e-6, 2e-7, 3e-7, 4e-8), points=points)
    model = LatencyModel({site.name: time for site in graph.sites}, rest=1e-5, scale=0.7)
    costs = StructureCosts(graph, groups, HARDWARE, ("latency", "params"), None, model)
    return graph, groups, model, costs


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", NETS)
def test_widths_are_those_of_the_model_that_is_really_cut(name):
    graph, groups, model, costs = case(name)
    for seed in range(3):
        state = full_state(groups) if seed == 0 else random_state(groups, seed)
        cut = shrunk(graph, groups, state)
        really = {s.name: s.uses[0].shape for s in cut.sites}
        widths = Widths(graph, groups).of(state)
        assert widths == {n: (s.in_channels, s.out_channels) for n, s in really.items()}
        assert costs.value("latency", state) == pytest.approx(model.predict(widths), rel=1e-12)
        parts = costs.by_layer("latency", state)
        assert sum(parts.values()) == pytest.approx(costs.value("latency", state), rel=1e-12)
        assert parts[""] == pytest.approx(1e-5)


def test_a_tally_follows_flips_of_units():
    _, groups, _, costs = case("residual", EVEN)
    tally = costs.tally(full_state(groups))
    for group in groups.free:
        tally.apply(group.name, np.array([0]))
        assert tally.values[0] == pytest.approx(costs.value("latency", tally.state), rel=1e-12)


def test_layers_that_were_not_measured_cost_nothing_of_their_own():
    graph, groups, model, _ = case("residual")
    name = graph.sites[1].name
    only = LatencyModel({name: model.layers[name], "gone": model.layers[name]}, rest=1e-5)
    costs = StructureCosts(graph, groups, HARDWARE, ("latency",), None, only)
    state = full_state(groups)
    widths = Widths(graph, groups).of(state)[name]
    assert costs.value("latency", state) == pytest.approx(1e-5 + only.layer_seconds(name, *widths))


def limit(costs, groups, share):
    base = costs.value("latency", full_state(groups))
    return ResolvedLimit(Limit("latency", Fraction(str(share))), base, share * base)


@pytest.mark.parametrize("points", [(), EVEN])
@pytest.mark.parametrize("choose", [select_global, repair])
def test_a_limit_is_met_as_predicted_also_where_times_are_not_monotone(choose, points):
    _, groups, _, costs = case("residual", points)
    scores = random_scores(groups, 0)
    bound = limit(costs, groups, 0.7)
    state = (full_state(groups),) if choose is repair else ()
    found = choose(costs, groups, *state, scores, [bound])
    assert found.reached["latency"] <= bound.maximum
    assert found.reached["latency"] == pytest.approx(costs.value("latency", found.state))
    assert any(not keep.all() for keep in found.state.values())


def test_the_smallest_structure_keeps_the_best_of_what_must_stay():
    _, groups, _, costs = case("residual")
    scores = random_scores(groups, 0)
    found = select_smallest(costs, groups, scores, multiple=2)
    for group in groups.free:
        kept = np.flatnonzero(found.state[group.name])
        assert len(kept) == 2
        assert set(kept) == set(np.argsort(scores[group.name])[-2:])


def test_too_low_a_limit_names_times_in_their_unit():
    _, groups, _, costs = case("residual")
    with pytest.raises(InfeasibleBudget, match=r"asks for 1 us .* us .*\) is what the fewest"):
        bound = ResolvedLimit(Limit("latency", Fraction(1, 10**6), "s"), 1e-4, 1e-6)
        select_global(costs, groups, random_scores(groups, 0), [bound])


def test_a_latency_without_a_model_is_refused():
    graph, groups, _, _ = case("residual")
    with pytest.raises(ArgumentError, match="without a model that predicts it"):
        StructureCosts(graph, groups, HARDWARE, ("latency",))


def test_a_group_whose_effect_on_shapes_is_unknown_is_not_cut():
    _, groups, _, costs = case("residual")
    assert costs.uncounted == {}
    costs.uncounted = {groups.free[0].name: "for the test"}
    with pytest.raises(PreconditionError, match="for the test"):
        costs.value("latency", random_state(groups, 1))
