"""The index of tied weights: fixed for all time, balanced or uniform, never stored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.dynamic.hashed import balanced_index, bucket_count, bucket_sizes, hashed_index
from passes.dynamic.random_keys import key_of

KEY = key_of(7, 0, "layer")
MASK = (1 << 64) - 1


def splitmix(key, n):
    """SplitMix64 in Python's own whole numbers."""
    found = []
    for i in range(n):
        z = (key + (i + 1) * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_the_hash_is_splitmix_of_the_position():
    expected = [(z >> 1) % 37 for z in splitmix(KEY, 500)]
    index = hashed_index(500, 37, KEY)
    assert index.dtype == torch.int32
    assert index.tolist() == expected


def test_dealing_is_in_the_order_of_the_keys():
    signed = [z - (1 << 64) if z >> 63 else z for z in splitmix(KEY, 500)]
    expected = [0] * 500
    for turn, position in enumerate(sorted(range(500), key=signed.__getitem__)):
        expected[position] = turn % 37
    index = balanced_index(500, 37, KEY)
    assert index.dtype == torch.int32
    assert index.tolist() == expected


def test_golden_indices():
    assert KEY == -855485115469399716  # other processes and platforms draw from the same stream
    assert hashed_index(12, 5, 1).tolist() == [2, 4, 0, 2, 0, 4, 2, 1, 0, 0, 3, 0]
    assert balanced_index(12, 5, 1).tolist() == [1, 3, 2, 1, 0, 4, 1, 0, 3, 0, 4, 2]


@settings(max_examples=60)
@given(st.integers(1, 2000), st.data(), st.integers(-(2**63), 2**63 - 1))
def test_balanced_entries_differ_by_one_at_most(n, data, key):
    buckets = data.draw(st.integers(1, n))
    sizes = bucket_sizes(balanced_index(n, buckets, key), buckets)
    assert int(sizes.sum()) == n
    assert int(sizes.max()) - int(sizes.min()) <= 1
    index = hashed_index(n, buckets, key)
    assert 0 <= int(index.min()) <= int(index.max()) < buckets


def test_hashed_entries_are_uniform():
    sizes = bucket_sizes(hashed_index(100_000, 100, KEY), 100).double()
    chi_squared = float(((sizes - 1000) ** 2 / 1000).sum())
    assert 58 < chi_squared < 149  # 99 degrees of freedom, 0.1 % on either side


def test_other_keys_give_other_indices():
    other = key_of(8, 0, "layer")
    assert not torch.equal(hashed_index(500, 37, KEY), hashed_index(500, 37, other))
    assert not torch.equal(balanced_index(500, 37, KEY), balanced_index(500, 37, other))


def test_sizes_of_banks():
    assert bucket_count(1000, 0.1) == 100
    assert bucket_count(3, 0.01) == 1
    assert bucket_count(7, 1.0) == 7
    for density in (0, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="density"):
            bucket_count(10, density)


@pytest.mark.parametrize("make", [balanced_index, hashed_index])
@pytest.mark.parametrize(("n", "buckets"), [(0, 1), (10, 0), (10, 11), (10, 2.5), (10, -1)])
def test_sizes_that_cannot_be(make, n, buckets):
    with pytest.raises(ArgumentError, match="tied weights"):
        make(n, buckets, 0)
