"""EI against Monte Carlo and reference values, log-EI against 60-digit arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from passes.embedding.acquisition import (
    expected_improvement,
    log_expected_improvement,
    log_improvement,
)


def num(value):
    return torch.tensor(value, dtype=torch.float64)


def exact_log(z):
    with mpmath.workdps(60):
        z = mpmath.mpf(z)
        tail = mpmath.erfc(-z / mpmath.sqrt(2)) / 2
        return mpmath.log(mpmath.npdf(z) + z * tail)


# The last one is the spec's (0.3, 0.03, 0.9) without the rounding that its sum suffers from.
@pytest.mark.parametrize(
    ("mean", "std", "best", "expected"),
    [
        (0.9, 0.1, 0.85, 0.06977965574),
        (0.5, 0.2, 0.9, 0.001698140523),
        (0.9, 0.05, 0.9, 0.01994711402),
        (0.0, math.sqrt(1.05), 0.9, 0.1070666856),
        (0.3, 0.03, 0.9, 4.110037484e-92),
    ],
)
def test_reference_values(mean, std, best, expected):
    value = float(expected_improvement(num(mean), num(std), num(best)))
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("z", "expected"),
    [
        (2.0, 0.6973835457882284),
        (0.0, -0.9189385332046728),
        (-1.0, -2.485121025712641),
        (-3.0, -7.869686059603029),
        (-10.0, -55.55312203612235),
        (-40.0, -808.29856835662),
    ],
)
def test_reference_values_of_the_logarithm(z, expected):
    assert float(log_improvement(num(z))) == pytest.approx(expected, rel=1e-13)


@given(z=st.floats(-3e3, 30))
@example(z=-1.0)
@example(z=math.nextafter(-1.0, 0))
@example(z=-1000.0)
@example(z=math.nextafter(-1000.0, 0))
def test_the_logarithm_is_that_of_long_arithmetic(z):
    with mpmath.workdps(60):
        exact = exact_log(z) if z > -100 else None
    if exact is None:
        # The sum of 60 digits cancels, too: the continued series of the Mills ratio does not.
        square = mpmath.mpf(z) ** 2
        series = sum(
            (-1) ** k * mpmath.fac(2 * k + 1) / (2**k * mpmath.fac(k)) / square**k for k in range(8)
        )
        exact = -square / 2 - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(square)
        exact += mpmath.log(series)
    assert float(log_improvement(num(z))) == pytest.approx(float(exact), rel=2e-14, abs=2e-15)


@pytest.mark.parametrize("z", [5.0, 0.0, -0.999, -1.0, -1.001, -30.0, -999.0, -1001.0, -1e4, -1e8])
def test_the_gradient_is_finite_and_right(z):
    point = num(z).requires_grad_()
    log_improvement(point).backward()
    # d/dz log h = Phi / h; below, its asymptote |z| + 2 / |z|.
    if z > -100:
        with mpmath.workdps(60):
            tail = mpmath.erfc(-mpmath.mpf(z) / mpmath.sqrt(2)) / 2
            expected = float(tail / mpmath.exp(exact_log(z)))
    else:
        expected = -z - 2 / z
    assert float(point.grad) == pytest.approx(expected, rel=1e-5)


def test_all_regimes_in_one_tensor_have_finite_gradients():
    points = torch.tensor([3.0, -0.5, -5.0, -500.0, -1e6, -1e12], dtype=torch.float64)
    points.requires_grad_()
    log_improvement(points).sum().backward()
    assert points.grad.isfinite().all() and (points.grad > 0).all()


def test_it_is_the_mean_improvement_of_samples():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    for _ in range(20):
        mean, std, z = torch.rand(3, generator=generator, dtype=torch.float64)
        best = mean + std * (3 - 5 * z)  # where samples improve at all
        gains = (mean + std * normal - best).clamp_min(0)
        error = float(gains.std()) / 1000
        assert abs(float(expected_improvement(mean, std, best) - gains.mean())) < 5 * error


def test_a_known_factor_scales_mean_and_deviation():
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    for _ in range(5):
        mean, std, z, gain = torch.rand(4, generator=generator, dtype=torch.float64)
        best = gain * (mean + std * (3 - 5 * z))
        gains = (gain * (mean + std * normal) - best).clamp_min(0)
        value = expected_improvement(gain * mean, gain * std, best)
        assert abs(float(value - gains.mean())) < 5 * float(gains.std()) / 1000


small = st.floats(-2, 2)


@given(mean=small, best=small, stds=st.tuples(st.floats(1e-3, 3), st.floats(1e-3, 3)))
def test_it_is_above_the_plain_improvement_and_grows_with_uncertainty(mean, best, stds):
    narrow, wide = sorted(stds)
    values = [expected_improvement(num(mean), num(s), num(best)) for s in (narrow, wide)]
    assert float(values[0]) >= max(mean - best, 0) * (1 - 1e-12)
    assert float(values[1]) >= float(values[0]) * (1 - 1e-12)


@given(mean=small, best=small, std=st.floats(1e-3, 3))
def test_the_logarithm_ranks_as_the_value(mean, best, std):
    value = float(expected_improvement(num(mean), num(std), num(best)))
    logarithm = float(log_expected_improvement(num(mean), num(std), num(best)))
    assert math.exp(logarithm) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("mean", "expected"), [(0.9, 0.1), (0.7, 0.0)])
def test_a_certain_candidate_improves_by_its_distance(mean, expected):
    value = float(expected_improvement(num(mean), num(0.0), num(0.8)))
    assert value == pytest.approx(expected, abs=1e-12)
    assert math.isfinite(float(log_expected_improvement(num(mean), num(0.0), num(0.8))))
