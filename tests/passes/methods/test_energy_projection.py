from __future__ import annotations

import pytest
from lenet_problem import costs_of, lenet_graph, limits_of

from passes.methods.energy_projection import SPEC, EnergyProjection

# No minimum and no fill: the published prefix.
PAPER = EnergyProjection(min_per_layer=0, min_density=0.0, fill=False)


@pytest.mark.parametrize(
    ("share", "budget", "kept", "relaxed", "following"),
    [
        ("50%", 8553772, (51, 769, 17818, 6609, 598), 8553452, 654),
        ("30%", 5132263, (10, 117, 5768, 5223, 501), 5132102, 210),
        ("20%", 3421508, (0, 0, 0, 3507, 381), 3421424, 210),
    ],
)
def test_published_projection_of_lenet5(share, budget, kept, relaxed, following):
    graph = lenet_graph()
    limits = limits_of(graph, f"energy<={share}")
    assert limits[0].maximum == budget
    plan = SPEC.build(PAPER).plan(graph, costs_of(graph), limits)
    assert tuple(plan.kept.values()) == kept
    assert plan.reached == {"energy": relaxed}
    assert plan.details["next_charges"] == [following]


def test_fill_takes_what_the_prefix_leaves():
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=50%")
    filled = EnergyProjection(min_per_layer=0, min_density=0.0)
    plan = SPEC.build(filled).plan(graph, costs_of(graph), limits)
    # 320 units are left: no second convolution's weight (654), one linear weight (210).
    assert plan.reached == {"energy": 8553452 + 210}
    assert sum(plan.kept.values()) == 25845 + 1


@pytest.mark.parametrize("density", [0.0, 0.05])
def test_a_minimum_density_is_kept_and_paid_for(density):
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=20%")
    config = EnergyProjection(min_per_layer=0, min_density=density)
    plan = SPEC.build(config).plan(graph, costs_of(graph), limits)
    assert all(row.keep >= density * row.size for row in plan.rows)
    assert plan.reached["energy"] <= limits[0].maximum
