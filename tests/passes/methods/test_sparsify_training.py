"""The hooks of a sparsifying method in training: the budget falls, and holds at the end."""

from __future__ import annotations

import pytest
import torch
from lenet_problem import costs_of, limits_of, state_of, traced, values_of
from torch import nn

from energy_model.errors import PreconditionError
from passes.methods.base import Run
from passes.methods.energy_projection import SPEC as ENERGY
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import SPEC as MAGNITUDE
from passes.methods.magnitude import Magnitude
from passes.methods.phases import Phase


def small_graph():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return traced(model, torch.randn(4, 20, generator=generator))


def started(graph, spec, config, budget="energy<=50%", steps=40):
    limits = limits_of(graph, budget)
    run = Run(one_shot=False, limits=limits, costs=costs_of(graph), total_steps=steps)
    method = spec.build(config)
    plan = method.plan(graph, run.costs, limits, one_shot=False)
    method.prepare(graph, plan, run)
    method.on_phase_start(Phase())
    return method, run


def optimizer_of(graph):
    return torch.optim.SGD(graph.module.parameters(), lr=0.1)


@pytest.mark.parametrize("schedule", ["geometric", "linear", "none"])
def test_the_budget_falls_from_the_start_to_the_target(schedule):
    graph = small_graph()
    method, run = started(graph, ENERGY, EnergyProjection(schedule=schedule, hold=0.25))
    start, target = values_of(graph)["energy"], run.limits[0].maximum
    budgets = [method.limits_at(step)[0].maximum for step in range(41)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] == (target if schedule == "none" else start)
    assert set(budgets[30:]) == {target}
    middle = {"geometric": (start * target) ** 0.5, "linear": (start + target) / 2, "none": target}
    assert budgets[15] == pytest.approx(middle[schedule], abs=1)
    assert (budgets[29] > target) == (schedule != "none")


def test_preparing_for_training_changes_no_weight():
    graph = small_graph()
    before = state_of(graph)
    started(graph, ENERGY, EnergyProjection())
    assert all(torch.equal(graph.module.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("spec", "config"),
    [(ENERGY, EnergyProjection(interval=4)), (MAGNITUDE, Magnitude(scope="layer", interval=4))],
)
def test_every_few_steps_the_weights_are_projected(spec, config):
    graph = small_graph()
    method, _ = started(graph, spec, config)
    optimizer = optimizer_of(graph)
    for step in range(1, 13):
        with torch.no_grad():
            for parameter in graph.module.parameters():
                parameter.add_(0.01)
        method.on_step(step, optimizer)
        within = values_of(graph)["energy"] <= method.limits_at(step)[0].maximum
        assert within == (step % 4 == 0)


def test_the_end_of_an_epoch_projects_once():
    graph = small_graph()
    method, _ = started(graph, ENERGY, EnergyProjection(interval=100))
    optimizer = optimizer_of(graph)
    method.on_step(20, optimizer)
    assert values_of(graph)["energy"] > method.limits_at(20)[0].maximum
    method.on_epoch(0, optimizer)
    assert values_of(graph)["energy"] <= method.limits_at(20)[0].maximum


@pytest.mark.parametrize("steps", [0, 1, 40])
def test_the_budget_holds_after_finalize_whatever_happened(steps):
    graph = small_graph()
    method, run = started(graph, ENERGY, EnergyProjection(), steps=steps)
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.mul_(-3.0)
    method.finalize(graph, run)
    assert values_of(graph)["energy"] <= run.limits[0].maximum


def test_parameters_keep_their_identity():
    graph = small_graph()
    parameters = [id(p) for p in graph.module.parameters()]
    method, run = started(graph, ENERGY, EnergyProjection(interval=1))
    method.on_step(1, optimizer_of(graph))
    method.finalize(graph, run)
    assert [id(p) for p in graph.module.parameters()] == parameters


def test_a_resumed_method_continues_alike():
    graph, other = small_graph(), small_graph()
    method, run = started(graph, ENERGY, EnergyProjection(interval=3))
    for step in range(1, 11):
        method.on_step(step, optimizer_of(graph))
    resumed, _ = started(other, ENERGY, EnergyProjection(interval=3))
    other.module.load_state_dict(graph.module.state_dict())
    resumed.load_state_dict(method.state_dict())
    assert resumed.state_dict() == method.state_dict()
    for current, worker in ((graph, method), (other, resumed)):
        worker.on_step(12, optimizer_of(current))
        worker.on_epoch(0, optimizer_of(current))
        worker.finalize(current, run)
    pairs = zip(state_of(graph).values(), state_of(other).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_hooks_before_prepare_are_refused():
    method = ENERGY.build(EnergyProjection(interval=1))
    with pytest.raises(PreconditionError, match=r"prepare\(\) was not called"):
        method.on_step(1, optimizer_of(small_graph()))
