from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_oracle import float32s, lenet5_weights, oracle

from energy_model.errors import ArgumentError, PreconditionError
from passes.joint import free_levels, uniform_levels
from passes.joint.fit import codebook_costs, fit_codebook, fit_codebooks
from passes.quantize.encoding import snap

TIGHT = {"rel": 1e-6, "abs": 1e-12}
VALUES = st.lists(st.one_of(st.floats(-3, 3, width=32), st.just(0.0)), max_size=9)
SETTINGS = list(itertools.product(["free", "uniform"], [True, False]))


def normals(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def partitions(items, most):
    """Contiguous partitions of sorted items into at most so many parts."""
    for parts in range(1, most + 1):
        for cuts in itertools.combinations(range(1, len(items)), parts - 1):
            yield np.split(items, cuts)


def brute_free(values, levels, reserved_zero):
    """All contiguous partitions, one part of which may be coded as zero."""
    items = np.sort(values[values != 0] if reserved_zero else values)
    if not len(items):
        return 0.0
    best = np.inf
    for parts in partitions(items, levels + reserved_zero):
        about_mean = [float(((p - p.mean()) ** 2).sum()) for p in parts]
        about_zero = [float((p**2).sum()) for p in parts]
        if len(parts) <= levels:
            best = min(best, sum(about_mean))
        if reserved_zero:
            gains = (z - m for z, m in zip(about_zero, about_mean, strict=True))
            best = min(best, sum(about_mean) + min(gains))
    return best


@pytest.mark.parametrize("reserved_zero", [True, False])
@settings(max_examples=40)
@given(values=VALUES, bits=st.integers(1, 2))
def test_free_levels_are_the_best_of_all(values, bits, reserved_zero):
    found = fit_codebook(torch.tensor(values), bits, reserved_zero=reserved_zero)
    expected = brute_free(np.asarray(values), 1 << bits, reserved_zero)
    assert found.sse == pytest.approx(expected, abs=1e-11)
    assert len(found.levels) <= 1 << bits


@pytest.mark.parametrize("reserved_zero", [True, False])
@settings(max_examples=40)
@given(values=VALUES.filter(any), bits=st.integers(2, 4))
def test_uniform_scale_beats_a_dense_search(values, bits, reserved_zero):
    x = np.abs(np.asarray(values))
    x = x[x > 0]
    top = 1 << (bits - 1) if reserved_zero else (1 << (bits - 1)) - 1
    scales = np.geomspace(x.max() * 2, x.min() / (2 * top), 4000)[:, None]
    codes = np.clip(np.round(x / scales), int(reserved_zero), top)
    best = float(((x - scales * codes) ** 2).sum(axis=1).min())
    found = fit_codebook(torch.tensor(values), bits, reserved_zero=reserved_zero, kind="uniform")
    assert found.sse <= best * (1 + 1e-6) + 1e-12


@pytest.mark.spread(1)
@pytest.mark.parametrize(("kind", "reserved_zero"), SETTINGS)
@settings(max_examples=40)
@given(values=VALUES, bits=st.integers(2, 8))
def test_what_every_codebook_keeps_to(values, bits, kind, reserved_zero):
    values = torch.tensor(values)
    found = fit_codebook(values, bits, kind=kind, reserved_zero=reserved_zero)
    if not len(found.table):
        assert not len(values)
        return
    coded = found.nearest(values)
    assert float((values - coded).double().square().sum()) == pytest.approx(found.sse)
    assert torch.equal(found.nearest(coded), coded)
    if reserved_zero:
        assert not coded[values == 0].any()
        assert len(coded[coded != 0].unique()) <= 1 << bits
    again = fit_codebook(coded, bits, kind=kind, reserved_zero=reserved_zero)
    if kind == "free":
        assert again.sse == 0.0
    costs = codebook_costs(values, kind=kind, reserved_zero=reserved_zero, bits=[bits])
    assert float(costs[bits - 1]) == pytest.approx(found.sse, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("case", range(16))
def test_oracle_of_codebooks(case):
    case = oracle("codebook")[case]
    values, bits = float32s(case["x"]), case["bits"]
    assert fit_codebook(values, bits).sse == pytest.approx(
        case["reserved_zero"]["exact_sse"], **TIGHT
    )
    assert fit_codebook(values, bits).sse <= case["reserved_zero"]["authors_sse"] + 1e-9
    if "dense" in case:
        found = fit_codebook(values, bits, reserved_zero=False)
        assert found.sse == pytest.approx(case["dense"]["exact_sse"], **TIGHT)
    if bool((values != 0).all()):  # else the oracle codes zeros as plus or minus one scale
        found = fit_codebook(values, bits, kind="uniform")
        assert found.sse == pytest.approx(case["uniform_nozero"]["exact_sse"], **TIGHT)
    if "uniform_withzero" in case:
        found = fit_codebook(values, bits, kind="uniform", reserved_zero=False)
        assert found.sse == pytest.approx(case["uniform_withzero"]["exact_sse"], **TIGHT)


def test_oracle_of_projections():
    for case in oracle("v_projection"):
        for layer, expected in zip(case["layers"], case["exact_sse_table"], strict=True):
            assert codebook_costs(float32s(layer)).tolist() == pytest.approx(expected, **TIGHT)


def test_few_points_have_no_error():
    (case,) = oracle("codebook_regression")
    costs = codebook_costs(float32s(case["x"]))
    assert (costs.diff() <= 0).all()
    assert costs[2:].tolist() == [0.0] * 6
    assert (costs[:3] <= torch.tensor(case["authors_sse"]) + 1e-9).all()


def test_oracle_of_lenet5():
    case = oracle("lenet5")[0]  # the others have no table
    weights = lenet5_weights()
    for weight, kept, expected in zip(
        weights, case["rounds"][0]["nnz"], case["round0_exact_table_b1to6"], strict=True
    ):
        order = weight.abs().flatten().argsort(descending=True, stable=True)
        costs = codebook_costs(weight.flatten()[order[:kept]])
        assert costs[:6].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("power", [-140, -126, -40, 30, 120])
@pytest.mark.parametrize(("kind", "reserved_zero"), SETTINGS)
def test_scaling_by_a_power_of_two_scales_everything(power, kind, reserved_zero):
    # Whole multiples of 2^-9 stay exact even as denormal numbers.
    values = torch.round(normals(60) * 64).clamp(-511, 511) / 512
    base = fit_codebook(values, 3, kind=kind, reserved_zero=reserved_zero)
    scaled = fit_codebook(torch.ldexp(values, torch.tensor(power)), 3, kind=kind,
                          reserved_zero=reserved_zero)  # fmt: skip
    assert scaled.sse * 4.0**-power == pytest.approx(base.sse, rel=1e-2 if power < -120 else 1e-12)
    if power >= -100:
        assert torch.equal(scaled.levels, torch.ldexp(base.levels, torch.tensor(power)))


@pytest.mark.parametrize("kind", ["free", "uniform"])
def test_the_sign_only_mirrors(kind):
    values = normals(200)
    plus, minus = fit_codebook(values, 3, kind=kind), fit_codebook(-values, 3, kind=kind)
    assert plus.sse == pytest.approx(minus.sse, rel=1e-12)
    assert torch.equal(plus.levels, -minus.levels.flip(0))


def test_values_of_every_magnitude_are_returned_as_they_are():
    values = torch.tensor([1e30, -1e-30, 1e-44, 3.4e38, 0.0])
    found = fit_codebook(values, 2)
    assert found.sse == 0.0
    assert torch.equal(found.levels, values[values != 0].sort().values)
    assert torch.equal(found.nearest(values), values)


def test_close_values_far_from_zero_are_still_told_apart():
    generator = torch.Generator().manual_seed(1)
    clusters = torch.tensor([1.0, 1.0 + 2**-12, 1.0 + 2**-11, 1.0 + 3 * 2**-12])
    values = (clusters[:, None] + 2**-20 * torch.rand(4, 50, generator=generator)).flatten()
    expected = sum(float(c.double().var(correction=0)) * 50 for c in values.view(4, 50))
    assert fit_codebook(values, 2).sse == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "reserved_zero"), SETTINGS)
@pytest.mark.parametrize("value", [3e38, -3.4e38, 1e-45, -3e-39, 0.3])
def test_a_constant_tensor_has_no_error(value, kind, reserved_zero):
    values = torch.full((70,), value)
    found = fit_codebook(values, 3, kind=kind, reserved_zero=reserved_zero)
    assert found.sse == pytest.approx(0.0, abs=1e-12 * value * value)
    assert torch.allclose(found.nearest(values), values, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    values = normals(300).to(dtype).view(3, 100)
    found = fit_codebook(values, 3)
    assert found.levels.dtype == torch.float32
    assert found.sse == pytest.approx(fit_codebook(values.float(), 3).sse, rel=1e-6)


@pytest.mark.parametrize("values", [torch.empty(0), torch.zeros(5), torch.zeros(0, 3)])
def test_nothing_to_code(values):
    assert fit_codebook(values, 2).sse == 0.0
    assert len(fit_codebook(values, 2).levels) == 0
    assert codebook_costs(values).tolist() == [0.0] * 8
    assert fit_codebook(values, 2, kind="uniform").sse == 0.0
    assert fit_codebook(torch.zeros(5), 2, reserved_zero=False).levels.tolist() == [0.0]


def test_inputs_are_not_edited():
    values = normals(50)
    before = values.clone()
    fit_codebook(values, 2)
    codebook_costs(values, kind="uniform")
    assert torch.equal(values, before)


@pytest.mark.slow
def test_many_values_come_close_to_the_exact_optimum(monkeypatch):
    values = normals(15_000, seed=3) * (1 + normals(15_000, seed=4).abs())
    exact = codebook_costs(values)
    monkeypatch.setattr(free_levels, "MOST_DISTINCT", 1000)
    settled = codebook_costs(values)
    assert (settled >= exact * (1 - 1e-9)).all()
    assert (settled[:6] <= exact[:6] * 1.001).all()
    assert (settled <= exact * 1.01).all()
    assert (settled.diff() <= 0).all()
    found = fit_codebook(values, 4)
    assert found.sse == pytest.approx(float(settled[3]), rel=1e-6)
    dense = codebook_costs(values, reserved_zero=False)
    assert (dense[1:] < settled[:-1]).all()
    assert (dense >= settled * (1 - 1e-3)).all()


def test_heavy_tails_and_repeated_values_survive_putting_together(monkeypatch):
    monkeypatch.setattr(free_levels, "MOST_DISTINCT", 500)
    tails = normals(4000) / normals(4000, seed=9)
    energy = float(tails.double().square().sum())
    costs = codebook_costs(tails)
    assert (costs.diff() <= 0).all()
    assert float(costs[7]) < 1e-4 * energy
    few = torch.round(normals(30_000) * 3)
    monkeypatch.undo()
    assert float(codebook_costs(few)[5]) == 0.0


def test_many_values_on_a_uniform_grid(monkeypatch):
    values = normals(3000, seed=5)
    exact = [fit_codebook(values, bits, kind="uniform") for bits in (1, 3, 4, 8)]
    monkeypatch.setattr(uniform_levels, "_DISTINCT", 100)
    for found in exact:
        searched = fit_codebook(values, found.bits, kind="uniform")
        assert found.sse * (1 - 1e-6) <= searched.sse <= found.sse * 1.001
        costs = codebook_costs(values, kind="uniform")
        assert float(costs[found.bits - 1]) == pytest.approx(searched.sse, rel=1e-6)


def test_uniform_levels_are_exact_products_of_a_short_scale():
    found = fit_codebook(normals(500), 4, kind="uniform")
    scale = torch.tensor(found.scale)
    assert torch.equal(snap(scale), scale)
    codes = [q for q in range(-8, 9) if q]
    assert found.levels.tolist() == [q * found.scale for q in codes]
    again = fit_codebook(found.nearest(normals(500)), 4, kind="uniform")
    assert again.sse == 0.0
    # A single value has no error: then the scale is as long as it has to be.
    assert fit_codebook(torch.tensor([0.1]), 1, kind="uniform").sse == 0.0


def test_all_widths_at_once():
    values = normals(400)
    every = fit_codebooks(values)
    costs = codebook_costs(values)
    assert list(every) == list(range(1, 9))
    for bits, found in every.items():
        assert found.bits == bits
        assert found.sse == pytest.approx(fit_codebook(values, bits).sse)
        assert float(costs[bits - 1]) == pytest.approx(found.sse, rel=1e-6, abs=1e-12)
    some = codebook_costs(values, bits=(2, 5))
    assert torch.isinf(some).tolist() == [b not in (2, 5) for b in range(1, 9)]
    assert some[[1, 4]].tolist() == pytest.approx(costs[[1, 4]].tolist())
    assert list(fit_codebooks(values, kind="uniform", reserved_zero=False, bits=(1, 2))) == [2]
    assert torch.isinf(codebook_costs(values, kind="uniform", reserved_zero=False)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["free", "uniform"])
def test_values_that_are_not_finite_are_refused(bad, kind):
    values = torch.tensor([1.0, bad])
    with pytest.raises(PreconditionError, match="1 of 2 values"):
        fit_codebook(values, 2, kind=kind)
    with pytest.raises(PreconditionError, match="NaN"):
        codebook_costs(values, kind=kind)
    with pytest.raises(PreconditionError, match="beyond float32"):
        fit_codebook(torch.tensor([1e60], dtype=torch.float64), 2, kind=kind)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5, True, "3"])
def test_widths_that_are_none_are_refused(bits):
    for call in (fit_codebook, lambda v, b: codebook_costs(v, bits=[b])):
        with pytest.raises(ArgumentError, match="no width"):
            call(torch.ones(2), bits)


def test_kinds_and_grids_that_are_none_are_refused():
    with pytest.raises(ArgumentError, match="no kind"):
        fit_codebook(torch.ones(2), 2, kind="log")
    with pytest.raises(ArgumentError, match="no symmetric grid"):
        fit_codebook(torch.ones(2), 1, kind="uniform", reserved_zero=False)
