"""Selection of units: feasible, maximal, and the same as a slow greedy search."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import structure_nets as nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slicing import random_state, randomize, traced
from torch import nn

from energy_model.budget import Limit
from energy_model.errors import (
    ArgumentError,
    InfeasibleBudget,
    PreconditionError,
    UnsupportedBudget,
)
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.structure.costs import StructureCosts
from passes.structure.groups import ChannelGroups
from passes.structure.ranking import Ranking, allowed_counts
from passes.structure.select import (
    Selection,
    repair,
    select_global,
    select_per_layer,
)
from passes.structure.state import full_state, rounded_units

HARDWARE = Hardware(
    "small", array_rows=3, array_columns=2, input_cache_bytes=96, weight_cache_bytes=32
)
KEYS = ("energy", "params", "macs")
NETS = {
    "residual": nets.Residual,
    "concat": nets.Concat,
    "depthwise": nets.Depthwise,
    "flat": nets.Flat,
    "attention": nets.Attention,
}


@pytest.fixture(scope="module")
def known():
    found = {}

    def get(name):
        if name not in found:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                graph, groups = traced(randomize(NETS[name]()), nets.image())
            found[name] = graph, groups, StructureCosts(graph, groups, HARDWARE, KEYS)
        return found[name]

    return get


def limit(costs, key, share):
    base = costs.value(key, {})
    return ResolvedLimit(Limit(key, Fraction(share)), base, int(base * Fraction(share)))


def random_scores(groups, seed):
    generator = np.random.default_rng(seed)
    # Few values, so that there are ties.
    return {group.name: generator.integers(0, 6, group.units) / 2 for group in groups.free}


def holds(limits, reached):
    return all(reached[x.key] <= x.maximum for x in limits)


def block_that_fits(costs, groups, scores, limits, state, multiple):
    """A group whose next block could return."""
    for group in groups.free:
        ranking = Ranking(group, scores[group.name], state[group.name], multiple)
        units = ranking.next_in()
        if units is not None:
            more = {name: keep.copy() for name, keep in state.items()}
            more[group.name][units] = True
            if holds(limits, costs.values(more)):
                return group.name
    return None


@st.composite
def problems(draw):
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, unique=True))
    shares = [Fraction(draw(st.integers(20, 100)), 100) for _ in keys]
    seed = draw(st.integers(0, 10_000))
    multiple = draw(st.sampled_from([1, 1, 2, 3, 4]))
    minimum = draw(st.integers(1, 4))
    return draw(st.sampled_from(sorted(NETS))), keys, shares, seed, multiple, minimum


def setting(known, problem):
    name, keys, shares, seed, multiple, minimum = problem
    _, groups, costs = known(name)
    raised = tuple(replace(group, minimum=min(minimum, group.units)) for group in groups)
    groups = replace(groups, groups=raised)
    limits = [limit(costs, key, share) for key, share in zip(keys, shares, strict=True)]
    return costs, groups, random_scores(groups, seed), limits, multiple


def check(costs, groups, selection, limits, multiple):
    assert isinstance(selection, Selection)
    assert selection.reached == costs.values(selection.state)
    assert holds(limits, selection.reached)
    for group in groups.free:
        assert selection.kept[group.name] in allowed_counts(group, multiple)
        assert selection.kept[group.name] >= group.minimum


@pytest.mark.slow
@given(problem=problems(), per_cost=st.booleans())
@settings(max_examples=80)
def test_a_selection_is_feasible_and_maximal(known, problem, per_cost):
    costs, groups, scores, limits, multiple = setting(known, problem)
    try:
        found = select_global(costs, groups, scores, limits, multiple=multiple, per_cost=per_cost)
    except InfeasibleBudget as error:
        least = {g.name: np.arange(g.units) < allowed_counts(g, multiple)[-1] for g in groups.free}
        assert error.tightest == costs.value(error.limit, least) > error.asked
        return
    check(costs, groups, found, limits, multiple)
    assert block_that_fits(costs, groups, scores, limits, found.state, multiple) is None
    for group in groups.free:
        keep, score = found.state[group.name], scores[group.name]
        if not keep.all():
            assert score[keep].min() >= score[~keep].max()


@given(problem=problems(), start=st.integers(0, 10_000), data=st.data())
@settings(max_examples=80)
def test_repair_of_any_state(known, problem, start, data):
    costs, groups, scores, limits, multiple = setting(known, problem)
    generator = np.random.default_rng(start)
    share = data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    state = {g.name: generator.random(g.units) < share for g in groups.free}
    given_state = {name: keep.copy() for name, keep in state.items()}
    try:
        found = repair(costs, groups, state, scores, limits, multiple=multiple)
    except InfeasibleBudget:
        return
    check(costs, groups, found, limits, multiple)
    assert block_that_fits(costs, groups, scores, limits, found.state, multiple) is None
    again = repair(costs, groups, found.state, scores, limits, multiple=multiple)
    assert again.reached == found.reached
    for name, keep in found.state.items():
        assert (again.state[name] == keep).all()
        assert (state[name] == given_state[name]).all()


def greedy(costs, groups, scores, limits, *, per_cost):
    """One unit at a time, all costs anew for every candidate."""
    state = full_state(groups)
    order = {g.name: list(np.argsort(scores[g.name], kind="stable")) for g in groups.free}
    gone = []

    def flipped(name, unit):
        other = {n: keep.copy() for n, keep in state.items()}
        other[name][unit] = not other[name][unit]
        return other

    while not holds(limits, values := costs.values(state)):
        best = None
        for name, units in order.items():
            if len(units) == 1:
                continue
            score = scores[name][units[0]]
            key = score
            if per_cost:
                after = costs.values(flipped(name, units[0]))
                saving = sum(
                    (values[x.key] - after[x.key]) / (values[x.key] - x.maximum)
                    for x in limits
                    if values[x.key] > x.maximum
                )
                key = score / saving if saving > 0 else np.inf
            if best is None or (key, score) < best[0]:
                best = (key, score), name
        if best is None:
            return None
        unit = order[best[1]].pop(0)
        state = flipped(best[1], unit)
        gone.append((best[1], unit))
    names = list(order)
    while True:
        last = dict(gone)
        fitting = [
            (-scores[name][unit], names.index(name), name, unit)
            for name, unit in last.items()
            if holds(limits, costs.values(flipped(name, unit)))
        ]
        if not fitting:
            return state
        _, _, name, unit = min(fitting)
        state = flipped(name, unit)
        gone.remove((name, unit))


@pytest.mark.spread(6)
@pytest.mark.parametrize("per_cost", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_against_a_slow_greedy_search(known, name, per_cost):
    _, groups, costs = known(name)
    compared = 0
    for seed in range(4):
        scores = random_scores(groups, seed)
        for keys in (("macs",), ("params", "macs")):
            limits = [limit(costs, key, Fraction(6 + seed, 10)) for key in keys]
            expected = greedy(costs, groups, scores, limits, per_cost=per_cost)
            if expected is None:
                with pytest.raises(InfeasibleBudget):
                    select_global(costs, groups, scores, limits, per_cost=per_cost)
                continue
            found = select_global(costs, groups, scores, limits, per_cost=per_cost)
            assert all((found.state[n] == keep).all() for n, keep in expected.items())
            compared += 1
    assert compared >= 4


def nearest(group, share, multiple):
    """The allowed number of units that is nearest to a share; ties go up."""
    counts = allowed_counts(group, multiple)
    return min(counts, key=lambda n: (abs(n - share * group.units), -n))


@pytest.mark.slow
@given(problem=problems())
@settings(max_examples=60)
def test_per_layer_keeps_the_largest_common_share(known, problem):
    costs, groups, scores, limits, multiple = setting(known, problem)

    def at(share):
        state = full_state(groups)
        for group in groups.free:
            count = nearest(group, share, multiple)
            order = np.argsort(scores[group.name], kind="stable")
            state[group.name][order[: group.units - count]] = False
        return state

    # Numbers change at halves of units, so that these shares meet all states that there are.
    grid = {Fraction(i, 4 * g.units) for g in groups.free for i in range(4 * g.units + 1)}
    fitting = [s for s in sorted(grid, reverse=True) if holds(limits, costs.values(at(s)))]
    if not fitting:
        with pytest.raises(InfeasibleBudget):
            select_per_layer(costs, groups, scores, limits, multiple=multiple)
        return
    found = select_per_layer(costs, groups, scores, limits, multiple=multiple)
    check(costs, groups, found, limits, multiple)
    assert all((found.state[n] == keep).all() for n, keep in at(fitting[0]).items())


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 8])
def test_counts_that_are_allowed(known, multiple):
    for name in NETS:
        for group in known(name)[1].free:
            counts = allowed_counts(group, multiple)
            assert counts[0] == group.units
            assert list(counts) == sorted(set(counts), reverse=True)
            for count in counts[1:]:
                assert count * group.unit_size % multiple == 0
            rounded = {rounded_units(group, n, multiple) for n in range(group.units)}
            assert rounded <= set(counts)


def test_ties_go_by_group_then_by_index(known):
    _, groups, costs = known("concat")
    scores = {group.name: np.ones(group.units) for group in groups.free}
    limits = [limit(costs, "params", Fraction(3, 4))]
    found = select_global(costs, groups, scores, limits)
    first, *others = groups.free
    keep = found.state[first.name]
    assert list(keep) == sorted(keep)
    assert 0 < keep.sum() < first.units
    assert all(found.state[group.name].all() for group in others)


def test_all_units_stay_if_the_budget_allows_it(known):
    _, groups, costs = known("residual")
    scores = random_scores(groups, 0)
    limits = [limit(costs, key, 1) for key in KEYS]
    for select in (select_global, select_per_layer):
        found = select(costs, groups, scores, limits)
        assert all(keep.all() for keep in found.state.values())


def test_per_cost_spends_the_budget_better():
    class Unequal(nn.Module):
        def __init__(self):
            super().__init__()
            self.large = nn.Conv2d(3, 8, 7, padding=3)
            self.mix = nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.mix(torch.relu(self.large(x)))).mean((2, 3)))

    graph, groups = traced(Unequal(), nets.image())
    costs = StructureCosts(graph, groups, HARDWARE, ("macs",))
    scores = {"large": np.full(8, 1.1), "mix": np.full(8, 1.0)}
    limits = [limit(costs, "macs", Fraction(3, 5))]
    plain = select_global(costs, groups, scores, limits)
    priced = select_global(costs, groups, scores, limits, per_cost=True)
    assert plain.kept["mix"] == 1
    assert sum(priced.kept.values()) > sum(plain.kept.values())


def test_a_block_that_saves_nothing_goes_last():
    model = nets.Residual()
    for layer in (model.a, model.b):
        nn.init.zeros_(layer.weight)
    graph, groups = traced(model, nets.image())
    costs = StructureCosts(graph, groups, HARDWARE, ("nonzeros",))
    scores = {"stem": np.full(8, 9.0), "a": np.zeros(6)}
    limits = [limit(costs, "nonzeros", Fraction(1, 2))]
    found = select_global(costs, groups, scores, limits, per_cost=True)
    assert found.kept == {"stem": 4, "a": 6}
    with pytest.raises(InfeasibleBudget):
        select_global(costs, groups, scores, [limit(costs, "nonzeros", Fraction(1, 100))])


def groups_without_first(groups):
    first = groups.free[0].name
    return replace(
        groups,
        groups=tuple(
            replace(g, frozen=True, why="for the test") if g.name == first else g for g in groups
        ),
    )


def test_groups_may_be_frozen_that_the_costs_know_as_free(known):
    _, groups, costs = known("flat")
    fewer = groups_without_first(groups)
    scores = random_scores(groups, 0)
    limits = [limit(costs, "params", Fraction(9, 10))]
    found = select_global(costs, fewer, scores, limits)
    assert set(found.state) == {group.name for group in fewer.free}
    assert found.reached == costs.values(found.state)


def test_a_budget_below_the_least(known):
    _, groups, costs = known("residual")
    scores = random_scores(groups, 0)
    for select in (select_global, select_per_layer):
        with pytest.raises(InfeasibleBudget, match="fewest channels need") as caught:
            select(costs, groups, scores, [limit(costs, "macs", Fraction(1, 100))])
        least = {group.name: np.arange(group.units) < 1 for group in groups.free}
        assert caught.value.limit == "macs"
        assert caught.value.tightest == costs.value("macs", least)
        layers = costs.by_layer("macs", least)
        assert layers[caught.value.binding_layer] == max(layers.values())


def below(costs):
    whole = costs.value("macs", {})
    return ResolvedLimit(Limit("macs", Fraction(1, 2)), whole, whole - 1)


def test_no_free_group(known):
    _, groups, costs = known("residual")
    frozen = tuple(replace(group, frozen=True, why="for the test") for group in groups)
    none = replace(groups, groups=frozen)
    whole = costs.value("macs", {})
    with pytest.raises(InfeasibleBudget, match=r"no channel of it can be removed: .*output"):
        select_global(costs, none, {}, [below(costs)])
    with pytest.raises(InfeasibleBudget, match="no layer has channels") as caught:
        select_per_layer(costs, ChannelGroups(()), {}, [below(costs)])
    assert caught.value.tightest == whole
    assert select_global(costs, none, {}, []).reached["macs"] == whole


def test_costs_that_cannot_be_counted_are_refused():
    graph, groups = traced(nets.Mixer(), nets.image())
    costs = StructureCosts(graph, groups, HARDWARE, ("macs",))
    with pytest.raises(PreconditionError, match=r"'embed'.*cannot be counted"):
        select_global(costs, groups, random_scores(groups, 0), [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[:-1], "shape"),
        (lambda s: np.where(np.arange(len(s)) == 1, np.nan, s), "not finite"),
        (lambda s: np.where(np.arange(len(s)) == 1, np.inf, s), "not finite"),
        (lambda s: ["high"] * len(s), "no numbers"),
        (None, "missing"),
    ],
)
def test_bad_scores(known, change, words):
    _, groups, costs = known("residual")
    scores = dict(random_scores(groups, 0))
    if change is None:
        del scores["stem"]
    else:
        scores["stem"] = change(scores["stem"])
    with pytest.raises(ArgumentError, match=rf"'stem'.*{words}"):
        select_global(costs, groups, scores, [])


def test_other_bad_arguments(known):
    _, groups, costs = known("residual")
    scores = random_scores(groups, 0)
    for multiple in (0, -2, 1.5, True):
        with pytest.raises(ArgumentError, match="multiple"):
            select_global(costs, groups, scores, [], multiple=multiple)
    with pytest.raises(ArgumentError, match="not booleans"):
        repair(costs, groups, {"stem": np.ones(8)}, scores, [])
    with pytest.raises(UnsupportedBudget, match="'latency' was not asked for"):
        slow = ResolvedLimit(Limit("latency", Fraction(1, 2)), 1.0, 0.5)
        select_global(costs, groups, scores, [slow])


def test_repair_returns_everything_where_all_of_it_fits(known):
    _, groups, costs = known("depthwise")
    state = random_state(groups, 0)
    found = repair(costs, groups, state, random_scores(groups, 0), [limit(costs, "macs", 1)])
    assert all(keep.all() for keep in found.state.values())
