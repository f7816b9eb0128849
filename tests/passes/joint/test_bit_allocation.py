from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_oracle import float32s, oracle

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.joint import choice
from passes.joint.bit_allocation import allocate_bits
from passes.joint.choice import Group, choose
from passes.joint.fit import codebook_costs

INFINITE = float("inf")


@st.composite
def tables(draw):
    layers = draw(st.integers(1, 3))
    numbers = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1.0, INFINITE]))
    rows = st.lists(numbers, min_size=8, max_size=8).filter(lambda r: min(r) < INFINITE)
    costs = draw(st.lists(rows, min_size=layers, max_size=layers))
    counts = draw(st.lists(st.integers(0, 30), min_size=layers, max_size=layers))
    return costs, counts, draw(st.integers(0, 9 * sum(counts)))


def brute(costs, counts, budget):
    """The least cost of all choices; a layer without weights has its smallest width."""
    choices = []
    for row, count in zip(costs, counts, strict=True):
        allowed = [b for b, cost in enumerate(row, 1) if cost < INFINITE]
        choices.append(allowed if count else allowed[:1])
    best = INFINITE
    for bits in itertools.product(*choices):
        if sum(b * n for b, n in zip(bits, counts, strict=True)) <= budget:
            best = min(best, sum(row[b - 1] for row, b in zip(costs, bits, strict=True)))
    return best


@settings(max_examples=40)
@given(problem=tables())
def test_exact_is_the_best_of_all_choices(problem):
    costs, counts, budget = problem
    expected = brute(*problem)
    arguments = (torch.tensor(costs, dtype=torch.float64), torch.tensor(counts), budget)
    if expected == INFINITE:
        with pytest.raises(InfeasibleBudget) as caught:
            allocate_bits(*arguments)
        assert caught.value.tightest > budget == caught.value.asked
        assert brute(costs, counts, int(caught.value.tightest)) < INFINITE
        return
    for exact in (True, False):
        found = allocate_bits(*arguments, exact=exact)
        assert found.size == sum(b * n for b, n in zip(found.bits, counts, strict=True)) <= budget
        assert found.cost == sum(row[b - 1] for row, b in zip(costs, found.bits, strict=True))
        assert found.lower_bound <= expected + 1e-9
        assert found.cost >= expected - 1e-9
        if exact:
            assert found.exact
        if found.exact:
            assert found.cost == pytest.approx(expected, abs=1e-9)
            assert found.gap == 0.0


@pytest.mark.parametrize("case", range(12))
def test_oracle_of_allocations(case):
    case = oracle("mckp")[case]
    costs = torch.tensor(case["cost"], dtype=torch.float64)
    arguments = (costs, torch.tensor(case["nnz"]), case["budget"])
    found = allocate_bits(*arguments)
    assert found.exact
    assert found.cost == pytest.approx(case["exact_cost"], rel=1e-9)
    assert found.size <= case["budget"]
    greedy = allocate_bits(*arguments, exact=False)
    assert found.cost <= greedy.cost <= case["authors_cost"] + 1e-12


@pytest.mark.parametrize("case", range(3))
def test_oracle_of_quantizing_sparse_layers(case):
    case = oracle("v_projection")[case]
    layers = [float32s(layer) for layer in case["layers"]]
    costs = torch.stack([codebook_costs(layer) for layer in layers])
    found = allocate_bits(costs, torch.tensor(case["nnz"]), case["budget"])
    assert found.cost == pytest.approx(case["exact_sse"], rel=1e-6)
    assert found.cost <= case["authors_sse"]
    assert found.size <= case["budget"]


def test_costs_of_very_different_magnitude():
    # In float32, shifted by the largest error, the second layer loses all resolution.
    large = [4e4 * 4.0**-b for b in range(8)]
    small = [4e-3 * 4.0**-b for b in range(8)]
    costs = torch.tensor([large, small], dtype=torch.float64)
    before = costs.clone()
    counts = torch.tensor([10, 10])
    assert allocate_bits(costs, counts, 160).bits == [8, 8]
    for budget in range(20, 160, 10):
        found = allocate_bits(costs, counts, budget)
        assert found.exact
        assert found.bits == [min(budget // 10 - 1, 8), max(1, budget // 10 - 8)]
    assert torch.equal(costs, before)


def test_relabelling_layers_relabels_the_result():
    generator = np.random.default_rng(0)
    costs = torch.from_numpy(np.sort(generator.random((5, 8)), axis=1)[:, ::-1].copy())
    counts = torch.tensor([3, 50, 7, 21, 13])
    order = torch.tensor([3, 1, 4, 0, 2])
    found = allocate_bits(costs, counts, 300)
    other = allocate_bits(costs[order], counts[order], 300)
    assert other.bits == [found.bits[i] for i in order]


def realistic(seed, layers=60):
    """Costs that fall about fourfold with every bit, of layers of very different sizes."""
    generator = np.random.default_rng(seed)
    counts = (10 ** generator.uniform(2, 6.3, size=layers)).astype(np.int64)
    energy = counts * 10 ** generator.uniform(-4, -1, size=layers)
    noise = generator.uniform(0.8, 1.2, (layers, 8))
    costs = np.minimum.accumulate(energy[:, None] * 4.0 ** -np.arange(1, 9) * noise, axis=1)
    return torch.from_numpy(costs), torch.from_numpy(counts)


@pytest.mark.spread(2)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [2.1, 3.3, 6.0])
def test_sixty_layers_are_exact(seed, width):
    costs, counts = realistic(seed)
    budget = int(int(counts.sum()) * width)
    found = allocate_bits(costs, counts, budget)
    greedy = allocate_bits(costs, counts, budget, exact=False)
    assert found.exact
    assert found.size <= budget
    assert greedy.lower_bound <= found.cost <= greedy.cost <= 1.1 * found.cost


def test_sixty_layers_with_one_ratio_of_cost_and_size():
    """Every choice is on the bound: a sum of subsets, filled to the last bit."""
    counts = torch.from_numpy(np.random.default_rng(5).integers(1000, 2_000_000, size=60))
    costs = (9.0 - torch.arange(1, 9)) * counts[:, None]
    budget = int(int(counts.sum()) * 3.37)
    found = allocate_bits(costs, counts, budget)
    assert found.size == budget
    assert found.exact
    assert found.cost == float(9 * int(counts.sum()) - budget)


def test_too_many_partial_choices_are_admitted(monkeypatch):
    costs, counts = realistic(0)
    budget = int(int(counts.sum()) * 3.3)
    exact = allocate_bits(costs, counts, budget)
    monkeypatch.setattr(choice, "_MOST", 50)
    monkeypatch.setattr(choice, "_THIN", 20)
    found = allocate_bits(costs, counts, budget)
    assert not found.exact
    assert found.size <= budget
    assert found.lower_bound < exact.cost <= found.cost
    assert found.gap > 0


def test_many_options_a_group():
    generator = np.random.default_rng(3)
    groups = []
    for _ in range(3):
        size = np.arange(12, dtype=np.int64) * int(generator.integers(1, 9))
        groups.append(Group.of(size, generator.random(12)))
    capacity = 60
    found = choose(groups, capacity)
    best = INFINITE
    for places in itertools.product(*(range(len(g.size)) for g in groups)):
        if sum(int(g.size[p]) for g, p in zip(groups, places, strict=True)) <= capacity:
            best = min(best, sum(float(g.cost[p]) for g, p in zip(groups, places, strict=True)))
    assert found.exact
    assert found.cost == pytest.approx(best, abs=1e-12)


def test_layers_without_weights_have_their_smallest_allowed_width():
    costs = torch.tensor([[0.0] * 8, [INFINITE, INFINITE, *[0.0] * 6], [1.0] * 4 + [0.5] * 4])
    found = allocate_bits(costs, torch.tensor([0, 0, 2]), 100)
    assert found.bits == [1, 3, 5]
    assert found.size == 10


def test_no_layers():
    found = allocate_bits(torch.empty(0, 8), torch.empty(0, dtype=torch.int64), 0)
    assert (found.bits, found.cost, found.size, found.exact) == ([], 0.0, 0, True)


@pytest.mark.parametrize(
    ("costs", "counts", "budget", "words"),
    [
        (torch.ones(2, 7), torch.ones(2, dtype=torch.int64), 99, "shape"),
        (torch.ones(2, 8), torch.ones(3, dtype=torch.int64), 99, "shape"),
        (torch.ones(8), torch.ones(1, dtype=torch.int64), 99, "shape"),
        (torch.full((1, 8), math.nan), torch.tensor([1]), 99, "NaN"),
        (torch.full((1, 8), -math.inf), torch.tensor([1]), 99, "minus infinity"),
        (torch.full((1, 8), math.inf), torch.tensor([1]), 99, "no width is allowed for layer 0"),
        (torch.ones(1, 8), torch.tensor([-1]), 99, "negative"),
        (torch.ones(1, 8), torch.tensor([1.0]), 99, "no integers"),
        (torch.ones(1, 8), torch.tensor([1]), 9.5, "whole number"),
    ],
)
def test_bad_tables_are_refused(costs, counts, budget, words):
    with pytest.raises(ArgumentError, match=words):
        allocate_bits(costs, counts, budget)


def test_an_infeasible_budget_names_the_tightest():
    costs = torch.ones(2, 8)
    costs[1, :2] = INFINITE
    with pytest.raises(InfeasibleBudget) as caught:
        allocate_bits(costs, torch.tensor([5, 7]), 25)
    assert (caught.value.tightest, caught.value.binding_layer) == (26, "1")
    assert allocate_bits(costs, torch.tensor([5, 7]), 26).bits == [1, 3]
