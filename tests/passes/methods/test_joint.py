"""The method `joint` in one shot: budgets, modes, rules, odd weights and odd layers."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_problem import (
    LAYERS,
    SIZE,
    X,
    bits_of,
    check_written,
    compressed,
    costs_of,
    leave,
    limits_of,
    method_of,
    nominal,
    small_graph,
    traced,
)
from torch import nn

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from passes.methods.base import Run
from passes.methods.plan import Plan

MODES = ("both", "prune", "quantize")


def state_of(graph):
    return copy.deepcopy(graph.module.state_dict())


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


def error(graph, before):
    """Squared change of all weights."""
    now = graph.module.state_dict()
    names = [f"{name}.weight" for name in LAYERS]
    return sum(float((now[n].double() - before[n].double()).square().sum()) for n in names)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    st.one_of(st.integers(1, 40), st.integers(41, 32 * SIZE)),
    st.sampled_from(["both", "prune"]),
    st.sampled_from(["free", "uniform"]),
    st.integers(0, 50),
)
def test_the_budget_holds_exactly_whatever_it_is(budget, mode, levels, seed):
    graph = small_graph(seed)
    before = state_of(graph)
    plan = compressed(graph, budget, mode=mode, levels=levels)
    assert nominal(graph) <= budget
    assert plan.reached == {"weight_bits": nominal(graph)}
    check_written(graph)
    counts = {row.layer: row.keep for row in plan.rows}
    assert counts == {s.name: int(graph.weight(s).count_nonzero()) for s in graph.sites}
    # Nothing but the weights changes.
    others = [key for key in before if "weight" not in key or "norm" in key]
    assert same({k: before[k] for k in others}, {k: graph.module.state_dict()[k] for k in others})


def test_next_to_nothing_leaves_layers_without_a_weight():
    for budget, kept in ((1, 1), (2, 2), (3, 3)):
        graph = small_graph()
        compressed(graph, budget, max_bits=1)
        counts = [int(graph.weight(s).count_nonzero()) for s in graph.sites]
        assert sum(counts) == kept
        assert 0 in counts


@pytest.mark.parametrize("options", [{}, {"mode": "prune"}, {"mode": "quantize"}])
def test_with_room_for_everything_the_model_stays(options):
    graph = small_graph()
    before = state_of(graph)
    compressed(graph, 32 * SIZE, **options)
    # 24, 36 and 30 values fit into 6 bits: as many levels as values.
    assert same(state_of(graph), before)
    assert set(bits_of(graph).values()) <= {5, 6, 7, 8, 32}


def test_more_bits_are_never_worse():
    errors = []
    for budget in (20, 60, 200, 640):
        graph = small_graph()
        before = state_of(graph)
        compressed(graph, budget)
        errors.append(error(graph, before))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] > 0 or errors[-1] == 0


@pytest.mark.spread(1)
@pytest.mark.parametrize("budget", [40, 120, 300])
def test_both_together_are_never_worse_than_either_or_one_after_the_other(budget):
    found = {}
    for mode in ("both", "prune"):
        graph = small_graph()
        before = state_of(graph)
        compressed(graph, budget, mode=mode)
        found[mode] = error(graph, before)
    for bits in (1, 2, 4):
        graph = small_graph()
        compressed(graph, budget, bits=bits)
        found[bits] = error(graph, before)
    assert found["both"] <= min(found.values()) * (1 + 1e-9)


def test_pruning_keeps_values_and_quantizing_keeps_all_weights():
    graph = small_graph()
    before = state_of(graph)
    compressed(graph, 32 * 40, mode="prune")
    assert (graph.codebooks, graph.encodings) == ({}, {})
    for site in graph.sites:
        weight, old = graph.weight(site), before[f"{site.name}.weight"]
        assert torch.equal(weight[weight != 0], old[weight != 0])
    assert sum(int(graph.weight(s).count_nonzero()) for s in graph.sites) == 40
    graph = small_graph()
    compressed(graph, 3 * SIZE, mode="quantize")
    assert set(graph.codebooks) == set(LAYERS)
    assert all(bool((graph.weight(s) != 0).all()) for s in graph.sites)
    assert not any(book.reserved_zero for book in graph.codebooks.values())
    check_written(graph)


@settings(max_examples=8)
@given(st.integers(SIZE, 8 * SIZE), st.sampled_from(["free", "uniform"]))
def test_quantizing_meets_its_budget_or_says_what_can_be_met(budget, levels):
    graph = small_graph()
    try:
        compressed(graph, budget, mode="quantize", levels=levels)
    except InfeasibleBudget as error:
        assert levels == "uniform"
        assert budget < error.tightest == 2 * SIZE
    assert nominal(graph) <= max(budget, 2 * SIZE) or graph.codebooks == graph.encodings == {}


@pytest.mark.parametrize("levels", ["free", "uniform"])
def test_what_cannot_be_quantized_as_far_is_refused(levels):
    least = {"free": 1, "uniform": 2}[levels]
    graph = small_graph()
    before = state_of(graph)
    with pytest.raises(InfeasibleBudget) as caught:
        compressed(graph, least * SIZE - 1, mode="quantize", levels=levels)
    found = caught.value
    assert (found.limit, found.tightest, found.asked) == (
        "weight_bits",
        least * SIZE,
        least * SIZE - 1,
    )
    assert found.binding_layer == "first"
    assert "mode='both'" in found.remedy
    assert same(state_of(graph), before)
    compressed(graph, least * SIZE, mode="quantize", levels=levels)
    assert set(bits_of(graph).values()) == {least}


@pytest.mark.spread(1)
@pytest.mark.parametrize("mode", MODES)
def test_a_plan_is_pure_and_can_be_written(mode):
    graph = small_graph()
    before, limits = state_of(graph), limits_of(graph, "weight_bits<=20%")
    for one_shot in (True, False):
        first, second = (
            method_of(mode=mode).plan(graph, costs_of(graph), limits, one_shot=one_shot)
            for _ in range(2)
        )
        assert first == second
        assert Plan.from_dict(json.loads(json.dumps(first.to_dict()))) == first
        assert {row.layer for row in first.rows} == set(LAYERS)
    assert same(state_of(graph), before)
    assert (graph.codebooks, graph.encodings, graph.decisions) == ({}, {}, [])


def test_bits_that_are_given_are_kept():
    graph = small_graph()
    compressed(graph, 200, bits={"*": 3, "head": 1})
    assert bits_of(graph) == {"conv": 3, "first": 3, "head": 1}
    assert nominal(graph) <= 200
    check_written(graph)
    graph = small_graph()
    compressed(graph, 4 * SIZE, mode="quantize", bits={"conv": 8, "first": 2})
    assert bits_of(graph) | {"head": 0} == {"conv": 8, "first": 2, "head": 0}
    assert nominal(graph) <= 4 * SIZE
    with pytest.raises(ArgumentError, match="no layer is named 'fc'") as caught:
        compressed(small_graph(), 200, bits={"fc": 3})
    assert caught.value.where == "Joint.bits"
    graph = small_graph()
    compressed(graph, 10_000, bits=2, min_bits=2, max_bits=3)
    assert set(bits_of(graph).values()) == {2}


def test_bounds_on_bits_are_kept():
    for low, high in ((1, 2), (3, 3), (5, 8)):
        graph = small_graph()
        compressed(graph, 150, min_bits=low, max_bits=high)
        assert all(low <= bits <= high for bits in bits_of(graph).values())
        assert nominal(graph) <= 150


def test_without_a_limit_bits_must_be_given():
    graph = small_graph()
    with pytest.raises(ArgumentError, match="nothing says how many bits"):
        method_of().plan(graph, costs_of(graph), ())
    run, method = Run(), method_of(mode="quantize", bits=3)
    method.prepare(graph, method.plan(graph, costs_of(graph), ()), run)
    method.finalize(graph, run)
    assert set(bits_of(graph).values()) == {3}


@pytest.mark.parametrize("levels", ["free", "uniform"])
def test_rules_for_single_layers_are_kept(levels):
    graph = leave(small_graph(), conv=1.0, head=0.5)
    conv = graph.weight(graph.by_name["conv"]).clone()
    budget = 32 * 24 + 80
    compressed(graph, budget, levels=levels)
    assert torch.equal(graph.weight(graph.by_name["conv"]), conv)
    assert "conv" not in {**graph.codebooks, **graph.encodings}
    assert nominal(graph) <= budget
    if levels == "free":  # on a grid with zero what is kept may be rounded to it
        assert int(graph.weight(graph.by_name["head"]).count_nonzero()) >= 15
    with pytest.raises(InfeasibleBudget) as caught:
        compressed(leave(small_graph(), conv=1.0), 32 * 24 - 1)
    assert caught.value.tightest == 32 * 24
    with pytest.raises(PreconditionError, match="every layer is left alone"):
        compressed(leave(small_graph(), conv=1.0, first=1.0, head=1.0), 10_000)


def test_the_tightest_value_under_rules_can_be_reached():
    def ruled():
        return leave(small_graph(), conv=0.5, first=0.25, head=0.5)

    with pytest.raises(InfeasibleBudget) as caught:
        compressed(ruled(), 10)
    assert caught.value.tightest == 12 + 9 + 15
    graph = ruled()
    compressed(graph, int(caught.value.tightest))
    assert nominal(graph) <= 36
    assert [int(graph.weight(s).count_nonzero()) for s in graph.sites] == [12, 9, 15]


def test_tied_weights_count_once_and_have_one_codebook():
    graph = small_graph()
    assert [len(s.owners) for s in graph.sites] == [1, 2, 1]
    compressed(graph, 100)
    model = graph.module
    assert model.first.weight is model.second.weight
    assert set(graph.codebooks) == set(LAYERS)
    assert nominal(graph) <= 100


@pytest.mark.parametrize("levels", ["free", "uniform"])
def test_doing_it_again_changes_nothing(levels):
    graph = small_graph()
    compressed(graph, 150, levels=levels, bits=3)
    before, size = state_of(graph), nominal(graph)
    again = traced(graph.module, X)
    compressed(again, 150, levels=levels, bits=3)
    assert nominal(again) <= size
    if levels == "free":
        assert same(state_of(again), before)


@pytest.mark.parametrize("power", [-20, 20])
def test_a_power_of_two_and_a_sign_pass_through(power):
    graph, other = small_graph(), small_graph()
    factor = -(2.0**power)
    for site in other.sites:
        other.weight(site).mul_(factor)
    compressed(graph, 150)
    compressed(other, 150)
    assert bits_of(graph) == bits_of(other)
    for site in graph.sites:
        assert torch.equal(graph.weight(site) * factor, other.weight(site))


class Listed(nn.Module):
    """Layers side by side, in a given order of registration and use: input `(N, 6)`."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        for name in order:
            rows = 4 + "abc".index(name)
            generator = torch.Generator().manual_seed("abc".index(name))
            layer = nn.Linear(6, rows, bias=False)
            layer.weight.data = (1 + "abc".index(name)) * torch.randn(rows, 6, generator=generator)
            setattr(self, name, layer)

    def forward(self, x):
        return torch.cat([getattr(self, name)(x) for name in self.order], dim=1)


def test_the_order_of_layers_does_not_matter():
    found = []
    for order in ("abc", "cab", "bca"):
        graph = traced(Listed(order).eval(), torch.ones(1, 6))
        compressed(graph, 130)
        found.append({s.name: graph.weight(s).clone() for s in graph.sites})
        assert list(found[-1]) == list(order)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.spread(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", ["free", "uniform"])
@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(30),
        torch.full((30,), 0.25),
        torch.full((30,), -3e-42),
        torch.linspace(-1, 1, 30) * 1e-40,
        torch.linspace(-1, 1, 30) * 1e30,
        torch.cat([torch.zeros(28), torch.tensor([1.0, -2.0])]),
        torch.cat([torch.full((29,), 1e-30), torch.tensor([1e30])]),
    ],
    ids=["zero", "constant", "constant denormal", "denormal", "huge", "two values", "both"],
)
def test_odd_weights(values, levels, mode):
    graph = small_graph()
    graph.weight(graph.by_name["head"]).copy_(values.view(5, 6))
    budget = {"both": 200, "prune": 32 * 30, "quantize": 4 * SIZE}[mode]
    compressed(graph, budget, levels=levels, mode=mode)
    assert nominal(graph) <= budget
    check_written(graph)
    if not values.any():
        assert not graph.weight(graph.by_name["head"]).any()


def test_a_layer_with_fewer_values_than_codes_is_exact():
    graph = small_graph()
    values = torch.tensor([0.5, -0.25, 2.0, 2.1, -3.0] + [0.0] * 25).view(5, 6)
    graph.weight(graph.by_name["head"]).copy_(values)
    compressed(graph, 10_000, bits=3)
    assert torch.equal(graph.weight(graph.by_name["head"]), values)
    graph = small_graph()
    graph.weight(graph.by_name["head"]).copy_(values)
    compressed(graph, 30 * 32 + 1000, mode="quantize", bits={"head": 3})
    assert torch.equal(graph.weight(graph.by_name["head"]), values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, mode):
    graph = small_graph()
    graph.weight(graph.by_name["head"])[0, 0] = value
    for one_shot in (True, False):
        with pytest.raises(PreconditionError):
            limits = limits_of(graph, "weight_bits<=20%")
            method_of(mode=mode).plan(graph, costs_of(graph), limits, one_shot=one_shot)
