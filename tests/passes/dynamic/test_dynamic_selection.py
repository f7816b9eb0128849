from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, TrainingError
from passes.dynamic.selection import (
    _kth_by_topk,
    kth_smallest,
    least,
    numbers_of,
    require_mask,
    same_length,
    spread,
    whole,
)

NUMBERS = st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.1, 0.5, 0.5, 3.0, 1e30]), max_size=30)


@settings(max_examples=60)
@given(numbers=NUMBERS, count=st.integers(-1, 32))
def test_least_is_the_start_of_a_stable_sort(numbers, count):
    values = torch.tensor(numbers)
    expected = torch.zeros(len(numbers), dtype=torch.bool)
    expected[torch.argsort(values, stable=True)[: max(count, 0)]] = True
    assert torch.equal(least(values, count), expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64])
def test_kth_smallest_by_either_way_and_of_any_type(kind):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-5, 5, (37,), generator=generator).to(kind)
    for rank in range(1, 38):
        expected = values.sort().values[rank - 1]
        for found in (kth_smallest(values, rank), _kth_by_topk(values, rank)):
            assert found.dtype == kind and found.shape == () and found == expected


def test_least_of_keys_of_all_64_bits():
    values = torch.tensor([1 << 62, -(1 << 63), (1 << 63) - 1, -1, (1 << 62) + 1])
    assert least(values, 3).tolist() == [True, True, False, True, False]


def test_a_large_case_agrees_with_a_full_sort():
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 500, 50_000) / 7)
    for count in (1, 499, 25_000, 49_999):
        expected = torch.zeros(50_000, dtype=torch.bool)
        expected[values.argsort(stable=True)[:count]] = True
        assert torch.equal(least(values, count), expected)


def test_numbers_of_reads_only_what_is_marked():
    values = torch.tensor([1.0, torch.nan, -2.0], requires_grad=True)
    mask = torch.tensor([True, False, True])
    assert numbers_of(values, mask).tolist() == [1.0, -2.0]
    assert not numbers_of(values, mask).requires_grad
    assert numbers_of(values.bfloat16(), mask).dtype == torch.float32
    with pytest.raises(TrainingError, match=r"conv1: 1 of 3 magnitudes.*diverged"):
        numbers_of(values, torch.ones(3, dtype=torch.bool), "conv1")
    with pytest.raises(TrainingError, match="2 of 2 scores"):
        numbers_of(torch.tensor([torch.inf, -torch.inf]), torch.ones(2) > 0, "", "scores")


def test_masks_that_do_not_fit_are_refused():
    for mask in (torch.ones(2) > 0, torch.ones(3), torch.ones(1, 3) > 0):
        with pytest.raises(ArgumentError, match="beside a mask"):
            require_mask(torch.ones(3), mask, "fc", "magnitudes")
    require_mask(torch.ones(3), torch.ones(3) > 0, "fc", "magnitudes")


def test_spread_puts_a_choice_back():
    mask = torch.tensor([False, True, True, False, True])
    assert spread(torch.tensor([True, False, True]), mask).tolist() == [
        False,
        True,
        False,
        False,
        1,
    ]


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ArgumentError, match="whole number from 0"):
        whole(value, "count")
    assert whole(np.int64(3), "count", 3) == 3


def test_lists_of_different_lengths_are_refused():
    same_length(masks=[1, 2], floors=None, blocks=(3, 4))
    with pytest.raises(ArgumentError, match="masks 2, blocks 3"):
        same_length(masks=[1, 2], blocks=[1, 2, 3])
