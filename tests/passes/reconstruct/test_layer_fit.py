"""One layer fitted to moments: groups, zeros, grids, and no row worse than before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruct_nets import values

from passes.quantize.fit import fit_encoding
from passes.reconstruct.fit import fit_layer, squared_error
from passes.reconstruct.moments import Moments


def moments_of(x: torch.Tensor, y: torch.Tensor) -> Moments:
    """Moments of inputs `(groups, cols, n)` and outputs `(groups, rows, n)`."""
    count = x.shape[2]
    mean_x, mean_y = x.mean(2), y.mean(2)
    x, y = x - mean_x[..., None], y - mean_y[..., None]
    return Moments(count, mean_x, mean_y, x @ x.mT / count, y @ x.mT / count, y.square().mean(2))


def problem(groups: int, rows: int, cols: int, n: int, seed: int) -> tuple[torch.Tensor, Moments]:
    weight = values(groups * rows, cols, seed=seed)
    x = values(groups, cols, n, seed=seed + 1) + 2
    y = weight.view(groups, rows, cols) @ x + values(groups, rows, 1, seed=seed + 2)
    y = y + 0.1 * values(groups, rows, n, seed=seed + 3)
    return weight, moments_of(x + 0.3 * values(groups, cols, n, seed=seed + 4), y)


@settings(max_examples=30)
@given(
    groups=st.integers(1, 3),
    rows=st.integers(1, 3),
    cols=st.integers(1, 9),
    n=st.integers(1, 30),
    bits=st.sampled_from([None, 2, 4]),
    block=st.sampled_from([None, 4]),
    seed=st.integers(0, 1000),
)
def test_no_output_is_worse_and_zeros_and_levels_stay(
    groups: int, rows: int, cols: int, n: int, bits: int | None, block: int | None, seed: int
) -> None:
    dense, moments = problem(groups, rows, cols, n, seed)
    weight = torch.where(values(*dense.shape, seed=seed + 9) > -0.5, dense, 0.0).float()
    encoding = None
    if bits is not None:
        encoding = fit_encoding(weight, bits, block=block)
        weight = encoding.nearest(weight)
    fit = fit_layer(weight, dense, moments, encoding, 0.0)
    shape = moments.yx.shape
    before = squared_error(weight.double().view(shape), moments)
    after = squared_error(fit.weight.double().view(shape), moments)
    assert bool((after <= before + 1e-9).all())
    assert fit.after <= fit.before + 1e-9
    assert not bool(fit.weight[weight == 0].any())
    assert fit.weight.dtype == weight.dtype
    if encoding is None:
        assert fit.encoding is None
    else:
        assert fit.encoding is not None
        assert (fit.encoding.bits, fit.encoding.block) == (bits, block)
        assert fit.encoding.holds(fit.weight)


def test_reported_errors_are_those_of_the_data() -> None:
    dense, _ = problem(1, 3, 5, 40, 0)
    x, wanted = values(1, 5, 40, seed=1), values(1, 3, 40, seed=2)
    fit = fit_layer(dense, dense, moments_of(x, wanted), None, 0.0)
    out = fit.weight @ x[0] + fit.offset[:, None]
    total = (wanted - wanted.mean(2, keepdim=True)).square().sum()
    assert fit.after == pytest.approx(float((out - wanted[0]).square().sum() / total))
    assert fit.after < fit.before


def test_the_offset_makes_up_for_the_means() -> None:
    weight, moments = problem(2, 3, 5, 50, 3)
    fit = fit_layer(weight, weight, moments, None, 0.1)
    image = fit.weight.view(2, 3, 5) @ moments.mean_x[..., None]
    torch.testing.assert_close(fit.offset, (moments.mean_y - image[..., 0]).reshape(-1))


def test_levels_that_cannot_be_bettered_keep_their_scales() -> None:
    weight, _ = problem(1, 4, 6, 1, 5)
    encoding = fit_encoding(weight, 3)
    levels = encoding.nearest(weight)
    x = values(1, 6, 60, seed=6)
    fit = fit_layer(levels, weight, moments_of(x, levels[None] @ x), encoding, 0.0)
    assert torch.equal(fit.weight, levels)
    assert fit.encoding is not None
    assert torch.equal(fit.encoding.scale, encoding.scale)
