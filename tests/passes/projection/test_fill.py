from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from reference_projection import (
    TABLE_LADDERS,
    TABLE_WEIGHTS,
    best_by_counts,
    fits,
    histograms_of,
    kept_value,
    knapsacks,
    project,
)

from passes.projection.allocate import allocate
from passes.projection.fill import fill
from passes.projection.ladder import build_ladder

WEIGHTS = [torch.tensor(values, dtype=torch.float64) for values in TABLE_WEIGHTS]
MANY = settings(max_examples=200)


def filled(weights, ladders, capacities, order="ratio"):
    histograms = histograms_of(weights)
    prefix = allocate(weights, ladders, capacities, order=order, histograms=histograms)
    return prefix, fill(prefix, weights, ladders, histograms, order)


@pytest.mark.parametrize(
    ("capacity", "value", "counts"),
    [
        (20, 1.81, (2, 0)),
        (24, 1.81, (2, 0)),
        (30, 2.30, (2, 1)),
        (40, 2.66, (2, 2)),
        (45, 2.91, (2, 3)),
        (50, 3.30, (3, 2)),
        (66, 3.59, (3, 4)),
        (80, 3.68, (4, 4)),
    ],
)
def test_published_table(capacity, value, counts):
    prefix, result = filled(WEIGHTS, TABLE_LADDERS, [capacity])
    assert result.counts == counts
    assert kept_value(WEIGHTS, result.counts) == pytest.approx(value)
    assert result.next_charges == prefix.next_charges
    # The certificate of the prefix, less what was added.
    added = value - kept_value(WEIGHTS, prefix.counts)
    assert result.gap == pytest.approx(prefix.gap - added, abs=1e-12)


@pytest.mark.slow
@MANY
@given(problem=knapsacks())
def test_never_worse_and_within_its_gap(problem):
    prefix, result = filled(problem.weights, problem.ladders, problem.capacities)
    pairs = list(zip(result.counts, prefix.counts, strict=True))
    assert all(after >= before for after, before in pairs)
    assert fits(problem.ladders, result.counts, problem.capacities)
    used = [x.used(n) for x, n in zip(problem.ladders, result.counts, strict=True)]
    assert result.used == tuple(sum(column) for column in zip(*used, strict=True))
    best = best_by_counts(problem.weights, problem.ladders, problem.capacities)
    assert best - kept_value(problem.weights, result.counts) <= result.gap + 1e-12
    assert result.gap <= prefix.gap


@pytest.mark.slow
@MANY
@given(problem=knapsacks(limits=2, force=True))
def test_two_limits_with_forced_weights(problem):
    prefix, result = filled(problem.weights, problem.ladders, problem.capacities)
    assert fits(problem.ladders, result.counts, problem.capacities)
    assert all(n >= least for n, least in zip(result.counts, problem.forced, strict=True))
    best = best_by_counts(problem.weights, problem.ladders, problem.capacities, problem.forced)
    assert best - kept_value(problem.weights, result.counts) <= result.gap + 1e-12
    assert result.gap <= prefix.gap


@pytest.mark.slow
@MANY
@given(problem=knapsacks(limits=2))
def test_nothing_that_fits_is_left(problem):
    _, result = filled(problem.weights, problem.ladders, problem.capacities)
    for ladder, weight, count in zip(problem.ladders, problem.weights, result.counts, strict=True):
        if count < int((weight != 0).sum()):
            charges = ladder.charges_at(count)
            assert any(c > r for c, r in zip(charges, result.residual, strict=True))


@pytest.mark.slow
@MANY
@given(problem=knapsacks())
def test_projecting_twice_changes_no_bit(problem):
    _, once = filled(problem.weights, problem.ladders, problem.capacities)
    projected = project(problem.weights, once)
    _, again = filled(projected, problem.ladders, problem.capacities)
    for first, second in zip(projected, project(projected, again), strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
@MANY
@given(problem=knapsacks())
def test_by_magnitude_it_claims_no_gap(problem):
    prefix, result = filled(problem.weights, problem.ladders, problem.capacities, "magnitude")
    assert (prefix.gap, result.gap) == (None, None)
    assert fits(problem.ladders, result.counts, problem.capacities)
    assert kept_value(problem.weights, result.counts) >= kept_value(problem.weights, prefix.counts)


def test_takes_the_better_of_two_that_fit_but_not_both():
    weights = [torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([1.2])]
    ladders = [build_ladder(1, [(1, (c,))]) for c in (10, 4, 5)]
    # Nothing but one of the two small ones fits: ratios 0.9, 0.25 and 0.288.
    _, result = filled(weights, ladders, [8])
    assert result.counts == (0, 0, 1)
    assert result.residual == (3,)
