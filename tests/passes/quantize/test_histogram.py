"""Streaming histograms against numpy's quantiles, on values of any magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_nets import seeded

from passes.quantize.histogram import Histogram


def of(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(torch.as_tensor(batch))
    return histogram


def values(kind, count=20_000):
    normal = torch.randn(count, generator=seeded(1))
    return {
        "normal": normal,
        "relu": normal.clamp(min=0),
        "shifted": normal * 0.01 + 40,
        "heavy": normal / (torch.rand(count, generator=seeded(2)) + 1e-4),
        "tiny": normal * 1e-9,
        "negative": -normal.abs() - 3,
    }[kind]


@pytest.mark.parametrize("kind", ["normal", "relu", "shifted", "heavy", "tiny", "negative"])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9, 0.999, 1.0])
def test_quantiles_are_those_of_numpy_up_to_a_bin(kind, share):
    x = values(kind)
    expected = float(np.quantile(x.numpy(), share, method="inverted_cdf"))
    assert of(x).quantile(share) == pytest.approx(expected, rel=2**-8, abs=2**-40)
    expected = float(np.quantile(x.abs().numpy(), share, method="inverted_cdf"))
    assert of(x).magnitude(share) == pytest.approx(expected, rel=2**-8, abs=2**-40)


@settings(max_examples=50)
@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=30), st.floats(0, 1))
def test_a_quantile_is_no_smaller_than_its_share_and_within_the_range(given_values, share):
    x = torch.tensor(given_values)
    found = of(x)
    quantile = found.quantile(share)
    assert float(x.min()) <= quantile <= float(x.max())
    # Values below 2^-40 count as zeros.
    assert int((x <= quantile + 2**-40).sum()) >= min(share * len(x), len(x))
    assert (found.low, found.high, found.total) == (float(x.min()), float(x.max()), len(x))


def test_batches_may_come_in_any_cut_and_order():
    x = values("heavy", 999)
    whole, parts = of(x), of(x[500:].view(-1, 1), x[:3], torch.empty(0), x[3:500])
    assert torch.equal(whole.counts, parts.counts)
    assert (whole.low, whole.high, whole.total) == (parts.low, parts.high, parts.total)


def test_memory_does_not_grow():
    found = of(values("normal"))
    before = found.counts.shape
    found.add(values("heavy") * 1e20)
    assert found.counts.shape == before
    assert int(found.counts.sum()) == found.total == 40_000


def test_values_of_bins_are_near_what_they_hold():
    x = torch.tensor([0.0, -0.0, 1.0, 1.001, -5.0, 1e-20, 3e18])
    middle, counts = of(x).occupied()
    assert counts.tolist() == [1, 3, 2, 1]
    assert middle.tolist() == pytest.approx([-5.0, 0.0, 1.0, 3e18], rel=2**-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_told(bad):
    found = of([1.0, bad, 2.0], [bad])
    assert found.strange == 2


def test_nothing_is_zero():
    assert of().quantile(0.5) == 0.0
    assert of(torch.empty(0, 3)).total == 0


def test_half_and_double_precision_count_as_well():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.tensor([-2.0, 0.5, 3.0], dtype=dtype)
        assert of(x).quantile(1.0) == 3.0
