"""Paired tests against textbook values and brute force."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import (
    binomial_two_sided,
    incomplete_beta,
    mcnemar,
    paired_t,
    sign_test,
    t_two_sided,
)
from energy_model.errors import ArgumentError

# Two-sided 5 %, 1 % and 0.1 % points of Student's distribution, as printed in tables.
CRITICAL = [
    (1, 12.7062, 0.05),
    (2, 4.30265, 0.05),
    (4, 2.77645, 0.05),
    (4, 4.60409, 0.01),
    (4, 8.61030, 0.001),
    (9, 2.26216, 0.05),
    (30, 2.75000, 0.01),
    (1000, 1.96234, 0.05),
]


@pytest.mark.parametrize(("freedom", "t", "p"), CRITICAL)
def test_tabulated_points_of_students_distribution(freedom, t, p):
    assert t_two_sided(t, freedom) == pytest.approx(p, rel=1e-4)
    assert t_two_sided(-t, freedom) == t_two_sided(t, freedom)


def test_one_degree_of_freedom_is_cauchys_distribution():
    for t in (0.0, 0.1, 1.0, 3.0, 50.0, 1e4):
        assert t_two_sided(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-13)


def test_two_degrees_of_freedom_have_a_closed_form():
    for t in (0.0, 0.5, 2.0, 20.0):
        assert t_two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-13)


def test_the_sleep_data_of_student_1908():
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = paired_t(first, second)
    assert test.difference == pytest.approx(-1.58)
    assert test.statistic == pytest.approx(-4.0621, abs=1e-4)
    assert test.p == pytest.approx(0.002833, abs=1e-6)
    assert test.pairs == 10


@pytest.mark.slow
def test_the_p_value_is_what_simulation_gives():
    generator = random.Random(0)
    observed, hits, rounds = 1.7, 0, 20_000
    for _ in range(rounds):
        sample = [generator.gauss(0, 1) for _ in range(5)]
        t = statistics.fmean(sample) / (statistics.stdev(sample) / math.sqrt(5))
        hits += abs(t) >= observed
    assert hits / rounds == pytest.approx(t_two_sided(observed, 4), abs=0.01)


# Nearer to an end, 1 - x has lost the digits of x before the function is called.
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 50), st.floats(0.1, 50))
def test_incomplete_beta_is_symmetric_and_a_probability(x, a, b):
    value = incomplete_beta(x, a, b)
    assert -1e-12 <= value <= 1 + 1e-12
    assert value + incomplete_beta(1 - x, b, a) == pytest.approx(1, abs=1e-9)


@given(st.floats(0, 1), st.integers(1, 8), st.integers(1, 8))
def test_incomplete_beta_of_integers_is_a_binomial_tail(x, a, b):
    n = a + b - 1
    tail = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert incomplete_beta(x, a, b) == pytest.approx(tail, abs=1e-10)


def test_equal_differences_are_certain_either_way():
    assert paired_t([0.9, 0.8], [0.9, 0.8]) == paired_t([1.0, 1.0], [1.0, 1.0])
    assert paired_t([0.9, 0.8], [0.9, 0.8]).p == 1
    test = paired_t([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])
    assert (test.p, test.statistic) == (0, math.inf)


def test_binomial_by_brute_force():
    for trials in range(9):
        outcomes = [sum(flips) for flips in itertools.product((0, 1), repeat=trials)]
        for count in range(trials + 1):
            uneven = abs(2 * count - trials)
            share = sum(abs(2 * heads - trials) >= uneven for heads in outcomes) / len(outcomes)
            assert binomial_two_sided(count, trials) == pytest.approx(share)


def test_sign_test_leaves_ties_out():
    assert sign_test([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]) == 2 / 32
    assert sign_test([1, 2, 3], [1, 2, 4]) == 1
    assert sign_test([1, 2], [1, 2]) == 1


def test_mcnemar_of_a_textbook_table():
    assert mcnemar(10, 0) == 2 / 1024
    assert mcnemar(4, 4) == 1
    with pytest.raises(ArgumentError, match="negative"):
        mcnemar(-1, 2)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1], [2], "no two or more pairs"),
        ([1, 2], [2], "no two or more pairs"),
        ([1, math.nan], [1, 2], "not finite"),
    ],
)
@pytest.mark.parametrize("test", [paired_t, sign_test])
def test_bad_samples_are_refused(test, first, second, message):
    with pytest.raises(ArgumentError, match=message):
        test(first, second)
