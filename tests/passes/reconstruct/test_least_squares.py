"""Masked least squares: numpy on the data themselves, both solvers, singular cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.reconstruct import least_squares
from passes.reconstruct.least_squares import damped, fit_masked


def problem(
    rows: int, cols: int, samples: int, seed: int, share: float = 0.5
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(cols, samples, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, samples, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, cols, generator=generator) >= share
    prior = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    return x, y, mask, torch.where(mask, prior, 0.0)


def error(weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (weight @ x - y).square().sum(1)


@pytest.mark.parametrize("flops", [least_squares.EXACT_FLOPS, 0.0])
def test_it_is_what_numpy_finds_on_the_data(flops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "EXACT_FLOPS", flops)
    monkeypatch.setattr(least_squares, "TOLERANCE", 1e-8)
    x, y, mask, prior = problem(5, 9, 40, 0)
    found = fit_masked(y @ x.T, x @ x.T, mask, prior, 0.0)
    for row in range(5):
        kept = mask[row].numpy()
        best = np.linalg.lstsq(x.numpy()[kept].T, y[row].numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[row].numpy()[kept], best, rtol=1e-4, atol=1e-5)
    assert not bool(found[~mask].any())


def test_iteration_stops_near_the_best() -> None:
    x, y, mask, prior = problem(6, 60, 200, 5)
    hessian, cross = x @ x.T, y @ x.T
    best = fit_masked(cross, hessian, mask, prior, 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(least_squares, "EXACT_FLOPS", 0.0)
        found = fit_masked(cross, hessian, mask, prior, 0.01)
    assert not torch.equal(found, best)
    gained = error(prior, x, y) - error(best, x, y)
    assert bool((error(found, x, y) - error(best, x, y) < 1e-4 * gained).all())


def test_damping_is_a_ridge_around_the_prior() -> None:
    x, y, mask, prior = problem(4, 7, 5, 1)
    hessian, damping = x @ x.T, 0.3
    ridge = (damping * hessian.diagonal().mean()).sqrt()
    found = fit_masked(y @ x.T, hessian, mask, prior, damping)
    for row in range(4):
        kept = mask[row]
        system = torch.cat([x[kept].T, ridge * torch.eye(int(kept.sum()), dtype=torch.float64)])
        wanted = torch.cat([y[row], ridge * prior[row, kept]])
        best = torch.linalg.lstsq(system, wanted[:, None]).solution[:, 0]
        torch.testing.assert_close(found[row, kept], best, rtol=1e-6, atol=1e-8)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 8),
    samples=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    damping=st.sampled_from([0.0, 0.01, 10.0]),
    exact=st.booleans(),
)
def test_no_row_is_worse_than_its_prior(
    rows: int, cols: int, samples: int, seed: int, damping: float, exact: bool
) -> None:
    x, y, mask, prior = problem(rows, cols, samples, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(least_squares, "EXACT_FLOPS", 1e12 if exact else 0.0)
        found = fit_masked(y @ x.T, x @ x.T, mask, prior, damping)
    before = error(prior, x, y)
    assert bool((error(found, x, y) <= before * (1 + 1e-9) + 1e-9).all())
    assert not bool(found[~mask].any())
    # A step larger than what would fit all of the data would be an explosion.
    assert float(found.abs().max()) < 1e6


def test_a_large_damping_stays_at_the_prior() -> None:
    x, y, mask, prior = problem(3, 6, 20, 2)
    found = fit_masked(y @ x.T, x @ x.T, mask, prior, 1e9)
    torch.testing.assert_close(found, prior, rtol=1e-6, atol=1e-6)


def test_without_inputs_nothing_changes() -> None:
    _, _, mask, prior = problem(3, 6, 1, 3)
    zero = torch.zeros(6, 6, dtype=torch.float64)
    assert torch.equal(fit_masked(torch.zeros_like(prior), zero, mask, prior, 0.0), prior)


def test_rounding_below_zero_is_made_positive() -> None:
    """As moments in single precision are: of rank one, with eigenvalues below zero."""
    line = torch.ones(6, dtype=torch.float64)
    hessian = line[:, None] * line - 1e-6 * torch.diag(torch.arange(6.0, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(hessian)[0]) < 0
    assert float(torch.linalg.eigvalsh(damped(hessian, 0.0))[0]) > 0


def test_a_row_without_weights_stays_empty() -> None:
    x, y, mask, prior = problem(2, 5, 20, 4)
    mask[0] = False
    assert not bool(fit_masked(y @ x.T, x @ x.T, mask, prior, 0.0)[0].any())
