"""Repair of populations: feasible, minimal change, and costs as those of models really cut."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from evolution_nets import (
    counted,
    limit,
    random_population,
    random_scores,
    repair_for,
    traced,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.budget import Limit
from energy_model.errors import ArgumentError, InfeasibleBudget
from energy_model.resolved import ResolvedLimit
from passes.ising.layout import Layout
from passes.ising.repair import Repair, annealed, sampled
from passes.structure.ranking import allowed_counts
from passes.structure.select import repair as repair_of_one


@pytest.fixture(scope="module")
def net():
    return traced()


@st.composite
def problems(draw):
    keys = draw(st.lists(st.sampled_from(["energy", "params", "macs"]), min_size=1, unique=True))
    shares = {key: Fraction(draw(st.integers(35, 100)), 100) for key in keys}
    options = {
        "multiple": draw(st.sampled_from([1, 1, 2, 3, 4])),
        "minimum": draw(st.integers(1, 4)),
        "frozen": draw(st.sampled_from([(), ("a",), ("stem", "d")])),
        "fill": draw(st.booleans()),
    }
    return shares, options, draw(st.integers(0, 10_000)), draw(st.sampled_from([0.0, 0.5, 3.0]))


@given(problems(), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
@settings(max_examples=30)
def test_repaired_states_are_feasible(net, problem, rate):
    shares, options, seed, temperature = problem
    repair = repair_for(*net, shares, **options)
    population = random_population(3, repair.layout.nodes, seed, rate)
    given_population = population.clone()
    scores = random_scores(repair.layout.nodes, seed) - 0.2
    generator = torch.Generator().manual_seed(seed)
    try:
        found = repair(population, scores, generator, temperature)
    except InfeasibleBudget as error:
        least = [allowed_counts(g, repair.multiple)[-1] for g in repair.groups.free]
        state = {
            g.name: np.arange(g.units) < n for g, n in zip(repair.groups.free, least, strict=True)
        }
        assert repair.costs.value(error.limit, state) == error.tightest > error.asked
        return
    assert torch.equal(population, given_population)
    values = repair.values(found)
    for each in repair.limits:
        assert (values[each.key] <= each.maximum).all()
    for number, group in enumerate(repair.groups.free):
        allowed = allowed_counts(group, repair.multiple)
        assert set(repair.layout.kept(found)[:, number].tolist()) <= set(allowed)
        assert min(allowed) >= group.minimum
    assert repair.layout.names == tuple(
        name for name in ("stem", "a", "c", "d") if name not in options["frozen"]
    )
    assert (repair.violations(found) == 0).all()
    # Feasible states stay, whatever noise the scores have.
    assert torch.equal(repair(found, scores), found)
    assert torch.equal(repair(found, scores, generator, temperature), found)


@pytest.mark.parametrize("per_saving", [False, True])
def test_it_is_the_repair_of_single_states(net, per_saving):
    repair = repair_for(*net, {"macs": "0.5", "energy": "0.6"}, multiple=2)
    repair = replace(repair, per_saving=per_saving)
    population, scores = random_population(4, 38, 0, 0.8), random_scores(38, 1)
    found = repair(population, scores)
    for before, after in zip(population, found, strict=True):
        selection = repair_of_one(
            repair.costs,
            repair.groups,
            repair.layout.state(before),
            repair.layout.by_group(scores),
            repair.limits,
            multiple=2,
            per_cost=per_saving,
        )
        assert torch.equal(repair.layout.bits(repair.groups, selection.state), after)
    assert not torch.equal(population, found)


def test_every_state_may_have_scores_of_its_own(net):
    repair = repair_for(*net, {"macs": "0.5"})
    population = torch.ones(2, 38, dtype=torch.bool)
    scores = torch.stack([random_scores(38, 1), random_scores(38, 2)])
    both = repair(population, scores)
    assert torch.equal(both[:1], repair(population[:1], scores[0]))
    assert torch.equal(both[1:], repair(population[1:], scores[1]))
    assert not torch.equal(both[0], both[1])


def test_without_filling_nothing_returns(net):
    full, loose = {"macs": "1"}, repair_for(*net, {"macs": "1"}, fill=False)
    population = random_population(4, 38, 0) | (torch.arange(38) % 9 == 0)
    assert torch.equal(loose(population, random_scores(38, 0)), population)
    assert repair_for(*net, full)(population, random_scores(38, 0)).all()
    tight = repair_for(*net, {"macs": "0.3"}, fill=False)
    full_population = torch.ones(1, 38, dtype=torch.bool)
    found = tight(full_population, random_scores(38, 0))
    assert (tight.violations(found) == 0).all()
    assert not found.all()


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 106), marks=pytest.mark.slow)])
def test_costs_are_those_of_the_model_that_is_cut(net, seeds):
    graph, groups = net
    repair = repair_for(graph, groups, {"macs": "0.6"})
    for seed in seeds:
        population = repair(random_population(1, 38, seed, 0.7), random_scores(38, seed))
        found = counted(graph, groups, repair.layout.state(population[0]))
        values = repair.values(population)
        assert found["macs"] <= repair.limits[0].maximum
        for key in ("params", "macs"):
            assert float(values[key][0]) == found[key]


# Violations.


def test_violations_by_hand(net):
    repair = repair_for(*net, {"macs": "0.5", "params": "0.25"})
    full = torch.ones(1, 38, dtype=torch.bool)
    macs, params = repair.limits
    expected = macs.base / macs.maximum - 1 + params.base / params.maximum - 1
    assert float(repair.violations(full)[0]) == pytest.approx(expected)
    # One group is empty: with its first unit the state fits, so only that one is missing.
    loose = repair_for(*net, {"macs": "1"})
    empty = full.clone()
    empty[:, loose.layout.parts["c"]] = False
    assert float(loose.violations(empty)[0]) == pytest.approx(1 / 7)
    # 7 units are all of a group, 5 are not a multiple of 4: up to 7 two are missing.
    steps = repair_for(*net, {"macs": "1"}, multiple=4)
    some = full.clone()
    some[:, steps.layout.parts["c"].start : steps.layout.parts["c"].start + 2] = False
    assert float(steps.violations(some)[0]) == pytest.approx(2 / 7)
    assert float(steps.violations(full)[0]) == 0


def test_limits_below_one_unit_count_as_shares(net):
    base = repair_for(*net, {"macs": "0.5"})
    small = ResolvedLimit(Limit("macs", Fraction(1, 2)), 1.0, 0.5)
    found = base.under([small]).violations(torch.ones(1, 38, dtype=torch.bool))
    assert float(found[0]) == pytest.approx(base.limits[0].base / 0.5 - 1)


# Sampling.


def test_the_lowest_score_is_drawn_as_from_a_softmax():
    scores = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).expand(40_000, 3)
    for temperature in (0.5, 2.0):
        found = sampled(scores, torch.Generator().manual_seed(0), temperature)
        share = torch.bincount(found.argmin(1), minlength=3) / 40_000
        weight = scores[0] ** (-1 / temperature)
        assert torch.allclose(share.double(), weight / weight.sum(), atol=0.01)
        # Of those below zero the lowest one is the largest.
        found = sampled(-scores, torch.Generator().manual_seed(0), temperature)
        share = torch.bincount(found.argmin(1), minlength=3) / 40_000
        weight = scores[0] ** (1 / temperature)
        assert torch.allclose(share.double(), weight / weight.sum(), atol=0.01)


def test_a_temperature_spreads_the_states(net):
    repair = repair_for(*net, {"macs": "0.5"})
    full = torch.ones(6, 38, dtype=torch.bool)
    scores = random_scores(38, 0) + 0.1

    def spread(temperature, seed=0):
        found = repair(full, scores, torch.Generator().manual_seed(seed), temperature)
        return found, len({tuple(row.tolist()) for row in found})

    assert spread(0.0)[1] == 1
    assert spread(0.0)[0].equal(repair(full, scores))
    assert spread(1.0)[1] > 3
    assert spread(1.0)[0].equal(spread(1.0)[0])
    assert not spread(1.0)[0].equal(spread(1.0, seed=1)[0])
    assert (repair.violations(spread(1e6)[0]) == 0).all()


# The falling budget.


def test_the_budget_falls_to_the_target():
    limits = (
        ResolvedLimit(Limit("macs", Fraction(1, 4)), 1000, 250),
        ResolvedLimit(Limit("latency", Fraction(1, 4)), 0.004, 0.001),
        ResolvedLimit(Limit("params", Fraction(1)), 100, 100),
    )
    whole = [annealed(limits, share / 8) for share in range(9)]
    assert whole[-1] == limits
    assert [x.maximum for x in whole[0]] == pytest.approx([1000, 0.004, 100])
    assert whole[4][0].maximum == 500
    assert whole[4][1].maximum == pytest.approx(0.002)
    for place in range(2):
        found = [step[place].maximum for step in whole]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) == 9
    assert all(isinstance(step[0].maximum, int) for step in whole)
    with pytest.raises(ArgumentError, match="share"):
        annealed(limits, 1.5)


# Bad input.


def test_a_minimum_that_does_not_fit(net):
    repair = repair_for(*net, {"macs": "0.01"})
    with pytest.raises(InfeasibleBudget) as error:
        repair(random_population(4, 38, 0), random_scores(38, 0))
    assert error.value.tightest > error.value.asked
    with pytest.raises(InfeasibleBudget):
        repair.keep_rates()


def test_frozen_models_say_so(net):
    frozen, nothing = ("stem", "a", "c", "d"), torch.zeros(4, 0, dtype=torch.bool)
    loose = repair_for(*net, {"macs": "1"}, frozen=frozen)
    assert loose(nothing, torch.zeros(0)).shape == (4, 0)
    assert loose.violations(nothing).tolist() == [0.0] * 4
    assert loose.values(nothing)["macs"].tolist() == [float(loose.limits[0].base)] * 4
    tight = repair_for(*net, {"macs": "0.5"}, frozen=frozen)
    assert tight.violations(nothing).tolist() == pytest.approx([1.0] * 4, rel=1e-4)
    for act in (lambda: tight(nothing, torch.zeros(0)), tight.keep_rates):
        with pytest.raises(InfeasibleBudget, match="no channel of it can be removed"):
            act()


def test_malformed_populations_and_scores_are_refused(net):
    repair = repair_for(*net, {"macs": "0.5"})
    population, scores = random_population(4, 38, 0), random_scores(38, 0)
    for bad in (population[:, 1:], population[0], population.double()):
        with pytest.raises(ArgumentError, match="population"):
            repair(bad, scores)
        with pytest.raises(ArgumentError, match="population"):
            repair.violations(bad)
    for bad in (scores[1:], scores.expand(3, 38), scores[:, None]):
        with pytest.raises(ArgumentError, match="scores"):
            repair(population, bad)
    with pytest.raises(ArgumentError, match="not finite"):
        repair(population, scores.masked_fill(scores > 0.5, math.nan))
    generator = torch.Generator().manual_seed(0)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="temperature"):
            repair(population, scores, generator, bad)
    with pytest.raises(ArgumentError, match="generator"):
        repair(population, scores, temperature=1.0)


def test_a_layout_of_other_groups_is_refused(net):
    repair = repair_for(*net, {"macs": "0.5"})
    other = Layout(("stem",), (12,))
    with pytest.raises(ArgumentError, match="layout"):
        Repair(repair.costs, repair.groups, other, repair.limits)
    with pytest.raises(ArgumentError, match="multiple"):
        replace(repair, multiple=0)(random_population(4, 38, 0), random_scores(38, 0))


def test_keep_rates_are_near_the_budget(net):
    repair = repair_for(*net, {"macs": "0.5"})
    rates = repair.keep_rates()
    counts = (rates * torch.tensor(repair.layout.sizes)).round().long()
    state = {
        name: np.arange(size) < int(count)
        for name, size, count in zip(repair.layout.names, repair.layout.sizes, counts, strict=True)
    }
    reached = repair.costs.value("macs", state)
    assert 0.4 * repair.limits[0].base < reached <= limit(repair.costs, "macs", "0.5").maximum
    assert float(rates.max() - rates.min()) < 0.2
