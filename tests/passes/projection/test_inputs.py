"""Projection of input masks: against all subsets, plain top-k, and its own promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import PreconditionError
from passes.projection.inputs import KeptInputs, project_inputs

VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 1.0])


@st.composite
def problems(draw, most=12):
    sizes = draw(
        st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda s: sum(s) <= most)
    )
    masks = [torch.tensor(draw(st.lists(VALUES, min_size=n, max_size=n))) for n in sizes]
    price = st.integers(1, 9)
    prices = [
        np.array(draw(st.lists(price, min_size=n, max_size=n)), dtype=np.int64) for n in sizes
    ]
    return masks, prices, draw(st.integers(0, sum(int(p.sum()) for p in prices) + 2))


def value_of(masks, keep):
    return sum(float((m.double()[k] ** 2).sum()) for m, k in zip(masks, keep, strict=True))


def cost_of(prices, keep):
    return sum(int(p[k.numpy()].sum()) for p, k in zip(prices, keep, strict=True))


def best_of_all_subsets(masks, prices, capacity):
    values = torch.cat(masks).double().numpy() ** 2
    costs = np.concatenate(prices)
    choices = np.array(list(itertools.product([0, 1], repeat=len(values))))
    return float((choices @ values)[choices @ costs <= capacity].max())


def applied(masks, kept: KeptInputs):
    return [m.masked_fill(~k, 0.0) for m, k in zip(masks, kept.keep, strict=True)]


@pytest.mark.slow
@settings(max_examples=200)
@given(problem=problems())
def test_within_the_gap_of_the_optimum_and_never_above_the_capacity(problem):
    masks, prices, capacity = problem
    kept = project_inputs(masks, prices, capacity)
    assert kept.used == cost_of(prices, kept.keep) <= capacity
    best, reached = best_of_all_subsets(masks, prices, capacity), value_of(masks, kept.keep)
    assert kept.gap >= 0
    assert reached <= best + 1e-12
    assert best - reached <= kept.gap + 1e-9
    # The bound is useful: less than one entry.
    assert kept.gap <= max(float(m.max()) ** 2 for m in masks)


@pytest.mark.slow
@settings(max_examples=150)
@given(problem=problems(most=20))
def test_what_is_kept(problem):
    masks, prices, capacity = problem
    kept = project_inputs(masks, prices, capacity)
    for mask, keep in zip(masks, kept.keep, strict=True):
        assert keep.dtype == torch.bool
        assert keep.shape == mask.shape
        assert not keep[mask == 0].any(), "zeros cost, and give nothing"
    left = capacity - kept.used
    for mask, keep, price in zip(masks, kept.keep, prices, strict=True):
        missed = ~keep.numpy() & (mask.numpy() != 0)
        assert (price[missed] > left).all(), "something would still fit"


@settings(max_examples=150)
@given(problem=problems(most=20))
def test_idempotent(problem):
    masks, prices, capacity = problem
    once = project_inputs(masks, prices, capacity)
    again = project_inputs(applied(masks, once), prices, capacity)
    assert all(torch.equal(a, b) for a, b in zip(once.keep, again.keep, strict=True))
    assert (again.used, again.gap) == (once.used, 0.0)


@settings(max_examples=150)
@given(problem=problems(most=20), count=st.integers(0, 22))
def test_with_equal_prices_it_is_the_largest_magnitudes(problem, count):
    """The paper's projection onto a number of entries; ties go to the earlier entry."""
    masks, prices, _ = problem
    ones = [np.ones_like(price) for price in prices]
    kept = project_inputs(masks, ones, count)
    flat = torch.cat(masks).tolist()
    order = sorted((i for i, v in enumerate(flat) if v), key=lambda i: (-abs(flat[i]), i))
    expected = sorted(order[:count])
    assert torch.cat(kept.keep).nonzero().flatten().tolist() == expected
    assert kept.gap == 0


def test_by_hand():
    masks = [torch.tensor([[1.0, 0.9], [0.5, 0.2]]), torch.tensor([0.8])]
    prices = [np.array([[10, 5], [1, 1]]), np.array([2])]
    # By value per price: 0.8 (0.32), 0.5 (0.25), 0.9 (0.162), 1.0 (0.1), 0.2 (0.04).
    kept = project_inputs(masks, prices, 10)
    assert kept.keep[0].tolist() == [[False, True], [True, True]]
    assert kept.keep[1].tolist() == [True]
    assert kept.used == 9
    # The prefix costs 8; of the 2 that are left, 0.1 each at best, 0.04 are made by the last entry.
    assert kept.gap == pytest.approx(0.2 - 0.04)


def test_signs_do_not_matter_and_negative_zero_is_zero():
    masks = [torch.tensor([-1.0, 0.5, -0.0, -0.5])]
    kept = project_inputs(masks, [np.array([1, 1, 1, 1])], 2)
    assert kept.keep[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 4), (1, 2, 3, 2)])
@pytest.mark.parametrize("extra", [0, 1, 10**18])
def test_nothing_and_everything(shape, extra):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    price = np.full(shape, 7, dtype=np.int64)
    nothing = project_inputs([mask], [price], 6 if extra else 0)
    assert not nothing.keep[0].any()
    assert nothing.used == 0
    everything = project_inputs([mask], [price], 7 * mask.numel() + extra)
    assert everything.keep[0].all()
    assert everything.keep[0].shape == shape
    assert (everything.used, everything.gap) == (7 * mask.numel(), 0.0)


def test_all_zero_masks():
    kept = project_inputs([torch.zeros(3), torch.zeros(2)], [np.ones(3, int), np.ones(2, int)], 4)
    assert [k.tolist() for k in kept.keep] == [[False] * 3, [False] * 2]
    assert (kept.used, kept.gap) == (0, 0.0)


def test_the_masks_are_only_read():
    mask = torch.tensor([0.3, 0.2], requires_grad=True)
    price = np.array([3, 2])
    project_inputs([mask], [price], 2)
    assert mask.tolist() == pytest.approx([0.3, 0.2])
    assert price.tolist() == [3, 2]


def test_large_prices_do_not_overflow():
    masks = [torch.ones(4)]
    kept = project_inputs(masks, [np.full(4, 2**60, dtype=np.int64)], 2**61)
    assert kept.keep[0].tolist() == [True, True, False, False]
    assert kept.used == 2**61


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_masks_that_are_not_finite_are_refused(bad):
    masks = [torch.ones(3), torch.tensor([1.0, bad])]
    with pytest.raises(PreconditionError, match="not finite"):
        project_inputs(masks, [np.ones(3, int), np.ones(2, int)], 3)
