"""Fitted codes: on the grid, never worse than rounding, near the best of all codes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.quantize.encoding import Encoding, largest_code, snap
from passes.reconstruct import codes
from passes.reconstruct.codes import errors, fit_codes


def problem(
    rows: int, cols: int, bits: int, seed: int, block: int | None = None, share: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor, Encoding, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(cols, 2 * cols, generator=generator, dtype=torch.float64)
    x[1:] += 2 * x[:1]  # correlated inputs are what feedback is for
    mask = torch.rand(rows, cols, generator=generator) >= share
    target = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    target = torch.where(mask, target, 0.0)
    parts = [target] if block is None else list(target.split(block, dim=1))
    top = torch.stack([p.abs().amax(1) for p in parts], 1).clamp_min(0.1)
    encoding = Encoding(bits, snap((top / largest_code(bits)).float()), 0, block)
    return target, x @ x.T, encoding, mask


def best_of_all(
    target: torch.Tensor, hessian: torch.Tensor, encoding: Encoding, mask: torch.Tensor
) -> torch.Tensor:
    span = range(-encoding.largest, encoding.largest + 1)
    all_codes = torch.tensor(list(itertools.product(span, repeat=target.shape[1]))).double()
    least = []
    for row in range(len(target)):
        allowed = all_codes[(all_codes[:, ~mask[row]] == 0).all(1)]
        levels = allowed * encoding.scales(target.shape[1])[row].double()
        least.append(errors(levels, target[row], hessian).min())
    return torch.stack(least)


def test_they_are_near_the_best_of_all_codes() -> None:
    ratios, plain = [], []
    for seed in range(12):
        target, hessian, encoding, mask = problem(4, 5, 2, seed)
        found = errors(fit_codes(target, hessian, encoding, mask), target, hessian)
        least = best_of_all(target, hessian, encoding, mask)
        rounded = torch.where(mask, encoding.nearest(target), 0.0)
        assert bool((found >= least - 1e-9).all())
        ratios.append((found.sum() / least.sum()).item())
        plain.append((errors(rounded, target, hessian).sum() / least.sum()).item())
    mean, rounding = sum(ratios) / len(ratios), sum(plain) / len(plain)
    assert mean < 1.25
    assert mean - 1 < 0.25 * (rounding - 1)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 12),
    bits=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    block=st.sampled_from([None, 1, 5]),
)
def test_they_are_levels_and_never_worse_than_rounding(
    rows: int, cols: int, bits: int, seed: int, block: int | None
) -> None:
    target, hessian, encoding, mask = problem(rows, cols, bits, seed, block)
    found = fit_codes(target, hessian, encoding, mask)
    assert encoding.holds(found.float())
    assert not bool(found[~mask].any())
    rounded = torch.where(mask, encoding.nearest(target), 0.0)
    bound = errors(rounded, target, hessian)
    assert bool((errors(found, target, hessian) <= bound * (1 + 1e-6) + 1e-9).all())


def test_no_single_code_can_be_moved_for_the_better() -> None:
    target, hessian, encoding, mask = problem(6, 70, 3, 0)  # more columns than a block
    found = fit_codes(target, hessian, encoding, mask)
    least = errors(found, target, hessian)
    for column, step in itertools.product(range(70), (-1, 1)):
        moved = found.clone()
        moved[:, column] += step * encoding.scale[:, 0].double()
        legal = (moved[:, column] / encoding.scale[:, 0]).abs() <= encoding.largest + 0.5
        better = errors(moved, target, hessian) < least * (1 - 1e-6)
        assert not bool((better & legal & mask[:, column]).any())


def test_feedback_alone_is_what_the_plain_algorithm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ, algorithm 1, one column at a time, on the inverse that is left."""
    target, hessian, encoding, mask = problem(3, 70, 4, 1, share=0.0)
    monkeypatch.setattr(codes, "_descend", lambda levels, *_: levels)
    found = fit_codes(target, hessian, encoding, mask, damping=0.01)
    matrix = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(70, dtype=torch.float64)
    left = torch.argsort(matrix.diagonal(), descending=True, stable=True).tolist()
    values, levels = target.clone(), torch.zeros_like(target)
    while left:
        inverse = torch.linalg.inv(matrix[left][:, left])
        column, *rest = left
        levels[:, column] = encoding.nearest(values)[:, column]
        lost = (values[:, column] - levels[:, column]) / inverse[0, 0]
        values[:, rest] -= lost[:, None] * inverse[0, 1:]
        left = rest
    torch.testing.assert_close(found, levels, rtol=1e-6, atol=1e-9)


def test_without_inputs_they_are_rounded() -> None:
    target, hessian, encoding, mask = problem(3, 5, 4, 2)
    found = fit_codes(target, torch.zeros_like(hessian), encoding, mask)
    assert torch.equal(found.float(), torch.where(mask, encoding.nearest(target).float(), 0.0))
