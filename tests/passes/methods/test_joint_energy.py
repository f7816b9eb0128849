"""Which weights and bits an energy budget leaves: against the energy model and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_energy_nets import (
    EYERISS,
    IMAGE,
    ODD,
    SMALL_IMAGE,
    graph_of,
    limit_of,
    net,
    optimum,
    problem_of,
    relaxed,
    rounding_error,
    tiny,
    traced_net,
)

from energy_model.errors import InfeasibleBudget, PostconditionError, UnsupportedBudget
from energy_model.hardware import Hardware
from energy_model.unit_prices import PARTS
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.graph import LayerRule
from passes.joint.fit import codebook_costs, fit_codebook
from passes.methods.joint.config import Joint
from passes.methods.joint.energy_limit import EnergyLimit, require_hardware, require_served
from passes.methods.joint.energy_options import grid_options
from passes.methods.joint.energy_rate import EnergyRate
from passes.methods.joint.energy_search import EnergySearch
from passes.methods.joint.rates import Layer
from passes.methods.problem import build_problem
from passes.projection.allocate import allocate
from passes.projection.fill import fill
from passes.projection.magnitudes import top_mask
from passes.quantize.encoding import Encoding
from passes.quantize.widths import apply_widths, with_widths

BITS = st.lists(st.integers(2, 8), min_size=3, max_size=3)


@settings(max_examples=8)
@given(BITS, st.integers(0, 2**16), st.sampled_from([EYERISS, ODD]))
def test_the_rate_counts_what_the_energy_model_counts(
    bits: list[int], seed: int, hardware: Hardware
) -> None:
    graph = traced_net()
    targets, limit, rate, _ = problem_of(graph, "energy<=60%", hardware)
    generator = torch.Generator().manual_seed(seed)
    weights = targets.weights(graph)
    before = [weight.clone() for weight in weights]
    for weight in weights:
        weight.masked_fill_(torch.rand(weight.shape, generator=generator) < 0.5, 0.0)
    named = dict(zip([t.name for t in targets.rows], bits, strict=True))
    counted, known = rate.size(weights, bits), relaxed(graph, named, hardware)
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(old)
    assert limit.reached(counted) == known < cost_table(graph, hardware).total.dense


def test_a_projection_is_that_of_the_energy_method_at_the_same_widths() -> None:
    graph = graph_of(net(), IMAGE)
    targets, limit, rate, layers = problem_of(graph, "energy<=53%")
    bits = [5, 3, 8]
    masks = rate.project(targets.weights(graph), bits, limit.capacity, layers)
    named = {t.name: Widths(b) for t, b in zip(targets.rows, bits, strict=True)}
    graph.sites = with_widths(graph.sites, named)
    costs = cost_table(graph, EYERISS)
    same = build_problem(graph, costs, [limit.limit], min_per_layer=0, min_density=0)
    assert same.capacities == (limit.capacity,)
    prefix = allocate(same.weights, same.ladders, same.capacities)
    counts = fill(prefix, same.weights, same.ladders, same.histograms).counts
    assert [int(m.sum()) for m in masks] == list(counts)
    assert 0 < sum(counts) < sum(w.numel() for w in same.weights)
    for weight, mask in zip(same.weights, masks, strict=True):
        assert float(weight[mask].abs().min()) >= float(weight[~mask].abs().max())


@settings(max_examples=10)
@given(BITS, st.integers(48, 90), st.lists(st.integers(0, 40), min_size=3, max_size=3))
def test_masks_fit_and_keep_what_must_stay(bits: list[int], share: int, least: list[int]) -> None:
    graph = traced_net()
    targets, limit, rate, layers = problem_of(graph, f"energy<={share}%")
    layers = [Layer(layer.widths, n) for layer, n in zip(layers, least, strict=True)]
    weights = targets.weights(graph)
    masks = rate.project(weights, bits, limit.capacity, layers)
    must = sum(int(rate.energy(i, b, n)) for i, (b, n) in enumerate(zip(bits, least, strict=True)))
    assert all(int(m.sum()) >= n for m, n in zip(masks, least, strict=True))
    assert rate.size(masks, bits) <= max(limit.capacity, must)
    if must > limit.capacity:
        assert [int(m.sum()) for m in masks] == least
        kept = [w * m for w, m in zip(weights, masks, strict=True)]
        narrow = rate.choose(kept, kept, bits, limit.capacity, layers)
        assert [b for b, n in zip(narrow, least, strict=True) if n] == [2] * np.count_nonzero(least)


def test_bits_by_price_are_the_cheapest_of_every_layer() -> None:
    graph = traced_net()
    targets, limit, rate, layers = problem_of(graph, "energy<=51%")
    rate.unrepaired, bits = 0.5, [4, 4, 4]
    masks = rate.project(targets.weights(graph), bits, limit.capacity, layers)
    kept = [w * m for w, m in zip(targets.weights(graph), masks, strict=True)]
    ratios = [
        float(w[m].abs().min()) ** 2 / float(rate.energy(i, 4, 1))
        for i, (w, m) in enumerate(zip(targets.weights(graph), masks, strict=True))
        if bool(m.any())
    ]
    # What fills the rest lies below the price that the prefix paid.
    assert rate.multiplier >= min(ratios) > 0
    chosen = rate.choose(kept, kept, bits, limit.capacity, layers)
    for i, (weight, b) in enumerate(zip(kept, chosen, strict=True)):
        costs = codebook_costs(weight[weight != 0], kind="uniform", reserved_zero=False)
        count = int(torch.count_nonzero(weight))
        each = {
            w: 0.5 * float(costs[w - 1]) + rate.multiplier * int(rate.energy(i, w, count))
            for w in range(2, 9)
        }
        assert each[b] == min(each.values())
    assert len(set(chosen)) > 1


@pytest.mark.spread(1)
@pytest.mark.parametrize("share", [54, 60, 70])
def test_bits_by_knapsack_are_the_optimum(share: int) -> None:
    graph = traced_net()
    targets, limit, rate, layers = problem_of(graph, f"energy<={share}%")
    rate.by_price, weights = False, targets.weights(graph)
    chosen = rate.choose(weights, weights, [2, 2, 2], limit.capacity, layers)
    errors = [codebook_costs(w, kind="uniform", reserved_zero=False) for w in weights]
    feasible = [
        sum(float(e[b - 1]) for e, b in zip(errors, bits, strict=True))
        for bits in itertools.product(range(2, 9), repeat=3)
        if rate.size(weights, list(bits)) <= limit.capacity
    ]
    reached = sum(float(e[b - 1]) for e, b in zip(errors, chosen, strict=True))
    assert rate.size(weights, chosen) <= limit.capacity
    assert reached == pytest.approx(min(feasible), rel=1e-12)
    with pytest.raises(InfeasibleBudget) as caught:
        rate.choose(weights, weights, [2, 2, 2], rate.size(weights, [2, 2, 2]) - 1, layers)
    assert caught.value.binding_layer == "3"


def test_one_limit_more_is_kept_as_well() -> None:
    graph = traced_net()
    targets, limit, rate, layers = problem_of(graph, "energy<=60%")
    weights, bits = targets.weights(graph), [6, 6, 6]
    alone = rate.project(weights, bits, limit.capacity, layers)
    rate.nominal = 5000
    both = rate.project(weights, bits, limit.capacity, layers)
    assert 6 * sum(int(m.sum()) for m in alone) > 5000 >= 6 * sum(int(m.sum()) for m in both)
    assert rate.within(both, bits, limit.capacity)
    assert not rate.within(alone, bits, limit.capacity)
    chosen = rate.choose(weights, weights, bits, limit.capacity, layers)
    assert all(2 <= b <= 8 for b in chosen)


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_options_are_the_errors_of_their_grids(bits: int) -> None:
    weight = torch.randn(40, generator=torch.Generator().manual_seed(3))
    found = grid_options(weight, [bits], 5)
    assert found.kept.tolist() == list(range(5, 41))
    for kept, error in zip(found.kept, found.error, strict=True):
        exact = rounding_error([weight], [top_mask(weight, int(kept))], [bits])
        assert error == pytest.approx(exact, rel=1e-6)
    large = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    estimated = grid_options(large, [bits], 0)
    for kept, error in list(zip(estimated.kept, estimated.error, strict=True))[::40]:
        exact = rounding_error([large], [top_mask(large, int(kept))], [bits])
        # Weights that round to zero save nothing, so that fewer would do as well.
        assert exact * 0.99 <= error <= exact * 1.05


def test_options_of_no_weights_and_of_weights_in_their_own_type() -> None:
    none = grid_options(torch.zeros(7), [4, 5], 0)
    assert (none.kept.tolist(), none.error.tolist()) == ([0], [0.0])
    weight = torch.tensor([3.0, -1.0, 2.0])
    whole = grid_options(weight, [32], 0)
    assert whole.error.tolist() == pytest.approx([14, 5, 1, 0])


@pytest.mark.spread(1)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [75, 84])
def test_small_models_get_the_optimum(seed: int, share: int) -> None:
    graph = graph_of(tiny(seed), SMALL_IMAGE)
    config = Joint(levels="uniform", max_bits=4)
    targets, limit, rate, layers = problem_of(graph, f"energy<={share}%", config=config)
    weights = targets.weights(graph)
    found = EnergySearch(weights, layers, rate, limit.capacity).best([4, 4])
    assert rate.size(list(found.masks), list(found.bits)) <= limit.capacity
    exact = optimum(weights, rate, limit.capacity, range(2, 5))
    assert found.error == pytest.approx(exact, rel=1e-6, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("share", [50, 56])
def test_no_uniform_width_and_not_the_bits_before_are_better(share: int) -> None:
    graph = traced_net()
    targets, limit, rate, layers = problem_of(graph, f"energy<={share}%")
    weights = targets.weights(graph)
    search = EnergySearch(weights, layers, rate, limit.capacity)
    found = search.best([8, 2, 3])
    assert rate.size(list(found.masks), list(found.bits)) <= limit.capacity
    errors = []
    for bits in [[b] * 3 for b in range(2, 9)] + [[8, 2, 3]]:
        masks = rate.project(weights, bits, limit.capacity, layers)
        errors.append(rounding_error(weights, masks, bits))
    assert found.error < min(errors)
    # What is written: the grid fitted to what is left is at least as good.
    assert rounding_error(weights, found.masks, found.bits) <= found.error * (1 + 1e-9)


def test_weights_that_must_stay_are_not_rounded_to_zero_where_that_can_be() -> None:
    graph = graph_of(tiny(1), SMALL_IMAGE)
    targets, limit, rate, _ = problem_of(graph, "energy<=100%")
    layers = [Layer(range(2, 9), 4), Layer(range(2, 9), 6)]
    found = EnergySearch(targets.weights(graph), layers, rate, limit.capacity).best([2, 2])
    assert (found.missing, [int(m.sum()) for m in found.masks]) == (0, [4, 6])
    coarse = EnergySearch(targets.weights(graph), layers, rate, limit.capacity).kept([2, 2])
    assert coarse.missing > 0


def test_what_is_no_target_is_charged_as_it_is() -> None:
    graph = graph_of(net(), IMAGE)
    graph.rules["3"] = LayerRule(min_density=1.0)
    targets, limit, rate, _ = problem_of(graph, "energy<=95%")
    assert [t.name for t in targets.rows] == ["0", "7"]
    floors = sum(site.activation_energy(EYERISS) for site in graph.compressible)
    site = graph.by_name["3"]
    assert limit.fixed == floors + site.price(EYERISS).energy(site.size)
    assert limit.reached(rate.size(targets.weights(graph), [32, 32])) == (
        cost_table(graph, EYERISS).total.energy.relaxed
    )


def test_the_tightest_value_is_feasible_and_one_less_is_not() -> None:
    graph = graph_of(net(), IMAGE)
    graph.rules["7"] = LayerRule(min_density=0.5)
    targets, limit, rate, layers = problem_of(graph, "energy<=10%")
    with pytest.raises(InfeasibleBudget) as caught:
        limit.check(targets, rate)
    error = caught.value
    assert (error.limit, error.binding_layer) == ("energy", "3")
    assert error.tightest == limit.reached(int(rate.energy(2, 2, 80)))

    def at(maximum: float) -> EnergyLimit:
        asked = type(limit.limit)(limit.limit.limit, limit.limit.base, maximum)
        return EnergyLimit(asked, EYERISS, limit.fixed)

    at(error.tightest).check(targets, rate)
    masks = rate.project(targets.weights(graph), [2, 2, 2], at(error.tightest).capacity, layers)
    assert [int(m.sum()) for m in masks] == [0, 0, 80]
    with pytest.raises(InfeasibleBudget):
        at(error.tightest - 1 / PARTS).check(targets, rate)


def test_a_finished_model_above_the_limit_is_projected_once_more() -> None:
    graph = graph_of(net(), IMAGE)
    targets, limit, rate, _ = problem_of(graph, "energy<=52%")
    with torch.no_grad():
        for target in targets.rows:
            grid = fit_codebook(graph.weight(target.site), 6, reserved_zero=False, kind="uniform")
            scale = torch.full((len(graph.weight(target.site)), 1), grid.scale)
            graph.encodings[target.name] = Encoding(6, scale)
            graph.weight(target.site).copy_(grid.nearest(graph.weight(target.site)))
    apply_widths(graph)
    assert cost_table(graph, EYERISS).total.energy.relaxed > limit.limit.maximum
    limit.hold(graph, targets, rate)
    reached = cost_table(graph, EYERISS).total.energy.relaxed
    assert 0.99 * limit.limit.maximum < reached <= limit.limit.maximum
    kept = [graph.weight(t.site).clone() for t in targets.rows]
    limit.hold(graph, targets, rate)  # nothing more happens
    for target, weight in zip(targets.rows, kept, strict=True):
        assert torch.equal(graph.weight(target.site), weight)


def test_a_model_that_cannot_be_held_is_an_error() -> None:
    graph = graph_of(net(), IMAGE)
    config = Joint(levels="uniform", mode="quantize")
    targets, limit, rate, _ = problem_of(graph, "energy<=52%", config=config)
    with pytest.raises(PostconditionError, match="allows"):
        limit.hold(graph, targets, rate)


def test_limits_that_do_not_go_together_are_refused() -> None:
    graph = traced_net()
    energy, archive = limit_of(graph, "energy<=50%"), limit_of(graph, "energy<=50%")
    other = limit_of(graph, "energy<=50%").limit
    archive = type(energy)(type(other)("archive", other.value, other.unit), 1000, 500)
    nominal = type(energy)(type(other)("weight_bits", other.value, other.unit), 1000, 500)
    with pytest.raises(UnsupportedBudget, match="archive"):
        require_served(Joint(), [energy, archive])
    with pytest.raises(UnsupportedBudget, match="quantize"):
        require_served(Joint(mode="quantize"), [energy, nominal])
    require_served(Joint(), [energy, nominal])
    require_served(Joint(), [archive])
    with pytest.raises(Exception, match="needs costs"):
        require_hardware(None)
    assert require_hardware(EYERISS) is EYERISS


@pytest.mark.slow
def test_the_rate_does_not_change_what_it_reads() -> None:
    graph = traced_net()
    targets, limit, rate, layers = problem_of(graph, "energy<=52%")
    before = [w.clone() for w in targets.weights(graph)]
    EnergySearch(targets.weights(graph), layers, rate, limit.capacity).best([4, 4, 4])
    for weight, old in zip(targets.weights(graph), before, strict=True):
        assert torch.equal(weight, old)
    assert isinstance(rate, EnergyRate)
