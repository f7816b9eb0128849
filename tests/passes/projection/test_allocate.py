from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_projection import (
    TABLE_LADDERS,
    TABLE_WEIGHTS,
    best_by_counts,
    best_by_supports,
    fits,
    kept_value,
    knapsacks,
    lenet_like_ladders,
    masks_of,
    project,
    sort_projection,
)

from energy_model.errors import PreconditionError
from passes.projection.allocate import allocate
from passes.projection.ladder import build_ladder

WEIGHTS = [torch.tensor(values, dtype=torch.float64) for values in TABLE_WEIGHTS]
MANY = settings(max_examples=200)


@pytest.mark.parametrize(
    ("capacity", "optimum", "value", "counts", "gap"),
    [
        (20, 1.81, 1.81, (2, 0), 0),
        (24, 1.85, 1.81, (2, 0), 0.28),
        (30, 2.30, 2.30, (2, 1), 0.1542857142857143),
        (40, 2.66, 2.66, (2, 2), 0.24),
        (45, 2.94, 2.66, (2, 2), 0.44),
        (50, 3.30, 3.30, (3, 2), 0),
        (66, 3.59, 3.59, (3, 4), 0.01125),
        (80, 3.68, 3.68, (4, 4), 0),
    ],
)
def test_published_table(capacity, optimum, value, counts, gap):
    result = allocate(WEIGHTS, TABLE_LADDERS, [capacity])
    assert result.counts == counts
    assert result.gap == pytest.approx(gap, abs=1e-12)
    assert kept_value(WEIGHTS, counts) == pytest.approx(value)
    assert best_by_counts(WEIGHTS, TABLE_LADDERS, [capacity]) == pytest.approx(optimum)
    assert best_by_supports(WEIGHTS, TABLE_LADDERS, [capacity]) == pytest.approx(optimum)


def test_what_an_allocation_says_of_itself():
    result = allocate(WEIGHTS, TABLE_LADDERS, [45])
    assert (result.used, result.capacities, result.residual) == ((34,), (45,), (11,))
    assert result.next_charges == (16,)
    assert not result.exact
    full = allocate(WEIGHTS, TABLE_LADDERS, [1000])
    assert (full.counts, full.used, full.next_charges) == ((4, 4), (80,), None)
    assert full.exact


@pytest.mark.slow
@MANY
@given(problem=knapsacks())
def test_gap_holds_against_every_support(problem):
    result = allocate(problem.weights, problem.ladders, problem.capacities)
    value = kept_value(problem.weights, result.counts)
    best = best_by_supports(problem.weights, problem.ladders, problem.capacities)
    assert best == pytest.approx(
        best_by_counts(problem.weights, problem.ladders, problem.capacities)
    )
    assert fits(problem.ladders, result.counts, problem.capacities)
    assert value <= best + 1e-12
    assert best - value <= result.gap + 1e-12


@pytest.mark.slow
@MANY
@given(problem=knapsacks())
def test_gap_is_below_the_square_of_the_next_weight(problem):
    result = allocate(problem.weights, problem.ladders, problem.capacities)
    if result.next_charges is None:
        assert result.gap == 0
        return
    assert result.residual[0] < result.next_charges[0]
    left = [
        w.reshape(-1)[~m.reshape(-1)]
        for w, m in zip(problem.weights, masks_of(problem.weights, result), strict=True)
    ]
    assert result.gap < max(float(rest.abs().max()) for rest in left if rest.numel()) ** 2


@pytest.mark.slow
@MANY
@given(problem=knapsacks(force=True))
def test_forced_weights_are_kept_and_the_gap_is_relative_to_them(problem):
    result = allocate(problem.weights, problem.ladders, problem.capacities)
    assert all(n >= least for n, least in zip(result.counts, problem.forced, strict=True))
    best = best_by_counts(problem.weights, problem.ladders, problem.capacities, problem.forced)
    value = kept_value(problem.weights, result.counts)
    assert fits(problem.ladders, result.counts, problem.capacities)
    assert best - value <= result.gap + 1e-12


@pytest.mark.slow
@MANY
@given(problem=knapsacks(limits=2))
def test_two_limits_hold_and_so_does_the_gap(problem):
    result = allocate(problem.weights, problem.ladders, problem.capacities)
    assert fits(problem.ladders, result.counts, problem.capacities)
    value = kept_value(problem.weights, result.counts)
    best = best_by_supports(problem.weights, problem.ladders, problem.capacities)
    assert value <= best + 1e-12
    assert best - value <= result.gap + 1e-12


@pytest.mark.slow
@MANY
@given(problem=knapsacks(limits=2, force=True))
def test_two_limits_with_forced_weights(problem):
    result = allocate(problem.weights, problem.ladders, problem.capacities)
    expected = sort_projection(problem.weights, problem.ladders, problem.capacities)
    assert result.counts == expected.counts
    best = best_by_counts(problem.weights, problem.ladders, problem.capacities, problem.forced)
    assert best - kept_value(problem.weights, result.counts) <= result.gap + 1e-12


@pytest.mark.slow
@MANY
@given(problem=knapsacks(largest=30), order=st.sampled_from(["ratio", "magnitude"]))
def test_equals_a_full_sort(problem, order):
    result = allocate(problem.weights, problem.ladders, problem.capacities, order=order)
    expected = sort_projection(problem.weights, problem.ladders, problem.capacities, order)
    assert result.counts == expected.counts
    assert result.next_charges == expected.next_charges
    if order == "magnitude":
        assert result.gap is None
        assert not result.exact
    else:
        assert result.gap == pytest.approx(expected.gap, abs=1e-12)


@pytest.mark.slow
@MANY
@given(problem=knapsacks())
def test_projecting_twice_changes_no_bit(problem):
    once = project(problem.weights, allocate(problem.weights, problem.ladders, problem.capacities))
    again = allocate(once, problem.ladders, problem.capacities)
    assert again.gap == 0
    for first, second in zip(once, project(once, again), strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
@MANY
@given(problem=knapsacks(largest=20), less=st.integers(0, 60))
def test_supports_are_nested_in_the_capacity(problem, less):
    [capacity] = problem.capacities
    large = allocate(problem.weights, problem.ladders, [capacity])
    small = allocate(problem.weights, problem.ladders, [max(0, capacity - less)])
    pairs = zip(masks_of(problem.weights, small), masks_of(problem.weights, large), strict=True)
    assert all(bool((inner <= outer).all()) for inner, outer in pairs)


def _normal(sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=dtype) for n in sizes]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.77])
def test_does_not_depend_on_the_order_of_layers(share):
    sizes = (37, 40, 41, 500)
    weights, ladders = _normal(sizes), lenet_like_ladders(sizes)
    capacity = [int(share * sum(x.used(n)[0] for x, n in zip(ladders, sizes, strict=True)))]
    expected = allocate(weights, ladders, capacity)
    order = [2, 0, 3, 1]
    turned = allocate([weights[i] for i in order], [ladders[i] for i in order], capacity)
    assert turned.counts == tuple(expected.counts[i] for i in order)
    assert (turned.used, turned.gap) == (expected.used, expected.gap)


@pytest.mark.parametrize("scale", [2.0**-40, 0.37, -1.0, -(2.0**20)])
def test_does_not_depend_on_scale_or_sign(scale):
    sizes = (37, 40, 41, 500)
    weights, ladders = _normal(sizes), lenet_like_ladders(sizes)
    expected = allocate(weights, ladders, [300_000])
    scaled = allocate([w * scale for w in weights], ladders, [300_000])
    assert scaled.counts == expected.counts
    assert scaled.gap == pytest.approx(expected.gap * scale**2)


def test_equal_costs_are_global_and_one_layer_is_local_top_k():
    weights = _normal((50, 80))
    ladders = [build_ladder(n, [(n, (3,))]) for n in (50, 80)]
    both = torch.cat(weights).abs()
    limit = both.sort(descending=True).values[59]
    result = allocate(weights, ladders, [3 * 60 + 2])
    assert result.counts == tuple(int((w.abs() >= limit).sum()) for w in weights)
    assert allocate(weights[:1], ladders[:1], [3 * 7]).counts == (7,)


def test_ties_go_to_the_first_layer_and_the_first_index():
    weights = [torch.full((5,), 0.5), torch.tensor([-0.5, 0.5, 0.5])]
    ladders = [build_ladder(n, [(n, (2,))]) for n in (5, 3)]
    assert allocate(weights, ladders, [13]).counts == (5, 1)
    assert masks_of(weights, allocate(weights, ladders, [13]))[1].tolist() == [True, False, False]
    assert (
        masks_of(weights, allocate(weights, ladders, [6]))[0].tolist() == [True] * 3 + [False] * 2
    )


@pytest.mark.parametrize("size", [39, 40, 41])
@pytest.mark.parametrize("capacity", [0, 1, 9, 10, 399, 400, 401, 415, 416, 417, 10_000])
def test_layers_around_the_capacity_of_the_cache(size, capacity):
    weights = _normal((size, 30))
    ladders = [
        build_ladder(size, [(40, (10,)), (size, (16,))]),
        build_ladder(30, [(40, (10,)), (30, (16,))]),
    ]
    result = allocate(weights, ladders, [capacity])
    expected = sort_projection(weights, ladders, [capacity])
    assert (result.counts, result.next_charges) == (expected.counts, expected.next_charges)
    assert result.gap == pytest.approx(expected.gap)


@pytest.mark.parametrize("forced", [(0, 0), (39, 1), (40, 2), (41, 0), (60, 30)])
def test_forced_weights_around_the_capacity_of_the_cache(forced):
    weights = _normal((60, 30))
    ladders = [
        build_ladder(n, [(40, (10,)), (n, (16,))], forced=least)
        for n, least in zip((60, 30), forced, strict=True)
    ]
    needed = sum(ladder.used(n)[0] for ladder, n in zip(ladders, forced, strict=True))
    for spare in (0, 9, 10, 26, 100):
        result = allocate(weights, ladders, [needed + spare])
        assert result.counts == sort_projection(weights, ladders, [needed + spare]).counts
        assert all(n >= least for n, least in zip(result.counts, forced, strict=True))


def test_nothing_fits():
    result = allocate(WEIGHTS, TABLE_LADDERS, [0])
    assert (result.counts, result.used, result.gap) == ((0, 0), (0,), 0)
    result = allocate(WEIGHTS, TABLE_LADDERS, [6])
    assert (result.counts, result.residual) == ((0, 0), (6,))
    assert result.gap == pytest.approx(1.0 / 10 * 6)


def test_zeros_are_never_counted():
    weights = [torch.tensor([0.0, 1.0, -0.0, 2.0]), torch.zeros(3)]
    ladders = [build_ladder(n, [(n, (5,))]) for n in (4, 3)]
    assert allocate(weights, ladders, [100]).counts == (2, 0)
    assert allocate(weights, ladders, [5]).counts == (1, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_that_are_not_finite_are_refused(bad, dtype):
    weights = [torch.ones(4, dtype=dtype), torch.tensor([1.0, bad, 2.0], dtype=dtype)]
    ladders = [build_ladder(n, [(n, (5,))]) for n in (4, 3)]
    with pytest.raises(PreconditionError, match="1 of 3 weights are NaN"):
        allocate(weights, ladders, [10])


def test_weights_are_only_read():
    weights = [torch.nn.Parameter(w.float().view(2, -1)) for w in _normal((40, 60))]
    copies = [w.detach().clone() for w in weights]
    versions = [w._version for w in weights]
    masks_of(weights, allocate(weights, lenet_like_ladders((40, 60)), [20_000]))
    assert all(torch.equal(w, copy) for w, copy in zip(weights, copies, strict=True))
    assert [w._version for w in weights] == versions


def test_of_zeros_nothing_is_kept_and_nothing_is_missing():
    ladders = [build_ladder(n, [(n, (5,))]) for n in (3, 2)]
    result = allocate([torch.zeros(3), torch.zeros(2)], ladders, [10])
    assert (result.counts, result.used) == ((0, 0), (0,))
    assert (result.gap, result.next_charges) == (0.0, None)
