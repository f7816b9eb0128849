from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_nets import FAMILIES, HARDWARE, family, family_space, space_of

from energy_model.budget import Budget
from energy_model.energy import activation_energy, nonzero_energy
from energy_model.errors import InfeasibleBudget, UnsupportedBudget
from energy_model.resolved import ResolvedLimit
from energy_model.shapes import LayerShape
from energy_model.unit_prices import PARTS
from passes.architecture.energies import UseEnergy
from passes.architecture.genotype import Genotype
from passes.architecture.space import SearchSpace
from passes.graph import Use
from passes.structure.geometry import Arrangement


def limits_of(space, **shares):
    base = space.cost(Genotype())
    found = []
    for key, share in shares.items():
        limit = next(iter(Budget.parse(f"{key}<={100 * share}%")))
        found.append(ResolvedLimit(limit, base[key], int(base[key] * share)))
    return found


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_no_student_exceeds_a_limit(name):
    limits = limits_of(family_space(name), params=0.3, macs=0.5, energy=0.6)
    space, rng = space_of(name, limits=limits), random.Random(0)
    narrowed = 0
    for _ in range(15):
        found = space.sample(rng)
        for genotype in (found, space.mutate(found, rng), space.mutate(Genotype(), rng)):
            assert space.within(genotype)
            assert space.violations(genotype) == []
            assert space.repair(genotype) == genotype
            costs = space.cost(genotype)
            assert all(costs[limit.key] <= limit.maximum for limit in limits)
        narrowed += not space.within(family_space(name).sample(rng))
    assert not space.within(Genotype())
    assert "is" in space.violations(Genotype())[0]


@pytest.mark.slow
@settings(max_examples=20)
@given(st.floats(0.02, 1), st.sampled_from(["params", "macs", "energy"]))
def test_a_student_is_narrowed_as_little_as_needed(share, key):
    wide = family_space("vgg")
    limits = limits_of(wide, **{key: share})
    try:
        space = space_of("vgg", limits=limits)
    except InfeasibleBudget as error:
        assert error.limit == key
        assert error.tightest > limits[0].maximum
        return
    found = space.repair(Genotype())
    assert space.cost(found)[key] <= limits[0].maximum
    if not found.removed and found != Genotype():
        # One more unit everywhere is too much.
        groups = space.structure.groups.by_name
        more = {name: min(groups[name].units, units + 1) for name, units in found.widths}
        assert wide.cost(Genotype.of([], more))[key] > limits[0].maximum


def test_a_limit_below_the_smallest_student_is_infeasible():
    limits = limits_of(family_space("resnet"), params=0.0001)
    with pytest.raises(InfeasibleBudget, match="smallest student") as error:
        space_of("resnet", limits=limits)
    assert error.value.limit == "params"
    assert error.value.asked == limits[0].maximum
    assert limits[0].maximum < error.value.tightest < 0.1 * limits[0].base


def test_parts_go_where_widths_do_not_suffice():
    graph_space = family_space("resnet")
    widths = {g.name: 1 for g in graph_space.structure.groups.free}
    least = graph_space.cost(graph_space.repair(Genotype.of(widths=widths)))["params"]
    base = graph_space.cost(Genotype())["params"]
    limits = limits_of(graph_space, params=(least - 5) / base)
    found = space_of("resnet", limits=limits).repair(Genotype())
    assert found.removed
    assert graph_space.cost(found)["params"] <= least - 5


@pytest.mark.parametrize("key", ["size", "ram", "latency", "archive", "beauty"])
def test_costs_that_need_the_student_are_refused(key):
    with pytest.raises(UnsupportedBudget, match=key):
        SearchSpace(family("vgg"), HARDWARE, keys=[key])


SHAPES = [
    LayerShape.conv(6, 10, 3, (9, 7), padding=1),
    LayerShape.conv(6, 10, 3, (16, 16), stride=2, padding=1),
    LayerShape.conv(6, 12, 3, (40, 40), padding=1, groups=2),
    LayerShape.conv(8, 16, 3, (8, 8), padding=1, groups=8),
    LayerShape.linear(40, 30),
    LayerShape.linear(40, 30, 7),
]


@pytest.mark.spread(4)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "hardware",
    [HARDWARE, HARDWARE.replace(input_cache_bytes=256, weight_cache_bytes=64, index_bits=4)],
    ids=["eyeriss", "tiny caches"],
)
def test_energies_are_those_of_the_energy_model(shape, hardware):
    depthwise = shape.groups == shape.in_channels > 1
    how = Arrangement(True, depthwise)
    rows, columns = shape.out_channels, shape.in_channels // shape.groups
    energy = UseEnergy(Use(shape, 3), how, hardware)
    multiple = shape.groups if not depthwise else shape.out_channels // shape.in_channels
    for r in range(multiple, rows + 1, multiple):
        for c in range(1, columns + 1):
            cut = how.cut(shape, r, c)
            moved = nonzero_energy(shape, hardware, cut.weights)
            expected = (activation_energy(cut, hardware)[0] + moved) * 3
            assert energy.parts(r, c, (rows, columns)) == expected * PARTS
