"""A few steps of Lloyd's algorithm: what moves, what stays, and how far it can go wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.joint.codebook import Codebook
from passes.joint.fit import fit_codebook
from passes.joint.lloyd import refit, rounded, rounded_codebook
from passes.quantize.encoding import snap


def weights(seed=0, size=80, kept=0.7, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(size, generator=generator)
    return values.masked_fill_(torch.rand(size, generator=generator) > kept, 0.0)


def book(*levels, bits=2, **options):
    return Codebook(torch.tensor(levels, dtype=torch.float32), bits, **options)


def test_one_step_by_hand():
    values = torch.tensor([0.1, 0.9, 1.3, 2.9, -2.0, -2.2, 0.0])
    # 0.1 belongs to zero, 0.9 and 1.3 to 1, 2.9 to 3; nothing is near to 9.
    found = refit(book(-1.5, 1.0, 3.0, 9.0), values, 1)
    assert torch.allclose(found.levels, torch.tensor([-2.1, 1.1, 2.9, 9.0]))
    assert (found.bits, found.kind, found.reserved_zero, found.sse) == (2, "free", True, torch.inf)
    dense = refit(book(0.0, 3.0, bits=1, reserved_zero=False), values, 1)
    # Zeros count: zero is a level among others.
    assert torch.allclose(dense.levels, torch.tensor([(0.1 + 0.9 + 1.3 - 4.2 + 0.0) / 6, 2.9]))


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.sampled_from(["free", "dense", "uniform", "uniform dense"]),
    st.sampled_from([1e-35, 1e-3, 1.0, 1e30]),
)
def test_the_error_never_grows(seed, bits, how, scale):
    values, moved = weights(seed, scale=scale), weights(seed + 1, scale=scale)
    bits = max(bits, 2)
    kind = "uniform" if "uniform" in how else "free"
    options = {"kind": kind, "reserved_zero": "dense" not in how}
    start = fit_codebook(moved, bits, **options)
    error = start.error(values)
    for steps in (1, 5):
        found = refit(start, values, steps)
        # Levels are float32: rounding them may cost what is left of the error.
        slack = 1e-5 * float(values.double().square().sum())
        assert found.error(values) <= error + slack
        assert (found.bits, found.kind) == (bits, kind)
        assert len(found.levels) <= 2**bits
        assert bool(torch.isfinite(found.levels).all())


def test_it_goes_on_from_where_it_is_and_does_not_search_anew():
    values = weights(3)
    best = fit_codebook(values, 3)
    assert refit(best, values).error(values) == pytest.approx(best.sse, rel=1e-5)
    off = replace(best, levels=best.levels + 0.05)
    assert refit(off, values, 5).error(values) < off.error(values)
    assert torch.equal(refit(off, values, 0).levels, off.levels)


@pytest.mark.parametrize("reserved_zero", [True, False])
def test_uniform_levels_move_together(reserved_zero):
    values = weights(4)
    start = fit_codebook(0.8 * values, 4, kind="uniform", reserved_zero=reserved_zero)
    found = refit(start, values)
    assert found.scale > start.scale
    # A scale of 16 bits, so that every multiple is exact.
    assert found.scale == float(snap(torch.tensor([found.scale])))
    codes = found.levels / found.scale
    assert torch.equal(codes, codes.round())
    assert len(found.levels) == len(start.levels)
    assert found.error(values) < start.error(values)


@pytest.mark.parametrize("kind", ["free", "uniform"])
def test_without_values_nothing_moves(kind):
    start = fit_codebook(weights(), 3, kind=kind)
    for values in (torch.zeros(9), torch.zeros(0)):
        found = refit(start, values)
        assert torch.equal(found.levels, start.levels)
        assert found.scale == start.scale
    empty = fit_codebook(torch.zeros(9), 3)
    assert len(refit(empty, weights()).levels) == 0


@pytest.mark.parametrize("kind", ["free", "uniform"])
def test_a_uniform_grid_without_a_use_keeps_its_scale(kind):
    start = fit_codebook(weights(), 3, kind=kind, reserved_zero=kind == "free")
    tiny = torch.full((4,), 1e-9)
    assert torch.equal(refit(start, tiny).levels, start.levels)


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(2, 23))
def test_rounding_keeps_so_many_bits_and_is_the_nearest(value, bits):
    exact = torch.tensor([value], dtype=torch.float32)
    found = rounded(exact, bits)
    assert torch.equal(rounded(found, bits), found)
    mantissa = torch.frexp(found.double())[0] * 2**bits
    assert torch.equal(mantissa, mantissa.round())
    unit = 2.0 ** (float(torch.frexp(exact.double())[1]) - bits)
    assert abs(float(found.double() - exact.double())) <= unit / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounding_keeps_type_and_the_largest_and_smallest_numbers(dtype):
    info = torch.finfo(dtype)
    smallest = torch.tensor(info.smallest_normal, dtype=dtype) * info.eps
    values = torch.stack([smallest, torch.tensor(info.max / 1.5, dtype=dtype)]).to(dtype)
    found = rounded(torch.cat([values, -values]), 8)
    assert found.dtype == dtype
    assert bool(torch.isfinite(found).all())
    assert found[0] == smallest
    assert torch.equal(found[2:], -found[:2])
    assert float(found[1]) == pytest.approx(info.max / 1.5, rel=2**-8)


def test_rounded_levels_may_fall_together():
    start = book(-1.001, -1.0, 1.0, 3.14159)
    found = rounded_codebook(start, 4)
    assert found.levels.tolist() == [-1.0, 1.0, 3.25]
    assert (found.bits, found.sse) == (2, torch.inf)
    assert torch.equal(rounded_codebook(start, 24).levels, start.levels)


def test_more_levels_than_codes_are_refused():
    with pytest.raises(ArgumentError, match="At most 2"):
        book(1.0, 2.0, 3.0, bits=1)
