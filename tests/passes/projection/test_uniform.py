from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_projection import fits, knapsacks

from passes.projection.ladder import build_ladder
from passes.projection.uniform import allocate_uniform


def counts_at(share, sizes, minimums, nonzeros):
    rows = zip(sizes, minimums, nonzeros, strict=True)
    return tuple(min(max(int(share * n), least), most) for n, least, most in rows)


def best_share(problem, nonzeros):
    """Largest of all shares at which some layer gains a weight."""
    sizes = [ladder.size for ladder in problem.ladders]
    every = {Fraction(k, n) for n in sizes for k in range(n + 1)}
    found = [
        counts
        for share in sorted(every)
        if fits(
            problem.ladders,
            counts := counts_at(share, sizes, problem.forced, nonzeros),
            problem.capacities,
        )
    ]
    return found[-1]


@pytest.mark.slow
@settings(max_examples=200)
@given(problem=knapsacks(limits=2, largest=25, force=True))
def test_is_the_largest_share_that_fits(problem):
    nonzeros = [int((w != 0).sum()) for w in problem.weights]
    result = allocate_uniform(problem.ladders, nonzeros, problem.forced, problem.capacities)
    assert result.counts == best_share(problem, nonzeros)
    assert fits(problem.ladders, result.counts, problem.capacities)
    assert (result.gap, result.next_charges) == (None, None)
    used = [x.used(n) for x, n in zip(problem.ladders, result.counts, strict=True)]
    assert result.used == tuple(sum(column) for column in zip(*used, strict=True))


@given(first=st.integers(1, 10**6), second=st.integers(1, 10**6))
def test_one_more_step_does_not_fit(first, second):
    ladders = [build_ladder(n, [(n, (p,))]) for n, p in ((first, 3), (second, 7))]
    capacity = (3 * first + 7 * second) // 3
    result = allocate_uniform(ladders, (first, second), (0, 0), (capacity,))
    share = max(Fraction(n, size) for n, size in zip(result.counts, (first, second), strict=True))
    following = min(
        Fraction(n + 1, size) for n, size in zip(result.counts, (first, second), strict=True)
    )
    assert share < following
    assert result.counts == counts_at(share, (first, second), (0, 0), (first, second))
    more = counts_at(following, (first, second), (0, 0), (first, second))
    assert not fits(ladders, more, (capacity,))


def test_everything_fits():
    weights = torch.tensor([1.0, 0.0, 2.0])
    ladder = build_ladder(3, [(3, (5,))])
    result = allocate_uniform([ladder], [int((weights != 0).sum())], [1], [100])
    assert result.counts == (2,)
