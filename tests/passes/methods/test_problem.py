from __future__ import annotations

import pytest
import torch
from lenet_problem import costs_of, lenet_graph, limits_of, traced, values_of
from torch import nn
from torch.nn.utils import parametrizations

from energy_model.errors import InfeasibleBudget, PreconditionError
from passes.methods.problem import build_problem

UNITS = {"energy": " MAC", "nonzeros": " weights", "weight_bits": " bits", "sparse_macs": " MAC"}


def problem(graph, budget, least=0, density=0.0):
    limits = limits_of(graph, budget)
    return build_problem(graph, costs_of(graph), limits, min_per_layer=least, min_density=density)


def test_prices_and_floor_of_lenet():
    budget = "energy<=50%, nonzeros<=40%, weight_bits<=30%, sparse_macs<=20%"
    built = problem(lenet_graph(), budget)
    assert [site.name for site in built.sites] == ["0", "3", "7", "9", "11"]
    position = {limit.key: index for index, limit in enumerate(built.limits)}
    energy, bits = position["energy"], position["weight_bits"]
    assert [x.charges_at(0)[energy] for x in built.ladders] == [3732, 654, 210, 210, 210]
    assert {x.charges_at(0)[bits] for x in built.ladders} == {64}
    assert {x.charges_at(0)[position["nonzeros"]] for x in built.ladders} == {1}
    positions = [x.charges_at(0)[position["sparse_macs"]] for x in built.ladders]
    assert positions == [28 * 28, 10 * 10, 1, 1, 1]
    assert built.fixed[energy] == 2604944
    assert sum(built.fixed) == built.fixed[energy]


def test_the_first_weights_use_what_they_are_charged():
    graph = lenet_graph()
    with torch.no_grad():
        graph.module[3].weight[:, 1] = 0.0
    budget = "energy<=100%, nonzeros<=100%, weight_bits<=100%, sparse_macs<=100%"
    built = problem(graph, budget)
    now = values_of(graph)
    assert dict(zip([x.key for x in built.limits], built.used(), strict=True)) == now
    assert built.capacities == tuple(
        limit.maximum - fixed for limit, fixed in zip(built.limits, built.fixed, strict=True)
    )


@pytest.mark.parametrize(
    ("least", "density", "expected"),
    [
        (0, 0.0, [0, 0, 0, 0, 0]),
        (1, 0.0, [1, 1, 1, 1, 1]),
        (1, 0.02, [3, 48, 960, 202, 17]),
        (200, 0.02, [150, 200, 960, 202, 200]),
    ],
)
def test_minimums(least, density, expected):
    assert list(problem(lenet_graph(), "energy<=90%", least, density).minimums) == expected


def test_zeros_are_never_forced():
    graph = lenet_graph()
    with torch.no_grad():
        graph.module[0].weight.view(-1)[2:] = 0.0
    assert problem(graph, "energy<=90%", least=5).minimums[0] == 2


def test_computed_weights_are_fixed():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4)), nn.Linear(4, 4))
    graph = traced(model, torch.randn(2, 8))
    built = problem(graph, "energy<=90%")
    computed, own = costs_of(graph).rows
    assert [site.name for site in built.sites] == ["1"]
    assert built.fixed == (computed.energy.relaxed + own.floor,)
    assert problem(graph, "sparse_macs<=90%").fixed == (8 * 4,)
    with pytest.raises(InfeasibleBudget, match=r"they alone are 66.67 %, 100 % of that") as caught:
        problem(graph, "sparse_macs<=10%")
    assert (caught.value.tightest, caught.value.binding_layer) == (8 * 4, "0")


def test_a_model_whose_weights_are_all_computed_is_refused():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4)))
    with pytest.raises(PreconditionError, match="every weight is computed in forward"):
        problem(traced(model, torch.randn(3, 8)), "energy<=50%")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_their_layer(bad):
    graph = lenet_graph()
    with torch.no_grad():
        graph.module[3].weight[1, 2, 3, 4] = bad
    with pytest.raises(PreconditionError, match="NaN, infinite") as caught:
        problem(graph, "energy<=90%")
    assert caught.value.where == "3"


@pytest.mark.spread(4)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("key", UNITS)
def test_the_tightest_value_can_be_reached_and_less_cannot(key, density):
    graph = lenet_graph()
    with pytest.raises(InfeasibleBudget, match="is the least that can be reached") as caught:
        problem(graph, f"{key}<=2{UNITS[key]}", least=1, density=density)
    error = caught.value
    assert (error.limit, error.asked) == (key, 2)
    built = problem(graph, f"{key}<={error.tightest}{UNITS[key]}", least=1, density=density)
    needed = [x.used(n)[0] for x, n in zip(built.ladders, built.minimums, strict=True)]
    assert sum(needed) + built.fixed[0] == error.tightest
    with pytest.raises(InfeasibleBudget):
        problem(graph, f"{key}<={error.tightest - 1}{UNITS[key]}", least=1, density=density)


def test_the_error_names_the_layer_that_needs_most():
    graph = lenet_graph()
    with pytest.raises(InfeasibleBudget) as caught:
        problem(graph, "nonzeros<=10", density=0.1)
    assert caught.value.binding_layer == "7"
    assert "min_density" in str(caught.value)
    with pytest.raises(InfeasibleBudget) as caught:
        problem(graph, "energy<=1%")
    assert "activations alone are 15.23 %" in str(caught.value)
    assert caught.value.binding_layer == max(costs_of(graph), key=lambda row: row.floor).name


def test_one_limit_of_several_may_be_infeasible():
    graph = lenet_graph()
    with pytest.raises(InfeasibleBudget) as caught:
        problem(graph, "energy<=90%, nonzeros<=3", least=1)
    assert (caught.value.limit, caught.value.tightest) == ("nonzeros", 5)
