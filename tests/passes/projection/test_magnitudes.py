from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import PreconditionError
from passes.projection.magnitudes import BINS, bin_edges, gather, histogram, ranked, top_mask

VALUES = st.one_of(
    st.floats(-10, 10, width=32), st.sampled_from([0.0, -0.0, 0.5, -0.5, 1e-44, -3e-39, 1e-310])
)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    return torch.tensor(draw(st.lists(VALUES, min_size=1, max_size=40)), dtype=dtype)


def ranking(weight):
    """Flat indices by descending magnitude, ties by index, zeros left out."""
    flat = weight.double().abs().reshape(-1)
    return torch.argsort(flat, descending=True, stable=True)[: int((flat > 0).sum())]


@pytest.mark.slow
@settings(max_examples=200)
@given(weight=tensors())
def test_histogram_counts_every_nonzero_in_the_bounds_of_its_bin(weight):
    counts = histogram(weight)
    magnitude = weight.double().abs().numpy()
    assert counts.nonzeros == counts.counts.sum() == np.count_nonzero(magnitude)
    assert counts.counts.min() >= 0
    bins = np.flatnonzero(counts.counts)
    low, high = bin_edges(bins)
    for b, least, most in zip(bins, low, high, strict=True):
        index, found = gather(weight, int(b), int(b))
        assert len(index) == counts.counts[b]
        assert torch.equal(weight.double().abs()[index], found)
        assert least <= float(found.min()) <= float(found.max()) <= most


@pytest.mark.slow
@settings(max_examples=200)
@given(weight=tensors(), count=st.integers(-1, 45))
def test_top_mask_is_that_of_a_stable_sort(weight, count):
    expected = torch.zeros(weight.numel(), dtype=torch.bool)
    expected[ranking(weight)[: max(count, 0)]] = True
    assert torch.equal(top_mask(weight, count), expected)
    assert torch.equal(top_mask(weight, count, histogram(weight)), expected)


@pytest.mark.slow
@settings(max_examples=200)
@given(weight=tensors(), start=st.integers(0, 45), length=st.integers(0, 45))
def test_ranked_is_a_slice_of_a_stable_sort(weight, start, length):
    index, magnitude = ranked(weight, histogram(weight), start, start + length)
    expected = ranking(weight)[start : start + length]
    assert torch.equal(index, expected)
    assert torch.equal(magnitude, weight.double().abs()[expected])


@settings(max_examples=100)
@given(weight=tensors())
def test_bin_of_every_rank(weight):
    counts = histogram(weight)
    for rank, index in enumerate(ranking(weight).tolist()):
        bin_, above = counts.bin_of_rank(rank)
        assert index in gather(weight, bin_, bin_)[0].tolist()
        assert above == counts.counts[bin_ + 1 :].sum()
        assert above <= rank < above + counts.counts[bin_]


def test_shapes_and_strides_are_kept():
    weight = torch.arange(-12.5, 11.0).view(4, 6).t()
    assert not weight.is_contiguous()
    mask = top_mask(weight, 5)
    assert mask.shape == weight.shape
    assert sorted(weight[mask].tolist()) == [-12.5, -11.5, -10.5, -9.5, 10.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_not_finite(bad, dtype):
    weight = torch.tensor([[1.0, bad], [bad, 2.0]], dtype=dtype)
    with pytest.raises(PreconditionError, match=r"^features\.0: 2 of 4 weights are NaN") as caught:
        histogram(weight, "features.0")
    assert "no budget can be proved" in caught.value.remedy


def test_beyond_float32_is_refused_and_its_largest_value_is_not():
    with pytest.raises(PreconditionError, match="1 of 2 weights"):
        histogram(torch.tensor([1.0, 1e39], dtype=torch.float64))
    largest = torch.tensor([torch.finfo(torch.float32).max, 1.0])
    assert histogram(largest).nonzeros == 2
    assert top_mask(largest, 1).tolist() == [True, False]


def test_there_are_as_many_bins_as_leading_patterns():
    assert histogram(torch.ones(3)).counts.shape == (BINS,)
