"""The full-sort reference against plain greedy selection, and the projection against it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.speed.projection import project, same_kept
from bench.speed.reference import SortedWeights
from passes.projection.ladder import build_ladder

VALUES = (0.0, -0.0, 1.0, -1.0, 1.5, 2.0, -2.0, 3e-40, 0.1, 0.1000001)


def greedy(weights, ladders, capacities):
    """One weight after another, in pure Python: prefix, then whatever fits."""
    items = []  # (-ratio, layer, rank), flat index, charges
    for layer, (weight, ladder) in enumerate(zip(weights, ladders, strict=True)):
        flat = weight.reshape(-1).tolist()
        ranking = sorted((i for i, v in enumerate(flat) if v), key=lambda i: (-abs(flat[i]), i))
        for rank, index in enumerate(ranking):
            step = next(s for s in ladder.steps if rank < s.end)
            pairs = zip(step.charges, capacities, strict=True)
            price = step.charges[0]
            if len(capacities) > 1:
                price = sum(charge / max(capacity, 1) for charge, capacity in pairs)
            ratio = np.inf if step.forced else flat[index] ** 2 / price
            items.append(((-ratio, layer, rank), index, step.charges))
    masks = [torch.zeros(weight.numel(), dtype=torch.bool) for weight in weights]
    left = list(capacities)
    for (_, layer, _), index, charges in sorted(items):
        if all(charge <= rest for charge, rest in zip(charges, left, strict=True)):
            left = [rest - charge for charge, rest in zip(charges, left, strict=True)]
            masks[layer][index] = True
    return [mask.view(w.shape) for mask, w in zip(masks, weights, strict=True)]


@st.composite
def problems(draw):
    """Up to four small layers with ties and zeros, two prices each, and capacities."""
    width = draw(st.integers(1, 2))
    charge = st.tuples(*[st.integers(1, 9)] * width)
    weights, ladders = [], []
    for _ in range(draw(st.integers(1, 4))):
        values = st.sampled_from(VALUES) | st.floats(-4, 4, width=32)
        weights.append(torch.tensor(draw(st.lists(values, min_size=1, max_size=12))))
        size = weights[-1].numel()
        first, more = draw(charge), draw(charge)
        beyond = tuple(a + b for a, b in zip(first, more, strict=True))
        cut = draw(st.integers(0, size))
        forced = draw(st.integers(0, min(2, int(torch.count_nonzero(weights[-1])))))
        ladders.append(build_ladder(size, [(cut, first), (size, beyond)], forced))
    full = [ladder.used(ladder.size) for ladder in ladders]
    least = [
        ladder.used(max([s.end for s in ladder.steps if s.forced], default=0)) for ladder in ladders
    ]
    capacities = tuple(
        draw(st.integers(sum(low), sum(high)))
        for low, high in zip(zip(*least, strict=True), zip(*full, strict=True), strict=True)
    )
    return weights, ladders, capacities


@pytest.mark.slow
@given(problems())
def test_the_reference_is_greedy_selection(problem):
    weights, ladders, capacities = problem
    found = SortedWeights(weights).project(ladders, capacities)
    assert all(map(torch.equal, found, greedy(weights, ladders, capacities)))


@pytest.mark.slow
@given(problems())
def test_the_projection_keeps_what_the_reference_keeps(problem):
    weights, ladders, capacities = problem
    subject = SimpleNamespace(weights=weights, ladders=ladders, capacities=capacities)
    found = same_kept("x", project(subject), SortedWeights(weights).project(ladders, capacities))
    assert found.holds, found.detail


def test_the_fill_is_found_beyond_one_chunk():
    """A weight that fits lies far behind the first one that does not."""
    dear = torch.linspace(2, 1, 70_000)
    cheap = torch.full((3,), 1e-3)
    ladders = [build_ladder(70_000, [(70_000, (10,))]), build_ladder(3, [(3, (3,))])]
    masks = SortedWeights([dear, cheap]).project(ladders, (18,))
    assert masks[0].nonzero().tolist() == [[0]]
    assert masks[1].tolist() == [True, True, False]


def test_one_sort_serves_several_budgets():
    weights = [torch.tensor([[3.0, 1.0], [2.0, 0.0]])]
    ladders = [build_ladder(4, [(4, (1,))])]
    sorted_weights = SortedWeights(weights)
    kept = [sorted_weights.project(ladders, (k,))[0].int().tolist() for k in (0, 2, 4)]
    assert kept == [[[0, 0], [0, 0]], [[1, 0], [1, 0]], [[1, 1], [1, 0]]]


def test_a_single_different_weight_is_seen():
    mask = torch.tensor([True, False, True, False])
    moved = torch.tensor([True, True, False, False])
    assert same_kept("x", [mask], [mask]).holds
    different = same_kept("x", [mask], [moved])
    assert not different.holds
    assert different.detail == "2 of 4 weights kept, 2 differ"
