"""Structured methods under a limit on the latency, with a clock that the tests set."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from latency_clock import Clock, graph_of, limits

from energy_model.budget import Limit
from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.hardware import load_hardware
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.analysis.costs import cost_table
from passes.methods.base import Run
from passes.methods.latency_fit import LatencyFit
from passes.methods.registry import find_method
from passes.methods.structured_config import L2Channels
from passes.structure.select import Selection
from transform.fingerprint import state_digest


def planned(share, factor=1.0, spread=0.0, least=0.0, config=None, **run):
    graph = graph_of()
    clock = Clock(graph, factor, spread, least)
    spec, config = find_method(config or "l2")
    method = spec.build(config)
    costs = cost_table(graph, load_hardware("eyeriss"))
    calls = []

    def model(graph, multiple):
        calls.append(multiple)
        return clock.model

    setting = Run(limits=limits(share), costs=costs, latency=clock, latency_model=model, **run)
    method.observe(graph, setting)
    before = state_digest(graph.module)
    plan = method.plan(graph, costs, setting.limits, one_shot=setting.one_shot)
    assert state_digest(graph.module) == before  # pure but for the clock
    assert len(calls) == 1
    return graph, method, plan, setting, clock


def test_a_limit_that_is_predicted_well_is_met_with_room_for_the_noise():
    graph, method, plan, run, clock = planned(0.5)
    found = plan.details["latency"]
    assert found["verdict"] == "met"
    assert 0.42 <= plan.reached["latency"] <= 0.475
    assert plan.reached["latency"] == found["measured"] == pytest.approx(found["predicted"])
    method.prepare(graph, plan, run)
    method.finalize(graph, run)
    assert clock(graph).seconds == pytest.approx(plan.reached["latency"])
    [told] = [d for d in graph.decisions if d.what.startswith("latency measured")]
    assert "the limit is met" in told.why
    assert "predicted" in told.before
    assert "measured" in told.after


def test_a_prediction_that_was_too_low_is_tightened_by_what_was_measured():
    *_, plan, _, clock = planned(0.5, factor=1.5)
    found = plan.details["latency"]
    assert len(clock.files) == found["trials"] >= 2
    assert found["verdict"] == "met"
    assert 0.42 <= found["measured"] <= 0.475
    assert found["measured"] == pytest.approx(1.5 * found["predicted"])


def test_a_prediction_that_was_too_high_is_loosened_once():
    *_, plan, _, clock = planned(0.5, factor=0.6)
    found = plan.details["latency"]
    assert len(clock.files) == 2
    assert 0.42 <= found["measured"] <= 0.475


def test_everything_stays_where_the_whole_fits():
    *_, plan, _, clock = planned(0.9, factor=0.5)
    assert all(row.keep == row.size for row in plan.rows)
    assert len(clock.files) == 2


def test_a_limit_that_the_smallest_structure_exceeds_as_measured_is_infeasible():
    with pytest.raises(InfeasibleBudget, match="smallest structure takes 800 ms as measured") as e:
        planned(0.5, least=0.8)
    assert (e.value.limit, e.value.asked, e.value.tightest) == ("latency", 0.5, 0.8)


def test_a_limit_below_all_predictions_is_met_and_used_up_if_the_files_say_so():
    config = L2Channels(max_removed=0.5)
    *_, plan, _, clock = planned(0.2, factor=0.3, config=config)
    assert plan.details["latency"]["verdict"] == "met"
    smallest, *_ = clock.files
    assert (smallest["0"][1], smallest["2"][1]) == (12, 16)
    assert 0.17 < plan.reached["latency"] < 0.19


def test_in_training_a_prediction_alone_makes_no_limit_infeasible():
    config = L2Channels(max_removed=0.5, steps=3)
    *_, plan, _, clock = planned(0.2, factor=0.3, config=config, one_shot=False, total_steps=10)
    assert plan.reached["latency"] < 0.2
    assert clock.files


def test_a_limit_within_the_noise_of_all_that_is_left_is_said_to_be_undecidable():
    graph, method, plan, run, _ = planned(0.5, least=0.51)
    assert plan.details["latency"]["verdict"] == "undecidable"
    assert plan.reached["latency"] == 0.51
    method.prepare(graph, plan, run)
    [told] = [d for d in graph.decisions if d.what.startswith("latency measured")]
    assert "undecidable within the noise" in told.why
    assert "vary by 0.0%" in told.why


def test_a_noisy_clock_asks_for_more_room():
    steady = planned(0.5)[2].reached["latency"]
    noisy = planned(0.5, spread=0.2)[2]
    assert noisy.details["latency"]["verdict"] == "met"
    assert noisy.reached["latency"] <= 0.4 < steady


def test_other_limits_hold_too_and_are_named_when_they_cannot():
    graph, method, _, setting, _ = planned(0.5)
    costs = setting.costs
    few = ResolvedLimit(Limit("params", Fraction(1, 4)), 100, 3000)
    plan = method.plan(graph, costs, (few, *setting.limits))
    assert plan.reached["params"] <= 3000
    assert plan.reached["latency"] <= 0.5
    with pytest.raises(InfeasibleBudget) as caught:
        method.plan(graph, costs, (ResolvedLimit(few.limit, 100, 1), *setting.limits))
    assert caught.value.limit == "params"


@pytest.mark.parametrize("config", [L2Channels(scope="layer"), L2Channels(per_cost=True)])
def test_scopes(config):
    plan = planned(0.5, config=config)[2]
    assert plan.details["latency"]["verdict"] == "met"


def test_channel_multiples_are_kept_and_handed_on():
    plan = planned(0.5, config=L2Channels(channel_multiple=8))[2]
    assert {row.keep % 8 for row in plan.rows if row.size > 4} == {0}


def test_in_training_only_the_last_step_is_measured():
    config = L2Channels(steps=3, until=1.0)
    graph, method, plan, run, clock = planned(
        0.3, factor=1.2, config=config, one_shot=False, total_steps=10
    )
    assert clock.files == []
    assert plan.reached["latency"] <= 0.3
    method.prepare(graph, plan, run)
    widths = [graph.by_name["0"].uses[0].shape.out_channels]
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.1)
    for step in range(1, 11):
        method.on_step(step, optimizer)
    widths.append(graph.by_name["0"].uses[0].shape.out_channels)
    assert widths[0] < 24
    assert widths[1] < widths[0]
    assert method.can_be_result()
    assert len(clock.files) >= 2
    assert clock(graph).seconds <= 0.3
    state = copy.deepcopy(method.state_dict())
    assert state["reached"]["latency"] == pytest.approx(clock(graph).seconds)


def test_without_a_way_to_measure_the_limit_is_refused():
    graph = graph_of()
    method = find_method("l2")[0].build()
    costs = cost_table(graph, load_hardware("eyeriss"))
    with pytest.raises(PreconditionError, match="needs a way to measure"):
        method.plan(graph, costs, limits(0.5))


def chosen(value):
    keep = np.arange(100) < value
    return Selection({"g": keep}, {"latency": float(value)})


def fitted(measured, maximum=50.0, least=1, base_spread=0.0):
    """A fit over structures that are numbers, predicted to take as many seconds."""
    trial = iter(range(100))

    def timing(state):
        value = measured(int(state["g"].sum()), next(trial))
        return value if isinstance(value, Timing) else Timing(value)

    def select(bounds):
        allowed = int(bounds[0].maximum)
        if allowed < least:
            raise InfeasibleBudget("too little", limit="latency", asked=allowed, tightest=least)
        return chosen(allowed)

    fit = LatencyFit(select, lambda: chosen(least), timing)
    limit = Limit("latency", Fraction(int(maximum)), "s")
    bound = ResolvedLimit(limit, 100.0, maximum, base_spread)
    return fit.fit([bound])


def test_a_clock_that_jumps_ends_in_a_structure_that_was_measured_to_fit():
    found = fitted(lambda n, _: 90.0 if n > 20 else float(n))
    assert found.verdict == "met"
    assert 17 <= found.predicted <= 20


@pytest.mark.parametrize(
    "measured",
    [
        lambda n, _: 45 + 0.2 * n,  # a part that no width changes, and that nobody predicted
        lambda n, _: 40 + 0.2 * n,
        lambda n, trial: 3.0 * n if trial == 0 else float(n),  # a first file that is far off
        lambda n, trial: Timing(n * 1.0, 0.6 if trial == 0 else 0.01),  # one that is noisy
        lambda n, _: 0.02 * n * n,
        lambda n, _: 0.1 * n,
    ],
)
def test_it_closes_in_on_the_limit_from_both_sides(measured):
    found = fitted(measured)
    assert found.verdict == "met"
    assert found.trials <= 6
    room = found.timing.seconds / 50 if found.predicted < 100 else 1.0
    assert room >= 0.8, (found.predicted, found.timing)


def test_the_noise_of_what_a_share_is_of_counts():
    assert fitted(lambda n, _: float(n)).predicted == 47
    assert fitted(lambda n, _: float(n), base_spread=0.3).predicted <= 35


def test_trials_end_though_nothing_is_decided():
    found = fitted(lambda n, _: 50.0)
    assert found.verdict == "undecidable"
    assert found.trials <= 6
    # The last one was allowed least.
    assert found.predicted < 47


def test_a_clock_that_is_always_too_slow_is_infeasible():
    with pytest.raises(InfeasibleBudget, match="smallest structure takes 80 s"):
        fitted(lambda n, _: 80.0)
