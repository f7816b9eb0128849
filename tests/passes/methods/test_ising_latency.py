"""A search under a limit on the latency: predicted in every generation, measured in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from latency_clock import BASE, Clock, graph_of, limits

from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.hardware import load_hardware
from passes.analysis.costs import cost_table
from passes.methods.base import Run
from passes.methods.ising import Ising, IsingPruning
from transform.fingerprint import state_digest

SEARCH = Ising(energy="ising", generations=8, states=4, max_removed=0.8)


def planned(share, factor=1.0, least=0.0, config=SEARCH):
    graph = graph_of()
    clock = Clock(graph, factor, least=least)
    costs = cost_table(graph, load_hardware("eyeriss"))
    run = Run(
        limits=limits(share),
        costs=costs,
        latency=clock,
        latency_model=lambda graph, multiple: clock.model,
    )
    method = IsingPruning(config)
    method.observe(graph, run)
    before = state_digest(graph.module)
    plan = method.plan(graph, costs, run.limits)
    assert state_digest(graph.module) == before
    return graph, method, plan, run, clock


@pytest.mark.spread(1)
@pytest.mark.parametrize("factor", [1.0, 1.5, 0.6])
def test_the_state_is_the_largest_whose_file_is_measured_to_be_fast_enough(factor):
    graph, method, plan, run, clock = planned(0.5, factor)
    found = plan.details["latency"]
    assert found["verdict"] == "met"
    assert found["measured"] == pytest.approx(factor * found["predicted"])
    assert 0.4 <= plan.reached["latency"] == found["measured"] <= 0.475 * BASE
    assert (len(clock.files) > 1) == (factor != 1)
    method.prepare(graph, plan, run)
    method.finalize(graph, run)
    assert clock(graph).seconds == pytest.approx(found["measured"])
    [told] = [d for d in graph.decisions if d.what.startswith("latency measured")]
    assert "the limit is met" in told.why


def test_a_smallest_state_that_is_too_slow_as_measured_is_infeasible():
    with pytest.raises(InfeasibleBudget, match="smallest structure takes 800 ms as measured"):
        planned(0.5, least=0.8)


def test_a_prediction_alone_makes_nothing_infeasible():
    """Of the smallest state 172 ms are predicted where 100 are allowed, and 69 are measured."""
    graph, method, plan, run, clock = planned(0.1, factor=0.4)
    found = plan.details["latency"]
    assert found["predicted"] > 0.1 * BASE
    assert found["verdict"] == "met"
    assert 0.9 * 0.1 <= found["measured"] == plan.reached["latency"] <= 0.1 * BASE
    assert plan.allowed["latency"] == 0.1 * BASE
    assert plan.details["search"]["generation"] == SEARCH.generations
    method.prepare(graph, plan, run)
    assert clock(graph).seconds == pytest.approx(found["measured"])
    with pytest.raises(InfeasibleBudget, match="as measured"):
        planned(0.1)


def test_in_training_neither():
    graph, method, run, clock = in_training(0.1, 0.4)
    plan = method.plan(graph, run.costs, run.limits, one_shot=False)
    method.prepare(graph, plan, run)
    optimizer = torch.optim.SGD(graph.module.parameters(), 0.1)
    for step in range(1, 5):
        method.on_step(step, optimizer)
    assert method.can_be_result()
    assert clock(graph).seconds <= 0.1 * BASE


def in_training(share, factor):
    graph = graph_of()
    clock = Clock(graph, factor)
    run = Run(
        limits=limits(share),
        costs=cost_table(graph, load_hardware("eyeriss")),
        one_shot=False,
        total_steps=8,
        latency=clock,
        latency_model=lambda graph, multiple: clock.model,
    )
    method = IsingPruning(replace(SEARCH, search_share=0.5))
    method.observe(graph, run)
    return graph, method, run, clock


def test_without_a_way_to_measure_there_is_no_such_budget():
    graph = graph_of()
    costs = cost_table(graph, load_hardware("eyeriss"))
    run = Run(limits=limits(0.5), costs=costs)
    method = IsingPruning(SEARCH)
    method.observe(graph, run)
    with pytest.raises(PreconditionError, match="a way to measure"):
        method.plan(graph, costs, run.limits)


def test_the_state_that_a_search_in_training_has_found_is_measured_when_it_is_cut():
    graph, method, run, clock = in_training(0.5, 1.4)
    plan = method.plan(graph, run.costs, run.limits, one_shot=False)
    assert not clock.files
    assert plan.reached["latency"] <= 0.5  # as predicted
    method.prepare(graph, plan, run)
    optimizer = torch.optim.SGD(graph.module.parameters(), 0.1)
    for step in range(1, 5):
        assert not method.can_be_result()
        method.on_step(step, optimizer)
    assert method.can_be_result()
    assert len(clock.files) > 1
    assert clock(graph).seconds <= 0.475 * BASE
    assert any(d.what.startswith("latency measured") for d in graph.decisions)
