"""Splits by class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.zoo.data.split import balanced_subset, stratified_split
from energy_model.errors import ArgumentError

LABELS = st.lists(st.integers(0, 4), min_size=10, max_size=200).map(np.array)


@given(LABELS, st.integers(0, 5))
def test_a_split_is_disjoint_complete_and_by_class(labels, seed):
    train, valid = stratified_split(labels, seed)
    assert np.array_equal(np.sort(np.concatenate([train, valid])), np.arange(len(labels)))
    assert np.array_equal(valid, np.unique(valid))
    assert len(valid) == len(labels) // 10
    for label in np.unique(labels):
        share = np.count_nonzero(labels == label) / 10
        assert np.count_nonzero(labels[valid] == label) in (np.floor(share), np.floor(share) + 1)


def test_a_split_follows_its_seed():
    labels = np.arange(1000) % 10
    first, again, other = (stratified_split(labels, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_split_of_published_results_stays_what_it_is():
    # Trained bases and committed tables rest on it: another split would train on their `valid`.
    assert stratified_split(np.arange(60) % 3, seed=0)[1].tolist() == [12, 23, 34, 35, 49, 57]


@given(LABELS, st.integers(1, 40), st.integers(0, 5))
def test_a_subset_has_the_same_number_of_every_class(labels, count, seed):
    rows = stratified_split(labels, seed)[0]
    classes = np.unique(labels)
    wanted = [count // len(classes) + (i < count % len(classes)) for i in range(len(classes))]
    there = [np.count_nonzero(labels[rows] == label) for label in classes]
    if any(want > have for want, have in zip(wanted, there, strict=True)):
        with pytest.raises(ArgumentError, match="smaller subset"):
            balanced_subset(labels, rows, count, seed)
        return
    chosen = balanced_subset(labels, rows, count, seed)
    assert set(chosen) <= set(rows)
    assert len(set(chosen)) == count
    assert [np.count_nonzero(labels[chosen] == label) for label in classes] == wanted


def test_a_smaller_subset_is_part_of_a_larger_one():
    labels = np.arange(1000) % 10
    small, large = (balanced_subset(labels, np.arange(1000), n, seed=0) for n in (100, 500))
    assert set(small) < set(large)
