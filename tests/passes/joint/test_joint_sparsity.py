from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_oracle import float32s, lenet5_weights, oracle

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from passes.joint.knapsack import Margin, best_changes
from passes.joint.sparsity import project_sparsity

WEIGHT = st.one_of(st.floats(-2, 2, width=16), st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0]))


@st.composite
def problems(draw, most_bits=8):
    layers = draw(st.lists(st.lists(WEIGHT, max_size=14), min_size=1, max_size=4))
    bits = draw(st.lists(st.integers(1, most_bits), min_size=len(layers), max_size=len(layers)))
    total = sum(len(w) * b for w, b in zip(layers, bits, strict=True))
    budget = draw(st.one_of(st.integers(0, total + 2), st.sampled_from([0, 1, total])))
    return [float32s(w) for w in layers], bits, budget


def knapsack(weights, bits, budget):
    """The largest kept sum of squares, by the full table over the capacity."""
    best = np.zeros(budget + 1)
    for weight, width in zip(weights, bits, strict=True):
        for value in weight.double().flatten().tolist():
            if width <= budget:
                best[width:] = np.maximum(best[width:], best[: budget + 1 - width] + value * value)
    return float(best[-1])


def energy(weights, masks):
    return sum(float(w.double()[m].square().sum()) for w, m in zip(weights, masks, strict=True))


def size(masks, bits):
    return sum(b * int(m.sum()) for b, m in zip(bits, masks, strict=True))


def projected(weights, masks):
    return [torch.where(m, w, 0.0) for w, m in zip(weights, masks, strict=True)]


@settings(max_examples=70)
@given(problem=st.one_of(problems(), problems(most_bits=32)))
def test_the_optimum_of_the_knapsack(problem):
    weights, bits, budget = problem
    masks = project_sparsity(weights, bits, budget)
    assert [m.shape for m in masks] == [w.shape for w in weights]
    assert all(m.dtype == torch.bool for m in masks)
    assert size(masks, bits) <= budget
    assert not any(bool((m & (w == 0)).any()) for w, m in zip(weights, masks, strict=True))
    assert energy(weights, masks) == pytest.approx(knapsack(weights, bits, budget), abs=1e-9)


@settings(max_examples=40)
@given(problem=problems())
def test_projecting_again_changes_nothing(problem):
    weights, bits, budget = problem
    once = projected(weights, project_sparsity(weights, bits, budget))
    twice = projected(once, project_sparsity(once, bits, budget))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@settings(max_examples=40)
@given(problem=problems(), power=st.integers(-100, 100))
def test_scale_sign_and_order_of_the_layers(problem, power):
    weights, bits, budget = problem
    masks = project_sparsity(weights, bits, budget)
    scaled = [-torch.ldexp(w, torch.tensor(power)) for w in weights]
    other = project_sparsity(scaled, bits, budget)
    assert all(torch.equal(a, b) for a, b in zip(masks, other, strict=True))
    turned = project_sparsity(weights[::-1], bits[::-1], budget)
    assert energy(weights[::-1], turned) == pytest.approx(energy(weights, masks), abs=1e-12)


@settings(max_examples=40)
@given(problem=problems(), least=st.integers(1, 3))
def test_every_layer_keeps_its_least(problem, least):
    weights, bits, budget = problem
    minimums = [min(least, int(torch.count_nonzero(w))) for w in weights]
    tightest = sum(b * n for b, n in zip(bits, minimums, strict=True))
    asked = [least] * len(weights)
    if tightest > budget:
        with pytest.raises(InfeasibleBudget) as caught:
            project_sparsity(weights, bits, budget, least=asked)
        assert caught.value.tightest == tightest
        return
    masks = project_sparsity(weights, bits, budget, least=asked)
    rest, best = [], 0.0
    for weight, mask, n in zip(weights, masks, minimums, strict=True):
        assert int(mask.sum()) >= n
        order = weight.abs().argsort(descending=True, stable=True)
        best += float(weight.double()[order[:n]].square().sum())
        rest.append(weight[order[n:]])
    best += knapsack(rest, bits, budget - tightest)
    assert size(masks, bits) <= budget
    assert energy(weights, masks) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("case", range(5))
def test_oracle_of_the_projection(case):
    case = oracle("sparsify")[case]
    weights = [float32s(layer) for layer in case["layers"]]
    masks = project_sparsity(weights, case["bits"], case["budget"])
    kept = energy(weights, masks)
    assert kept == pytest.approx(case["exact_energy"], rel=1e-12)
    assert kept >= case["authors_kept_energy"]
    assert size(masks, case["bits"]) <= case["budget"]


@pytest.mark.parametrize("case", range(3))
def test_lenet5_keeps_more_than_the_authors(case):
    case = oracle("lenet5")[case]
    weights = lenet5_weights()
    for found in case["rounds"]:
        masks = project_sparsity(weights, found["bits_in"], case["budget"])
        kept = energy(weights, masks)
        assert kept >= found["prefix_energy"] * (1 - 1e-7) > found["kept_energy"] * (1 - 1e-7)
        assert size(masks, found["bits_in"]) <= case["budget"]


def test_greedy_alone_is_not_enough():
    # By ratio the first weight comes first, but two others fill the budget.
    weights = [torch.tensor([2.0]), torch.tensor([1.7, 1.7])]
    masks = project_sparsity(weights, [3, 2], 4)
    assert [m.tolist() for m in masks] == [[False], [True, True]]


def test_ties_go_to_the_first_layer_and_the_first_weight():
    weights = [torch.full((2, 2), -0.5), torch.full((4,), 0.5)]
    masks = project_sparsity(weights, [2, 2], 10)
    assert [m.flatten().tolist() for m in masks] == [[True] * 4, [True, False, False, False]]


def test_everything_and_nothing():
    weights = [torch.tensor([1.0, 0.0, -2.0]), torch.empty(0), torch.zeros(2, 2)]
    assert [int(m.sum()) for m in project_sparsity(weights, [2, 3, 4], 4)] == [2, 0, 0]
    assert [int(m.sum()) for m in project_sparsity(weights, [2, 3, 4], 0)] == [0, 0, 0]
    assert project_sparsity([], [], 0) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_weights(dtype):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(40, generator=generator).to(dtype) for _ in range(3)]
    masks = project_sparsity(weights, [1, 3, 7], 97)
    assert energy(weights, masks) == pytest.approx(knapsack(weights, [1, 3, 7], 97), abs=1e-9)


def test_large_layers_equal_a_full_sort():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, generator=generator) for n in (300_000, 50_000)]
    (first, second) = project_sparsity(weights, [3, 3], 3 * 77_777)
    joined = torch.cat([w.abs() for w in weights])
    expected = torch.zeros(len(joined), dtype=torch.bool)
    expected[joined.argsort(descending=True, stable=True)[:77_777]] = True
    assert torch.equal(torch.cat([first, second]), expected)


def test_changes_around_the_greedy_counts():
    # Room for one more of weight 2, if one of weight 1 goes: gain 5 - 1.
    margins = [
        Margin(1, kept=np.asarray([9.0, 1.0]), rest=np.asarray([])),
        Margin(2, kept=np.asarray([7.0]), rest=np.asarray([5.0, 0.5])),
    ]
    assert best_changes(margins, 1) == [-1, 1]
    assert best_changes(margins, 0) == [0, 0]
    assert best_changes(margins, 2) == [0, 1]
    assert best_changes([], 5) == []


@pytest.mark.parametrize(
    ("bits", "budget", "least", "words"),
    [
        ([1], 3, None, "for 2 layers"),
        ([1, 2], 3, [1], "for 2 layers"),
        ([0, 2], 3, None, "0 is not allowed"),
        ([33, 2], 3, None, "1 to 32"),
        ([1.5, 2], 3, None, "1.5 is not allowed"),
        ([1, 2], -1, None, "-1 is not allowed"),
        ([1, 2], 2.0, None, "2.0 is not allowed"),
        ([1, 2], 3, [0, -1], "-1 is not allowed"),
    ],
)
def test_bad_numbers_are_refused(bits, budget, least, words):
    with pytest.raises(ArgumentError, match=words):
        project_sparsity([torch.ones(2), torch.ones(2)], bits, budget, least=least)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(PreconditionError, match="layer 1"):
        project_sparsity([torch.ones(2), torch.tensor([bad])], [1, 1], 5)
