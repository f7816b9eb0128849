"""The projection with whole channels: feasible, nested, and optimal for what it costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.projection.channels import _kept, project_channels


def cost_of(kept, prices, openings):
    entries = sum(int(p[k].sum()) for k, p in zip(kept, prices, strict=True))
    opened = (k.reshape(len(k), -1).any(axis=1) for k in kept)
    return entries + sum(int(o[k].sum()) for k, o in zip(opened, openings, strict=True))


def value_of(kept, values):
    return sum(float(v[k].sum()) for k, v in zip(kept, values, strict=True))


@st.composite
def problems(draw):
    shapes = draw(
        st.sampled_from([[(2, 2)], [(3, 2)], [(2, 2), (2, 1)], [(2, 1, 2), (1, 3)], [(4, 2)]])
    )
    number = st.integers(0, 12).map(float)
    values, prices, openings = [], [], []
    for shape in shapes:
        size = int(np.prod(shape))
        values.append(np.array([draw(number) for _ in range(size)]).reshape(shape))
        prices.append(
            np.array([draw(st.integers(1, 6)) for _ in range(size)], dtype=np.int64).reshape(shape)
        )
        opening = draw(st.sampled_from([0, 0, 3, 9]))
        openings.append(np.full(shape[0], opening, dtype=np.int64))
    most = cost_of([np.ones_like(v, dtype=bool) for v in values], prices, openings)
    return values, prices, openings, draw(st.integers(0, most + 3))


def best_within(values, prices, openings, capacity):
    sizes = [v.size for v in values]
    best = 0.0
    for bits in itertools.product((False, True), repeat=sum(sizes)):
        flat = np.array(bits)
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        kept = [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]
        if cost_of(kept, prices, openings) <= capacity:
            best = max(best, value_of(kept, values))
    return best


@settings(max_examples=60)
@given(problems())
def test_it_is_feasible_and_close_to_the_optimum(problem):
    values, prices, openings, capacity = problem
    kept = project_channels(values, prices, openings, capacity)
    assert cost_of(kept, prices, openings) <= capacity
    assert all(not k[v == 0].any() for k, v in zip(kept, values, strict=True))
    assert value_of(kept, values) <= best_within(values, prices, openings, capacity) + 1e-9


@settings(max_examples=60)
@given(problems(), st.floats(0.01, 8))
def test_a_threshold_is_optimal_for_what_it_costs(problem, threshold):
    values, prices, openings, _ = problem
    kept = _kept(values, prices, openings, threshold)
    spent = cost_of(kept, prices, openings)
    assert value_of(kept, values) == pytest.approx(best_within(values, prices, openings, spent))
    # The result for that capacity is at least as good.
    found = project_channels(values, prices, openings, spent)
    assert value_of(found, values) >= value_of(kept, values) - 1e-9


@settings(max_examples=60)
@given(problems())
def test_all_that_is_worth_something_is_kept_when_it_fits(problem):
    values, prices, openings, _ = problem
    capacity = cost_of([v > 0 for v in values], prices, openings)
    kept = project_channels(values, prices, openings, capacity)
    assert all((k == (v > 0)).all() for k, v in zip(kept, values, strict=True))


@settings(max_examples=60)
@given(problems())
def test_nothing_is_kept_for_nothing(problem):
    values, prices, openings, _ = problem
    assert not any(k.any() for k in project_channels(values, prices, openings, 0))


def test_a_channel_goes_whose_entries_are_not_worth_its_own_price():
    values = [np.array([[3.0, 3.0], [2.0, 2.0]])]
    prices = [np.ones((2, 2), dtype=np.int64)]
    alone = [np.zeros(2, dtype=np.int64)]
    charged = [np.full(2, 5, dtype=np.int64)]
    # Without a price of their own, the three best entries; with one, a channel after the other.
    np.testing.assert_array_equal(
        project_channels(values, prices, alone, 3)[0], [[True, True], [True, False]]
    )
    np.testing.assert_array_equal(
        project_channels(values, prices, charged, 12)[0], [[True, True], [False, False]]
    )


def test_without_channel_prices_it_is_the_plain_projection():
    torch = pytest.importorskip("torch")
    from passes.projection.inputs import project_inputs

    generator = np.random.default_rng(0)
    values = [generator.random((3, 4)) + 0.1, generator.random((2, 5)) + 0.1]
    prices = [generator.integers(1, 9, v.shape) for v in values]
    openings = [np.zeros(len(v), dtype=np.int64) for v in values]
    for capacity in range(0, 110, 7):
        plain = project_inputs([torch.tensor(v**0.5) for v in values], prices, capacity).keep
        kept = project_channels(values, prices, openings, capacity)
        assert all(np.array_equal(p.numpy(), k) for p, k in zip(plain, kept, strict=True))
