"""What all sparsifying methods promise: pure plans, met budgets, plain results."""

from __future__ import annotations

import copy

import pytest
import torch
from lenet_problem import (
    costs_of,
    kept_squares,
    lenet_graph,
    limits_of,
    state_of,
    traced,
    values_of,
)
from torch import nn
from torch.nn.utils import parametrize

from energy_model.errors import InfeasibleBudget, PreconditionError
from passes.methods.base import Run
from passes.methods.energy_projection import SPEC as ENERGY
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import SPEC as MAGNITUDE
from passes.methods.magnitude import Magnitude

METHODS = {
    "energy": (ENERGY, EnergyProjection()),
    "energy, no fill": (ENERGY, EnergyProjection(fill=False)),
    "global": (MAGNITUDE, Magnitude()),
    "layer": (MAGNITUDE, Magnitude(scope="layer")),
}
BUDGETS = (
    "energy<=50%",
    "nonzeros<=10%",
    "weight_bits<=7%",
    "energy<=40%, nonzeros<=10%",
    "energy<=30%, nonzeros<=90%",
    "energy<=100%",
)


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    return traced(model, torch.randn(3, 8))


class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.inner(x, x.flip(1), x.roll(1, 1))[0])


def attention():
    return traced(Cross(), torch.randn(3, 5, 8))


GRAPHS = {"lenet": lenet_graph, "tied": tied, "attention": attention}


def plan_of(name, graph, limits, **options):
    spec, config = METHODS[name]
    return spec.build(config).plan(graph, costs_of(graph), limits, **options)


def compressed(name, graph, limits):
    spec, config = METHODS[name]
    method, run = spec.build(config), Run()
    plan = method.plan(graph, costs_of(graph), limits)
    method.prepare(graph, plan, run)
    method.finalize(graph, run)
    return plan


@pytest.mark.spread(3)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_is_pure_and_repeatable(name, budget):
    graph = lenet_graph()
    limits, before = limits_of(graph, budget), state_of(graph)
    costs, decisions = costs_of(graph), list(graph.decisions)
    first, second = plan_of(name, graph, limits), plan_of(name, graph, limits)
    assert first == second
    assert all(torch.equal(graph.module.state_dict()[k], v) for k, v in before.items())
    assert (costs_of(graph), graph.decisions) == (costs, decisions)
    assert not any(parametrize.is_parametrized(m) for m in graph.module.modules())


@pytest.mark.spread(5)
@pytest.mark.parametrize("model", GRAPHS)
@pytest.mark.parametrize("budget", ["energy<=60%", "nonzeros<=30%", "energy<=60%, nonzeros<=30%"])
@pytest.mark.parametrize("name", METHODS)
def test_the_result_is_what_was_planned_and_fits(name, budget, model):
    graph = GRAPHS[model]()
    limits = limits_of(graph, budget)
    original = copy.deepcopy(graph.module)
    plan = compressed(name, graph, limits)
    assert plan.method == METHODS[name][0].name
    now = values_of(graph)
    for limit in limits:
        assert now[limit.key] == plan.reached[limit.key] <= limit.maximum
        assert plan.allowed[limit.key] == limit.maximum
    for site in graph.compressible:
        assert int(torch.count_nonzero(graph.weight(site))) == plan.kept[site.name]
    assert_largest_are_kept_as_they_were(graph, original)


def assert_largest_are_kept_as_they_were(graph, original):
    before = type(graph)(original, None, graph.call, graph.sites)
    for site in graph.compressible:
        old, new = before.weight(site), graph.weight(site)
        kept = new != 0
        assert torch.equal(new[kept], old[kept])
        assert not torch.signbit(new[~kept]).any()
        if kept.any() and not kept.all():
            assert old[kept].abs().min() >= old[~kept].abs().max()
    site_weights = {name for site in graph.sites for name in map(".".join, site.owners)}
    for key, value in original.state_dict().items():
        assert key in site_weights or torch.equal(graph.module.state_dict()[key], value)


@pytest.mark.parametrize("name", METHODS)
def test_the_result_is_plain(name):
    graph = tied()
    keys = list(graph.module.state_dict())
    parameters = [id(p) for p in graph.module.parameters()]
    compressed(name, graph, limits_of(graph, "energy<=60%"))
    assert [type(m) for m in graph.module] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    assert list(graph.module.state_dict()) == keys
    assert [id(p) for p in graph.module.parameters()] == parameters
    assert graph.module[0].weight is graph.module[2].weight


@pytest.mark.parametrize("name", METHODS)
def test_compressing_twice_changes_no_bit(name):
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=40%")
    compressed(name, graph, limits)
    once = state_of(graph)
    compressed(name, graph, limits)
    assert all(torch.equal(graph.module.state_dict()[key], value) for key, value in once.items())


@pytest.mark.parametrize("name", METHODS)
def test_one_shot_keeps_two_percent_of_every_layer(name):
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=20%")
    least = [3, 48, 960, 202, 17]
    plan = plan_of(name, graph, limits)
    assert all(n >= m for n, m in zip(plan.kept.values(), least, strict=True))
    trained = plan_of(name, graph, limits, one_shot=False)
    assert all(n >= 1 for n in trained.kept.values())


def test_training_needs_no_minimum_density():
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=20%")
    one_shot = plan_of("energy", graph, limits)
    trained = plan_of("energy", graph, limits, one_shot=False)
    assert trained.kept["0"] == 1 < one_shot.kept["0"]
    assert one_shot.rows[0].why == "at its minimum"


def test_rows_say_why():
    graph = lenet_graph()
    assert {row.why for row in plan_of("energy", graph, limits_of(graph, "energy<=100%")).rows} == {
        "all kept"
    }
    plan = plan_of("energy", graph, limits_of(graph, "energy<=50%"))
    assert {row.why for row in plan.rows} == {"by the budget"}


@pytest.mark.spread(4)
@pytest.mark.parametrize("key", ["energy", "nonzeros"])
@pytest.mark.parametrize("name", METHODS)
def test_the_tightest_value_of_the_error_is_reached(name, key):
    graph = lenet_graph()
    unit = " MAC" if key == "energy" else ""
    with pytest.raises(InfeasibleBudget) as caught:
        plan_of(name, graph, limits_of(graph, f"{key}<=10{unit}"))
    limits = limits_of(graph, f"{key}<={caught.value.tightest}{unit}")
    plan = compressed(name, graph, limits)
    assert values_of(graph)[key] == plan.reached[key] == caught.value.tightest
    assert plan.rows[0].keep == 3


@pytest.mark.parametrize("name", METHODS)
def test_a_model_of_zeros_keeps_nothing(name):
    spec, config = METHODS[name]
    graph = traced(nn.Sequential(nn.Linear(8, 4)), torch.randn(3, 8))
    with torch.no_grad():
        graph.module[0].weight.zero_()
    plan = spec.build(config).plan(graph, costs_of(graph), limits_of(graph, "energy<=99%"))
    assert plan.kept == {"0": 0}


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_are_not_finite_are_refused(name):
    graph = lenet_graph()
    with torch.no_grad():
        graph.module[7].weight[0, 0] = float("nan")
    with pytest.raises(PreconditionError, match="1 of 48000 weights are NaN"):
        plan_of(name, graph, limits_of(graph, "energy<=50%"))


def test_only_the_weighted_projection_claims_a_gap():
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=50%")
    prefix = plan_of("energy, no fill", graph, limits).gap
    filled = plan_of("energy", graph, limits).gap
    assert 0 <= filled <= prefix < 0.1
    assert plan_of("global", graph, limits).gap is None
    assert plan_of("layer", graph, limits).gap is None


@pytest.mark.parametrize(("name", "budget"), [("energy", "energy<=50%"), ("global", "energy<=50%")])
def test_users_are_told_how_far_the_choice_can_be_from_the_best(name, budget):
    graph = lenet_graph()
    plan = compressed(name, graph, limits_of(graph, budget))
    told = [d.what for d in graph.decisions if "best choice of weights" in d.what]
    if name == "global":  # its order is not by price: nothing is claimed
        assert told == []
        return
    share = 100 * plan.gap / (kept_squares(graph) + plan.gap)
    assert told == [f"within {share:.2g} % of the best choice of weights"]
    assert 0 < share < 0.1


@pytest.mark.spread(1)
@pytest.mark.parametrize("budget", ["energy<=50%", "energy<=30%", "energy<=25%"])
def test_at_equal_energy_the_weighted_projection_keeps_more(budget):
    kept = {}
    for name in METHODS:
        graph = lenet_graph()
        limits = limits_of(graph, budget)
        compressed(name, graph, limits)
        assert values_of(graph)["energy"] <= limits[0].maximum
        kept[name] = kept_squares(graph)
    assert kept["energy"] >= kept["energy, no fill"]
    assert kept["energy, no fill"] > 1.02 * kept["global"]
    assert kept["energy, no fill"] > 1.02 * kept["layer"]


@pytest.mark.parametrize("budget", ["nonzeros<=10%", "weight_bits<=30%"])
def test_at_equal_prices_both_are_magnitude_pruning(budget):
    graph = lenet_graph()
    limits = limits_of(graph, budget)
    assert plan_of("energy", graph, limits).kept == plan_of("global", graph, limits).kept
