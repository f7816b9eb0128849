from __future__ import annotations

import pytest
import torch
from lenet_problem import costs_of, lenet_graph, limits_of, values_of

from passes.methods.base import Run
from passes.methods.magnitude import SPEC, Magnitude

NONE = {"min_per_layer": 0, "min_density": 0.0}


def plan_of(graph, budget, **options):
    limits = limits_of(graph, budget)
    return SPEC.build(Magnitude(**NONE | options)).plan(graph, costs_of(graph), limits)


@pytest.mark.parametrize("share", [0.03, 0.4])
def test_global_scope_is_top_k_of_the_model(share):
    graph = lenet_graph()
    plan = plan_of(graph, f"nonzeros<={100 * share}%")
    weights = [graph.weight(site).abs().reshape(-1) for site in graph.sites]
    count = int(share * 61470)
    limit = torch.cat(weights).sort(descending=True).values[count - 1]
    assert list(plan.kept.values()) == [int((w >= limit).sum()) for w in weights]
    assert sum(plan.kept.values()) == count


def test_global_scope_ranks_by_size_and_pays_energy():
    graph = lenet_graph()
    plan = plan_of(graph, "energy<=30%")
    weights = [graph.weight(site).abs().reshape(-1).sort(descending=True).values
               for site in graph.sites]  # fmt: skip
    kept = list(plan.kept.values())
    smallest = min(float(w[n - 1]) for w, n in zip(weights, kept, strict=True) if n)
    largest_out = max(float(w[n]) for w, n in zip(weights, kept, strict=True) if n < len(w))
    assert smallest >= largest_out
    [charge] = plan.details["next_charges"]
    assert 0 <= plan.allowed["energy"] - plan.reached["energy"] < charge


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_layer_scope_keeps_one_share_of_every_layer(share):
    graph = lenet_graph()
    plan = plan_of(graph, f"nonzeros<={100 * share}%", scope="layer")
    reached = sum(plan.kept.values()) / 61470
    assert share - 5 / 61470 <= reached <= share
    for row in plan.rows:
        assert abs(row.keep - reached * row.size) <= 1


def test_layer_scope_at_an_energy():
    graph = lenet_graph()
    plan = plan_of(graph, "energy<=40%", scope="layer")
    shares = [row.keep / row.size for row in plan.rows]
    assert max(shares) - min(shares) < 1 / 150
    # One more weight of every layer does not fit.
    prices = (3732, 654, 210, 210, 210)
    assert plan.reached["energy"] <= plan.allowed["energy"] < plan.reached["energy"] + sum(prices)


def test_it_can_be_applied():
    graph = lenet_graph()
    method = SPEC.build(Magnitude(scope="layer"))
    plan = method.plan(graph, costs_of(graph), limits_of(graph, "nonzeros<=25%"))
    method.prepare(graph, plan, Run())
    method.finalize(graph, Run())
    assert values_of(graph)["nonzeros"] == plan.reached["nonzeros"] <= 61470 // 4
