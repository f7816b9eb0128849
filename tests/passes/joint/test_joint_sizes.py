from __future__ import annotations

import math

import pytest
import torch

from energy_model.errors import ArgumentError
from passes.joint.sizes import (
    authors_bits,
    code_entropy,
    entropy_bits,
    nominal_bits,
    position_bits,
)


def test_positions_cost_their_entropy():
    assert position_bits(8, 0) == position_bits(8, 8) == position_bits(0, 0) == 0.0
    assert position_bits(8, 4) == 8.0
    assert position_bits(100, 7) == pytest.approx(position_bits(100, 93))
    # Published: LeNet-5 at 6,975 bits with 3, 135, 2160 and 27 nonzeros takes 20,859 more.
    layers = zip((500, 25_000, 400_000, 5_000), (3, 135, 2160, 27), strict=True)
    assert sum(position_bits(n, k) for n, k in layers) == pytest.approx(20_859, abs=1)
    for n, k in ((3, 4), (3, -1)):
        with pytest.raises(ArgumentError, match="nonzeros among"):
            position_bits(n, k)


def test_nominal_bits_are_bits_times_nonzeros():
    assert nominal_bits([torch.tensor([1.0, 0.0, 2.0]), torch.zeros(3)], [3, 8]) == 6
    with pytest.raises(ArgumentError, match="for 2 layers"):
        nominal_bits([torch.ones(1)] * 2, [1])


def test_the_authors_count_distinct_rounded_values():
    values = torch.tensor([0.0, 0.5, 0.5 + 1e-8, -0.25, 1.0, 1.0])
    assert authors_bits(values) == math.log2(3) * 5
    assert authors_bits(torch.tensor([0.0, 2.0, 2.0])) == 0.0
    assert authors_bits(torch.zeros(3)) == 0.0
    assert authors_bits(torch.empty(0)) == 0.0


def test_the_entropy_bound_counts_positions_codes_and_levels():
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, -1.0, -1.0])
    assert entropy_bits(values) == 8 + 4 + 64
    assert entropy_bits(torch.zeros(4)) == 0.0
    skewed = torch.tensor([0.0] * 4 + [1.0] * 3 + [-1.0])
    assert entropy_bits(skewed) == pytest.approx(8 + 64 + 4 * 0.8112781)


def test_symbols_that_do_not_occur_cost_nothing():
    assert code_entropy(torch.tensor([2, 0, 2])) == 4.0
    assert code_entropy(torch.empty(0)) == 0.0
