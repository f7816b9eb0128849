from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.dynamic.controller import bang_bang, proportional

WANTED = st.integers(200, 30_000)
OFF = st.floats(-10, 10)  # log2 of the goal over the start: 1e-3 to 1e3


def run(rule, count, threshold, wanted, events):
    """Counts found at each event, and the last threshold."""
    found = []
    for _ in range(events):
        found.append(count(threshold))
        threshold = rule(threshold, found[-1], wanted)
    return found, threshold


def linear(wanted, off, most=10**9):
    """A linear model that reaches `wanted` at 2^off times the first threshold 1e-3."""
    slope = wanted / (1e-3 * 2**off)
    return lambda threshold: min(most, round(slope * threshold))


def half_normal(threshold):
    """Of 145,139 half-normal weights with sigma 0.05."""
    return round(145_139 * math.erf(threshold / 0.05 / math.sqrt(2)))


@settings(max_examples=60)
@given(wanted=WANTED, off=OFF)
@example(wanted=20_000, off=10.0)
@example(wanted=20_000, off=-10.0)
def test_bang_bang_comes_and_stays_within_a_factor_of_two(wanted, off):
    start = math.ceil(abs(off)) + 2
    found, _ = run(bang_bang, linear(wanted, off), 1e-3, wanted, start + 50)
    assert all(wanted / 2 <= n <= 2 * wanted for n in found[start:])


@pytest.mark.parametrize(
    ("wanted", "cycle"),
    [(14_000, {9_254, 18_450}), (20_000, {18_450}), (24_000, {18_450, 36_434})],
)
def test_bang_bang_cycles_between_two_counts_in_the_gap(wanted, cycle):
    found, _ = run(bang_bang, half_normal, 1e-3, wanted, 60)
    assert set(found[20:]) == cycle
    if len(cycle) == 2:
        assert all(a != b for a, b in pairwise(found[20:]))


def test_bang_bang_rests_for_29_percent_of_the_goals():
    goals = range(10_000, 20_000, 20)
    rests = 0
    for wanted in goals:
        found, _ = run(bang_bang, lambda h: round(1e7 * h), 1e-3, wanted, 12)
        rests += found[-1] == found[-2]
    # The thresholds reach 10,000 and 20,000 exactly; goals here are even, not their logarithms.
    inside = sum(w * 0.9 <= n <= w * 1.1 for w in goals for n in (10_000, 20_000))
    assert rests == inside
    assert 0.25 < rests / len(goals) < 0.33


@settings(max_examples=60)
@given(wanted=WANTED, off=OFF)
@example(wanted=14_000, off=math.log2(1e3))
@example(wanted=14_000, off=-math.log2(1e3))
def test_proportional_converges_where_bang_bang_cycles(wanted, off):
    start = math.ceil(abs(off)) + 3
    found, last = run(proportional, linear(wanted, off, most=8 * wanted), 1e-3, wanted, start + 20)
    assert all(abs(n - wanted) <= 0.05 * wanted for n in found[start:])
    assert found[-1] == found[-2] and proportional(last, found[-1], wanted) == last


@pytest.mark.parametrize("wanted", range(14_000, 28_001, 1_000))
def test_proportional_is_within_two_percent_on_half_normal_weights(wanted):
    found, _ = run(proportional, half_normal, 1e-3, wanted, 20)
    assert abs(found[-1] - wanted) <= 0.02 * wanted


def test_the_rules_at_the_edges_of_their_windows():
    assert [bang_bang(1.0, n, 100) for n in (89, 90, 110, 111)] == [2.0, 1.0, 1.0, 0.5]
    assert [bang_bang(1.0, n, 100, 0.5, 3.0) for n in (49, 50, 150, 151)] == [3, 1, 1, 1 / 3]
    assert [proportional(1.0, n, 100) for n in (97, 98, 102, 103)] == [100 / 97, 1, 1, 100 / 103]
    assert [proportional(1.0, n, 100) for n in (0, 1, 49, 300)] == [2.0, 2.0, 2.0, 0.5]
    assert proportional(1.0, 0, 1) == 2.0  # a ratio of 1 / max(0, 1) would stay for ever
    for rule in (bang_bang, proportional):
        assert [rule(1.0, n, 0) for n in (0, 1)] == [1.0, 0.5]


@pytest.mark.parametrize("rule", [bang_bang, proportional])
def test_thresholds_stay_positive_and_finite_and_find_back(rule):
    for found, wanted, back in ((10**6, 1, (0, 10**6)), (0, 1, (10**6, 1))):
        threshold = 1.0
        for _ in range(3_000):
            threshold = rule(threshold, found, wanted)
        assert 0 < threshold < math.inf
        assert rule(threshold, *back) != threshold


@pytest.mark.parametrize("rule", [bang_bang, proportional])
@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 1, 1),
        (math.nan, 1, 1),
        (math.inf, 1, 1),
        (1.0, -1, 1),
        (1.0, 1, -1),
        (1.0, 1.5, 1),
        (1.0, 1, 1, -0.1),
        (1.0, 1, 1, 1.0),
        (1.0, 1, 1, math.nan),
    ],
)
def test_numbers_out_of_range_are_refused(rule, arguments):
    with pytest.raises(ArgumentError):
        rule(*arguments)


@pytest.mark.parametrize("factor", [1.0, 0.5, math.nan, math.inf])
def test_a_factor_that_does_not_move_is_refused(factor):
    with pytest.raises(ArgumentError, match="above 1"):
        bang_bang(1.0, 1, 1, factor=factor)
