from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.joint.codebook import Codebook

FLOATS = st.floats(-4, 4, width=32).filter(lambda v: v != 0)


@st.composite
def codebooks(draw):
    levels = sorted(set(draw(st.lists(FLOATS, min_size=1, max_size=8))))
    reserved = draw(st.booleans())
    if not reserved and draw(st.booleans()):
        levels = sorted({*levels[:7], 0.0})
    return Codebook(torch.tensor(levels), 3, reserved_zero=reserved)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    codebook=codebooks(),
    values=st.lists(st.floats(-5, 5, width=32), max_size=20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_nearest_is_nearest_and_stays(codebook, values, dtype):
    values = torch.tensor(values, dtype=dtype)
    found = codebook.nearest(values)
    assert found.dtype == dtype
    table = codebook.table.double()
    distances = (values.double()[:, None] - table).abs()
    if len(values):
        assert torch.equal((values.double() - found.double()).abs(), distances.amin(1))
    assert torch.equal(codebook.nearest(found), found)
    codes = codebook.codes(values)
    assert codes.dtype == torch.int64
    assert torch.equal(codebook.decode(codes).to(dtype), found)
    if codebook.reserved_zero:
        assert not found[values == 0].any()
        assert torch.equal(codes == 0, found == 0)
        coded = found[codes > 0].float()
        assert torch.equal(codebook.levels[codes[codes > 0] - 1], coded)


def test_ties_go_to_the_smaller_magnitude():
    codebook = Codebook(torch.tensor([-3.0, -1.0, 1.0, 3.0]), 2)
    ties = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert codebook.nearest(ties).tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0]
    assert codebook.nearest(ties.double()).tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0]
    beyond = torch.nextafter(ties, ties * 2)
    assert codebook.nearest(beyond).tolist() == [-3.0, -1.0, 0.0, 1.0, 3.0]


def test_neighbouring_floats_are_told_apart():
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    pair = torch.stack([low, high])
    assert torch.equal(Codebook(pair, 1).nearest(pair), pair)
    assert torch.equal(Codebook(-pair.flip(0), 1).nearest(-pair), -pair)


def test_a_uniform_grid_keeps_its_mask():
    codebook = Codebook(torch.tensor([-1.0, 1.0]), 1, "uniform", scale=1.0)
    values = torch.tensor([1e-9, -1e-9, 0.0, -0.0, 5.0])
    assert codebook.nearest(values).tolist() == [1.0, -1.0, 0.0, 0.0, 1.0]
    assert codebook.codes(values).tolist() == [2, 1, 0, 0, 2]


def test_half_precision_stays_put_and_shapes_are_kept():
    codebook = Codebook(torch.tensor([-0.1, 0.3, 0.7]), 2)
    values = torch.linspace(-1, 1, 24).reshape(2, 3, 4).to(torch.bfloat16)
    found = codebook.nearest(values)
    assert found.shape == values.shape
    assert found.dtype == torch.bfloat16
    assert torch.equal(codebook.nearest(found), found)


def test_no_level_means_zero_or_nothing():
    assert Codebook(torch.empty(0), 1).nearest(torch.tensor([2.0])).tolist() == [0.0]
    with pytest.raises(ArgumentError, match="no level"):
        Codebook(torch.empty(0), 1, reserved_zero=False).nearest(torch.tensor([2.0]))


@pytest.mark.parametrize(
    "levels",
    [
        torch.tensor([1.0, 1.0]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([1.0, float("inf")]),
        torch.tensor([float("nan")]),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([[1.0]]),
        torch.tensor([1.0], dtype=torch.float64),
    ],
)
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ArgumentError, match="levels"):
        Codebook(levels, 1)


def test_error_is_the_sum_of_squared_differences():
    codebook = Codebook(torch.tensor([-1.0, 2.0]), 1)
    assert codebook.error(torch.tensor([0.0, 0.25, 1.5, -3.0])) == 0.0625 + 0.25 + 4.0
