"""Budgets over weights of announced widths: exact, against every choice, and as recounted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from lenet_problem import lenet_graph, limits_of, traced
from torch import nn

from energy_model.errors import InfeasibleBudget
from energy_model.hardware import Hardware, load_hardware
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.methods.energy_projection import EnergyProjection, WeightedProjection
from passes.methods.magnitude import Magnitude, MagnitudePruning
from passes.methods.problem import build_problem
from passes.methods.sparsify import keep_largest
from passes.projection.allocate import allocate
from passes.projection.fill import fill
from passes.quantize.encoding import Encoding
from passes.quantize.widths import with_widths

EYERISS = load_hardware("eyeriss")
# A weight cache of 4 words, so that its capacity is met.
SMALL = Hardware("small", 3, 2, input_cache_bytes=64, weight_cache_bytes=8, rf_energy=5)
MIXED = {"0": Widths(3, 8, 5), "1": Widths(8, 5, 16)}


def tiny(widths=MIXED, seed=0):
    """Two layers of 8 weights each."""
    model = nn.Sequential(nn.Conv1d(1, 4, 2, bias=False), nn.Conv1d(4, 2, 1, bias=False)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    graph = traced(model, torch.randn(1, 1, 6).double())
    graph.sites = with_widths(graph.sites, widths)
    return graph


def problem(graph, hardware, *budgets, least=0):
    costs = cost_table(graph, hardware)
    limits = limits_of(graph, ", ".join(budgets))
    return build_problem(graph, costs, limits, min_per_layer=least, min_density=0.0)


def energy_of(graph, hardware):
    return cost_table(graph, hardware).total.energy.relaxed


def test_charges_are_integers_and_values_are_in_units():
    graph = tiny()
    built = problem(graph, SMALL, "energy<=9 kMAC", "nonzeros<=100%")
    index = [limit.key for limit in built.limits].index("energy")
    assert built.parts[index] == 256
    assert built.parts[1 - index] == 1
    assert all(isinstance(c, int) for ladder in built.ladders for c in ladder.charges_at(0))
    energy = energy_of(graph, SMALL)
    assert built.used()[index] == energy
    assert built.fixed[index] == sum(site.activation_energy(SMALL) for site in graph.sites)
    assert built.capacities[index] == (9000 - built.fixed[index]) * 256
    assert built.capacities[1 - index] == 16
    price = graph.sites[0].price(SMALL)
    assert built.ladders[0].charges_at(0)[index] == price.first * 256
    assert built.ladders[0].charges_at(7)[index] == price.first * 256
    assert price.capacity == 64 // 3
    assert built.ladders[1].steps[0].end == 8


def test_whole_charges_are_taken_as_they_are():
    # 101 + 3 + 2.5 + 7.5 for a weight of the first layer; 10 outputs of 1 bit leave a fraction.
    hardware = EYERISS.replace(dram_energy=202)
    graph = tiny({"0": Widths(8, 16, 16), "1": Widths(outputs=1)})
    built = problem(graph, hardware, "energy<=20 kMAC")
    assert built.parts == (1,)
    assert built.ladders[0].charges_at(0) == (114,)
    assert built.fixed == (sum(site.activation_energy(hardware) for site in graph.sites),)
    assert built.fixed[0] % 1 == 0.25
    assert built.capacities == (20_000 - math.ceil(built.fixed[0]),)
    assert built.used() == (energy_of(graph, hardware),)


@pytest.mark.spread(1)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [MIXED, {"0": Widths(8, 8, 8), "1": Widths(4, 8, 8)}, {}])
def test_against_every_choice(widths, seed):
    graph = tiny(widths, seed)
    weights = [
        graph.weight(site).reshape(-1).abs().sort(descending=True)[0] for site in graph.sites
    ]
    squares = [torch.cat([torch.zeros(1).double(), (w**2).cumsum(0)]) for w in weights]
    table, dense = {}, [graph.weight(site).clone() for site in graph.sites]
    for counts in itertools.product(range(9), repeat=2):
        keep_largest(graph, dict(zip(("0", "1"), counts, strict=True)))
        kept = sum(float(s[c]) for s, c in zip(squares, counts, strict=True))
        table[counts] = energy_of(graph, SMALL), kept
        for site, weight in zip(graph.sites, dense, strict=True):
            graph.weight(site).copy_(weight)
    floor, most = table[0, 0][0], table[8, 8][0]
    for share in (0.0, 0.15, 0.4, 0.7, 0.95, 1.0):
        maximum = int(-(-(floor + share * (most - floor)) // 1))
        built = problem(graph, SMALL, f"energy<={maximum} MAC")
        chosen = allocate(built.norms, built.ladders, built.capacities, histograms=built.histograms)
        chosen = fill(chosen, built.norms, built.ladders, built.histograms)
        used, kept = table[chosen.counts]
        assert built.reached(chosen.used) == (used,)
        assert used <= maximum
        best = max(value for energy, value in table.values() if energy <= maximum)
        assert best - chosen.gap - 1e-9 <= kept <= best + 1e-9


@pytest.mark.spread(3)
@pytest.mark.parametrize("method", ["energy", "magnitude", "layer"])
@pytest.mark.parametrize("share", [0.3, 0.45])
def test_the_plan_reaches_what_is_recounted(method, share):
    graph = lenet_graph()
    widths = {"0": Widths(8, 8, 6), "3": Widths(4, 6, 8), "7": Widths(2, 7, 8), "9": Widths(5, 8)}
    graph.sites = with_widths(graph.sites, widths)
    costs = cost_table(graph, EYERISS)
    limits = limits_of(graph, f"energy<={share}")
    assert limits[0].base == costs.total.dense > costs.total.energy.relaxed
    made = {
        "energy": lambda: WeightedProjection(EnergyProjection()),
        "magnitude": lambda: MagnitudePruning(Magnitude()),
        "layer": lambda: MagnitudePruning(Magnitude(scope="layer")),
    }[method]()
    plan = made.plan(graph, costs, limits)
    keep_largest(graph, plan.kept)
    assert plan.reached["energy"] == energy_of(graph, EYERISS) <= limits[0].maximum
    if method == "energy" and sum(plan.kept.values()) < 61470:
        assert limits[0].maximum - plan.reached["energy"] < 210  # less than any weight costs


def test_sparsity_and_bits_meet_one_limit_together():
    graph = lenet_graph()
    limits = limits_of(graph, "energy<=35%")
    everything = dict.fromkeys(graph.by_name, Widths(8, 8, 8))
    kept = {}
    for name, widths in (("words", {}), ("narrow", everything)):
        own = lenet_graph()
        own.sites = with_widths(own.sites, widths)
        plan = WeightedProjection(EnergyProjection()).plan(own, cost_table(own, EYERISS), limits)
        kept[name] = sum(plan.kept.values())
    assert kept["narrow"] > 2 * kept["words"]


def test_bits_of_encodings_come_before_announced_ones():
    graph = tiny({"0": Widths(3), "1": Widths(8)})
    graph.encodings["0"] = Encoding(2, torch.ones(4, 1))
    built = problem(graph, EYERISS, "weight_bits<=10 Mbit")
    assert [ladder.charges_at(0) for ladder in built.ladders] == [(2,), (8,)]
    del graph.encodings["0"]
    graph.sites = with_widths(graph.sites, {"1": Widths()})
    built = problem(graph, EYERISS, "weight_bits<=10 Mbit")
    assert [ladder.charges_at(0) for ladder in built.ladders] == [(3,), (64,)]


def test_what_cannot_be_met_is_told_in_units():
    graph = tiny()
    with pytest.raises(InfeasibleBudget) as caught:
        problem(graph, SMALL, "energy<=2 MAC", least=1)
    error = caught.value
    floor = sum(site.activation_energy(SMALL) for site in graph.sites)
    firsts = sum(site.price(SMALL).first for site in graph.sites)
    assert error.tightest == floor + firsts
    assert error.tightest != int(error.tightest)
    assert f"{error.tightest:,}" in str(error)
    ceiling = int(error.tightest) + 1
    built = problem(graph, SMALL, f"energy<={ceiling} MAC", least=1)
    assert built.reached([sum(x.used(1)[0] for x in built.ladders)]) == (error.tightest,)
    with pytest.raises(InfeasibleBudget):
        problem(graph, SMALL, f"energy<={ceiling - 1} MAC", least=1)
