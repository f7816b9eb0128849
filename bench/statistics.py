"""Paired tests for small samples, without a statistics library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from energy_model.errors import ArgumentError

_TINY, _PRECISION, _ITERATIONS = 1e-300, 1e-15, 10_000


@dataclass(frozen=True, slots=True)
class Paired:
    """A two-sided paired test.

    Attributes:
        difference: Mean of first minus second.
        statistic: Student's t; infinite when every difference is the same and not 0.
        p: Probability of a difference at least as large if there were none.
        pairs: Number of pairs.
    """

    difference: float
    statistic: float
    p: float
    pairs: int


def paired_t(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Student's paired t test, two-sided (Student, "The probable error of a mean", 1908).

    Args:
        first: One value of each pair, e.g. a method's accuracy for each seed.
        second: The other values, in the same order.

    Returns:
        The test. Differences that are all 0 have p = 1, equal ones that are not 0 have p = 0.

    Raises:
        ArgumentError: Fewer than two pairs, unequal lengths, or a value that is not finite.
    """
    differences = _differences(first, second)
    count, mean = len(differences), statistics.fmean(differences)
    deviation = statistics.stdev(differences)
    # What rounding leaves of differences that are all the same is no spread.
    scale = max(abs(value) for value in (*first, *second))
    if deviation <= 4 * math.ulp(scale):
        if abs(mean) <= 4 * math.ulp(scale):
            return Paired(mean, 0.0, 1.0, count)
        return Paired(mean, math.copysign(math.inf, mean), 0.0, count)
    t = mean / (deviation / math.sqrt(count))
    return Paired(mean, t, t_two_sided(t, count - 1), count)


def sign_test(first: Sequence[float], second: Sequence[float]) -> float:
    """The exact two-sided sign test; pairs that tie are left out. Assumes nothing but pairs.

    Returns:
        p, at least 2^(1 - pairs): five pairs cannot reach 0.05.

    Raises:
        ArgumentError: As `paired_t`.
    """
    signs = [value > 0 for value in _differences(first, second) if value]
    return binomial_two_sided(sum(signs), len(signs))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact McNemar test of two classifiers on the same samples, two-sided.

    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947.

    Args:
        only_first: Samples that only the first has right.
        only_second: Samples that only the second has right.

    Raises:
        ArgumentError: A negative count.
    """
    if min(only_first, only_second) < 0:
        raise ArgumentError("a count is negative", where="mcnemar", remedy="Count from 0.")
    return binomial_two_sided(only_first, only_first + only_second)


def binomial_two_sided(successes: int, trials: int) -> float:
    """Probability of a split of fair coins at least as uneven; 1 without trials."""
    term = tail = 1
    # Term by term out of the one before: thousands of samples are thousands of large numbers.
    for k in range(min(successes, trials - successes)):
        term = term * (trials - k) // (k + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**trials))


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's distribution: I_{n / (n + t^2)}(n / 2, 1 / 2).

    Args:
        t: The statistic.
        freedom: Degrees of freedom n, at least 1.
    """
    if math.isinf(t):
        return 0.0
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.5.8, evaluated by the modified
    method of Lentz.

    Args:
        x: From 0 to 1.
        a: Positive.
        b: Positive.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - incomplete_beta(1 - x, b, a)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    return front / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...))."""
    value, upper, lower = 1.0, 1.0, 0.0
    for step in range(1, _ITERATIONS):
        m = step // 2
        if step % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / _nonzero(1 + d * lower)
        upper = _nonzero(1 + d / upper)
        value *= upper * lower
        if abs(upper * lower - 1) < _PRECISION:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    if len(first) != len(second) or len(first) < 2:
        raise ArgumentError(
            f"{len(first)} and {len(second)} values are no two or more pairs",
            where="paired test",
            remedy="Give one value of each kind for every seed, and at least two seeds.",
        )
    if not all(map(math.isfinite, (*first, *second))):
        raise ArgumentError("a value is not finite", where="paired test", remedy="Leave it out.")
    return [a - b for a, b in zip(first, second, strict=True)]
