"""Scales of weights: against brute force, on every form of weight, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_nets import seeded

from energy_model.errors import ArgumentError, PreconditionError
from passes.quantize import fit
from passes.quantize.encoding import largest_code
from passes.quantize.fit import fit_encoding


def squared_error(weight, encoding, weights=None):
    off = (encoding.nearest(weight).double() - weight.double()).square()
    return (encoding.matrix(off) * (1.0 if weights is None else weights)).sum(1)


def least_error(row, weights, top):
    """Over all assignments of codes: magnitudes are assigned in order of size."""
    values = [float(v) for v in row.abs()]
    best = sum(w * v * v for w, v in zip(weights, values, strict=True))
    for codes in itertools.product(range(top + 1), repeat=len(values)):
        a = sum(w * v * q for w, v, q in zip(weights, values, codes, strict=True))
        b = sum(w * q * q for w, q in zip(weights, codes, strict=True))
        if b:
            total = sum(w * v * v for w, v in zip(weights, values, strict=True))
            best = min(best, total - a * a / b)
    return best


ROWS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4)


@settings(max_examples=60)
@given(row=ROWS, bits=st.sampled_from([2, 3]), data=st.data())
def test_short_rows_are_fitted_as_well_as_is_possible(row, bits, data):
    each = st.lists(st.floats(0.125, 4), min_size=len(row), max_size=len(row))
    weights = data.draw(each)
    weight = torch.tensor([row])
    weight[weight.abs() < 1e-3] = 0.0
    fitted = fit_encoding(weight, bits, column_weights=torch.tensor(weights))
    least = least_error(weight[0], weights, largest_code(bits))
    # Scales have 16 bits, weights 24.
    slack = 1e-9 * float(weight.abs().max()) ** 2 * sum(weights)
    assert float(squared_error(weight, fitted, torch.tensor(weights))) <= least * 1.0001 + slack


def swept_and_searched(values, bits):
    weights = torch.ones_like(values)
    top = largest_code(bits)
    return fit._swept(values, weights, top), fit._searched(values, weights, top)


@pytest.mark.spread(4)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_long_rows_are_within_a_third_of_a_percent_of_the_optimum(bits, shape):
    values = torch.randn(16, 300, generator=seeded(bits)).double()
    if shape == "heavy":
        values = values / (torch.rand(16, 300, generator=seeded(1)) + 0.02)
    values = values.abs()
    exact, near = swept_and_searched(values, bits)

    def errors(scales):
        codes = torch.round(values / scales[:, None]).clamp(max=largest_code(bits))
        return (values - codes * scales[:, None]).square().sum(1)

    ratio = errors(near) / errors(exact)
    assert bool((ratio >= 1 - 1e-9).all())
    assert float(ratio.max()) <= 1.003
    assert float(ratio.mean()) <= 1.0003


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_sweep_beats_a_dense_grid_of_scales(bits):
    values = torch.randn(4, 20, generator=seeded(3)).double().abs()
    exact, _ = swept_and_searched(values, bits)
    top = largest_code(bits)
    tried = values.amax(1, keepdim=True) / top * torch.linspace(0.02, 2, 5000).double()
    codes = torch.round(values[:, None] / tried[:, :, None]).clamp(max=top)
    grid = (values[:, None] - codes * tried[:, :, None]).square().sum(2).amin(1)
    codes = torch.round(values / exact[:, None]).clamp(max=top)
    own = (values - codes * exact[:, None]).square().sum(1)
    assert bool((own <= grid + 1e-12).all())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("cols", [9, 700])
def test_a_weight_on_a_grid_stays_as_it_is(bits, cols):
    weight = torch.randn(6, cols, generator=seeded(4))
    encoding = fit_encoding(weight, bits)
    levels = encoding.nearest(weight)
    again = fit_encoding(levels, bits)
    assert torch.equal(again.nearest(levels), levels)


def test_least_squares_is_better_than_the_largest_value():
    weight = torch.randn(8, 100, generator=seeded(5))
    best = squared_error(weight, fit_encoding(weight, 4))
    plain = squared_error(weight, fit_encoding(weight, 4, kind="max"))
    assert bool((best < plain).all())


def test_the_largest_value_is_the_largest_level():
    weight = torch.tensor([[0.5, -3.0], [0.25, 0.15]])
    encoding = fit_encoding(weight, 3, kind="max")
    assert encoding.codes(weight).tolist() == [[0, -3], [3, 2]]
    assert encoding.scale[:, 0].tolist() == pytest.approx([1.0, 0.25 / 3], rel=1e-4)


def test_columns_that_count_more_are_fitted_better():
    weight = torch.tensor([[1.0, 0.37, 0.61, 0.83, 0.29]])
    heavy = torch.tensor([1.0, 1000.0, 1.0, 1.0, 1.0])
    plain, weighted = fit_encoding(weight, 3), fit_encoding(weight, 3, column_weights=heavy)
    off = [(e.nearest(weight) - weight).abs()[0, 1] for e in (plain, weighted)]
    assert float(off[1]) < float(off[0])
    same = fit_encoding(weight, 3, column_weights=torch.full((1, 5), 7.0))
    assert torch.equal(same.scale, plain.scale)
    # Nothing counts: then everything does, the same.
    assert torch.equal(fit_encoding(weight, 3, column_weights=torch.zeros(5)).scale, plain.scale)


@pytest.mark.parametrize("cols", [40, 3000])
def test_the_search_heeds_the_weights_of_columns(cols):
    weight = torch.randn(4, cols, generator=seeded(6))
    counts = torch.rand(cols, generator=seeded(7)) ** 4
    own = fit_encoding(weight, 8, column_weights=counts)
    plain = fit_encoding(weight, 8)
    better = squared_error(weight, own, counts) <= squared_error(weight, plain, counts) * 1.0001
    assert bool(better.all())


def test_blocks_have_a_scale_each_and_the_last_may_be_short():
    weight = torch.randn(3, 20, generator=seeded(8))
    encoding = fit_encoding(weight, 4, block=8)
    assert encoding.scale.shape == (3, 3)
    for first in (0, 8, 16):
        part = fit_encoding(weight[:, first : first + 8], 4)
        assert torch.equal(part.scale[:, 0], encoding.scale[:, first // 8])
    assert fit_encoding(weight, 4, block=32).scale.shape == (3, 1)
    weighted = fit_encoding(weight, 4, block=8, column_weights=torch.ones(20))
    assert torch.equal(weighted.scale, encoding.scale)


def test_transposed_convolutions_have_their_rows_in_the_second_dimension():
    weight = torch.randn(3, 5, 2, 2, generator=seeded(9))
    encoding = fit_encoding(weight, 5, axis=1)
    assert encoding.scale.shape == (5, 1)
    turned = fit_encoding(weight.transpose(0, 1).contiguous(), 5)
    assert torch.equal(turned.scale, encoding.scale)
    assert encoding.holds(encoding.nearest(weight))


@pytest.mark.parametrize("kind", ["mse", "max"])
def test_rows_of_zeros_have_a_scale_like_the_others(kind):
    weight = torch.randn(5, 12, generator=seeded(10)) / 50
    weight[1] = 0.0
    weight[3] = 1e-38
    scale = fit_encoding(weight, 8, kind=kind).scale[:, 0]
    used = scale[[0, 2, 4]]
    assert float(scale[1]) == float(scale[3]) == float(used.median())


def test_a_weight_of_zeros_has_neither_a_tiny_scale_nor_a_large_one():
    encoding = fit_encoding(torch.zeros(3, 4), 8)
    assert bool(((encoding.scale > 1e-6) & (encoding.scale < 1e-2)).all())
    assert encoding.holds(torch.zeros(3, 4))


def test_half_precision_weights_keep_to_their_grid():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weight = torch.randn(4, 30, generator=seeded(11)).to(dtype)
        encoding = fit_encoding(weight, 8)
        levels = encoding.nearest(weight)
        assert levels.dtype == dtype
        assert encoding.holds(levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    weight = torch.ones(3, 4)
    weight[1, 2] = value
    with pytest.raises(PreconditionError, match="layer4: 1 of 12 weights are not finite"):
        fit_encoding(weight, 8, name="layer4")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1}, "no width"),
        ({"bits": 9}, "no width"),
        ({"block": 0}, "number of columns"),
        ({"block": 2.5}, "number of columns"),
        ({"kind": "mean"}, "neither"),
        ({"column_weights": torch.ones(3)}, "column weights of shape"),
        ({"column_weights": -torch.ones(4)}, "negative"),
        ({"column_weights": torch.full((4,), float("nan"))}, "not finite"),
        ({"column_weights": torch.ones(2, 2, 4)}, "column weights of shape"),
    ],
)
def test_other_arguments_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        fit_encoding(torch.ones(3, 4), **{"bits": 8} | options)
