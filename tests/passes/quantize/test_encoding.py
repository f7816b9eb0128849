"""Encodings of weights: exact zeros, exact products, bit-exact idempotence, factors of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, PostconditionError
from passes.quantize.encoding import Encoding, largest_code, snap


def fitted(weight: torch.Tensor, bits: int, axis: int = 0, block: int | None = None) -> Encoding:
    matrix = weight.movedim(axis, 0).reshape(weight.shape[axis], -1).abs()
    parts = [matrix] if block is None else list(matrix.split(block, dim=1))
    scale = torch.stack([p.amax(1) for p in parts], 1).clamp_min(1e-12) / largest_code(bits)
    return Encoding(bits, snap(scale), axis, block)


@settings(max_examples=60)
@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    exponent=st.integers(-20, 20),
    axis=st.sampled_from([0, 1]),
    block=st.sampled_from([None, 1, 4, 7]),
)
def test_quantizing_is_idempotent_bit_for_bit(
    bits: int, seed: int, exponent: int, axis: int, block: int | None
) -> None:
    weight = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    encoding = fitted(weight, bits, axis, block)
    once = encoding.nearest(weight)
    assert torch.equal(encoding.nearest(once), once)
    assert encoding.holds(once)
    assert torch.equal(encoding.codes(once), encoding.codes(weight))
    assert int(encoding.codes(weight).abs().max()) <= largest_code(bits)
    scales = encoding.scales(weight.numel() // weight.shape[axis])
    error = encoding.matrix(once - weight).abs()
    assert bool((error <= scales * (0.5 + 1e-4)).all())


def test_zeros_stay_zero_and_none_is_negative() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -1e-9], [2.0, 0.0, -2.0, 0.0]])
    levels = fitted(weight, 4).nearest(weight)
    assert torch.equal(levels == 0, torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1]]).bool())
    assert not bool(torch.signbit(levels[levels == 0]).any())


def test_snap_leaves_sixteen_significant_bits() -> None:
    scale = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 3 + 1e-4
    snapped = snap(scale)
    mantissa, _ = torch.frexp(snapped)
    assert torch.equal(mantissa * 2**16, torch.round(mantissa * 2**16))
    assert bool(((snapped - scale).abs() <= scale * 2.0**-16).all())
    assert torch.equal(snap(snapped), snapped)


def test_products_are_exact_in_float32() -> None:
    scale = snap(torch.rand(400, 1, generator=torch.Generator().manual_seed(1)))
    codes = torch.arange(-127, 128).repeat(400, 1)
    exact = scale.double() * codes.double()
    assert torch.equal((scale * codes.float()).double(), exact)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_scaled_by_factors_keep_their_codes(axis: int) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    encoding = fitted(weight, 5, axis)
    rows = weight.shape[axis]
    factors = torch.linspace(-2, 2, rows)
    factors[1] = 0
    scaled, signs = encoding.scaled(factors)
    shape = [-1 if i == axis else 1 for i in range(weight.dim())]
    levels = encoding.nearest(weight)
    codes = encoding.codes(levels) * signs.view(shape).to(torch.int8)
    after = scaled.weight(codes)
    torch.testing.assert_close(after, levels * factors.view(shape), rtol=2.0**-15, atol=0)
    assert scaled.holds(after)


def test_a_weight_off_its_grid_is_refused() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    encoding = fitted(weight, 8)
    encoding.check(encoding.nearest(weight), "layer")
    with pytest.raises(PostconditionError, match="layer"):
        encoding.check(weight, "layer")


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ArgumentError, match="bits"):
        Encoding(bits, torch.ones(1, 1))


@pytest.mark.parametrize(
    "scale", [torch.ones(3), torch.zeros(3, 1), torch.ones(3, 1).double(), -torch.ones(3, 1)]
)
def test_other_scales_are_refused(scale: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="scale"):
        Encoding(8, scale)
