"""The event on lists of cells is that of the engine, bit for bit, and fails as loudly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from walk_runs import built, linear, masks, push, rule_of, same, sgd, steps, weights

from energy_model.errors import PostconditionError, TrainingError
from passes.dynamic import engine as engines
from passes.dynamic import exchange as exchanges
from passes.dynamic.policies import BySurvivors, SignChanged
from passes.dynamic.schedule import Clock
from passes.dynamic.walk import Walk


@dataclass(frozen=True, slots=True)
class Another(SignChanged):
    """A policy that the engine does not know, so that it takes the long way."""


@pytest.mark.spread(1)
@pytest.mark.parametrize("density", [0.05, 0.6, 0.97])
@pytest.mark.parametrize(
    "walk",
    [Walk(temperature=3e-4), Walk("gradient", "first_update", eta=0.01, temperature=1e-2)],
    ids=["original", "variant"],
)
def test_it_is_the_event_of_the_engine(walk, density, monkeypatch):
    """At most densities cells are drawn until one is free; at high ones by keys of all."""
    called = []
    exchange = exchanges.exchange
    monkeypatch.setattr(engines, "exchange", lambda *a: called.append(1) or exchange(*a))
    results = []
    for drop in (SignChanged(), Another()):
        called.clear()
        graph, engine = built(replace(rule_of(walk), drop=drop), density, clock=Clock(9, 50))
        optimizer = sgd(graph)
        rows = [row for row in steps(graph, engine, optimizer, range(50)) if row]
        assert bool(called) == (type(drop) is SignChanged)
        momenta = [v["momentum_buffer"] for v in optimizer.state.values()]
        told = [{k: v for k, v in row.items() if k != "milliseconds"} for row in rows]
        results.append((masks(engine), weights(engine), momenta, told, engine.ever))
    one, other = results
    assert same(one[0], other[0])
    assert same(one[1], other[1])
    assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))
    assert one[3] == other[3]
    assert all(torch.equal(a, b) for a, b in zip(one[4], other[4], strict=True))
    assert sum(one[3][0]["dropped"].values()) > 20


def test_many_ends_at_once_are_the_event_of_the_engine_too():
    """As many as a quarter of the dormant: too many to be drawn."""
    results = []
    for drop in (SignChanged(), Another()):
        model, example = linear(50, 40), torch.zeros(1, 50)
        rule = replace(rule_of(Walk(temperature=0, l1=0)), drop=drop)
        graph, engine = built(rule, 0.4, model=model, example=example)
        weight = graph.weight(engine.members[0].site)
        weight[::2] *= -1
        engine.after_step(0, sgd(graph))
        assert engine.gathered.dropped["0"] > 300
        results.append((masks(engine), weights(engine)))
    assert all(same(*pair) for pair in zip(*results, strict=True))


def test_what_has_just_ended_may_begin_again_at_zero():
    model, example = linear(20, 10), torch.zeros(1, 20)
    graph, engine = built(rule_of(Walk(temperature=0, l1=0)), 0.99, model=model, example=example)
    [member] = engine.members
    weight, optimizer, back = graph.weight(member.site).reshape(-1), sgd(graph), 0
    for event in range(60):
        ended = torch.nonzero(engine.mask(member)).flatten()[event : event + 2]
        weight[ended] = -1.0 * engine.walker.signs_of("0")[ended]
        dormant = ~engine.mask(member)
        engine.after_step(event, optimizer)
        now = engine.mask(member)
        assert int(now.sum()) == 198
        assert bool((weight[dormant] == 0).all())
        assert bool((weight[ended] == 0).all())
        back += int(now[ended].sum())
    assert 40 < back < 80  # two of four candidates


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
@pytest.mark.parametrize("drop", [SignChanged(), Another()])
def test_weights_that_are_no_numbers_are_an_error(drop, wrong):
    graph, engine = built(replace(rule_of(), drop=drop))
    member = engine.members[1]
    place = int(torch.nonzero(engine.mask(member) & (weights(engine)["2"] > 0))[0])
    graph.weight(member.site).reshape(-1)[place] = wrong
    with pytest.raises(TrainingError, match="NaN or infinite"):
        engine.after_step(0, sgd(graph))


def test_a_choice_that_changes_the_count_is_caught(monkeypatch):
    graph, engine = built(rule_of(Walk(temperature=1e-2)))
    dormant = exchanges._dormant

    def wrong(parts, keys):
        cells = dormant(parts, keys)
        cells[:] = cells[0]
        return cells

    monkeypatch.setattr(exchanges, "_dormant", wrong)
    push(graph, engine, 0, 1.0)
    with pytest.raises(PostconditionError, match="active parameters"):
        engine.after_step(0, sgd(graph))


def test_allocation_over_layers_keeps_the_sum_only():
    rule = replace(rule_of(Walk(temperature=1e-3)), allocate=BySurvivors())
    graph, engine = built(rule)
    counts = engine.counts()
    for _ in steps(graph, engine, sgd(graph), range(60)):
        assert sum(engine.counts()) == sum(counts)
    assert engine.counts() != counts


def test_units_keep_their_largest():
    rule, walk = rule_of(), Walk(temperature=1e-2)
    graph, engine = built(replace(rule, walk=walk), 0.1)
    units = {
        m.site.name: torch.arange(m.shape.cells) // (m.shape.cells // m.shape.shape[0])
        for m in engine.members
    }
    engine.members = tuple(replace(m, units=units[m.site.name]) for m in engine.members)

    def alive():
        return {n: set(units[n][m].tolist()) for n, m in masks(engine).items()}

    before = alive()
    for _ in steps(graph, engine, sgd(graph), range(60)):
        now = alive()
        assert all(before[name] <= now[name] for name in now)
        before = now
    assert engine.events > 30
