"""Slots against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.structure.slots import ALWAYS, Slots, along, compact, first_of_groups, joined, varying

pairs = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20)


@given(pairs)
def test_roots_are_the_smallest_of_what_is_tied(ties):
    slots = Slots()
    slots.fresh(12)
    expected = np.arange(12)
    for a, b in ties:
        slots.unite(np.array([a]), np.array([b]), "test")
    for _ in range(12):  # by repeated relaxation
        for a, b in ties:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert slots.roots().tolist() == expected.tolist()


def test_tied_to_what_stays_is_frozen():
    slots = Slots()
    fresh = slots.fresh(3)
    result = slots.unite(fresh, np.array([ALWAYS, ALWAYS, fresh[2]]), "a shortcut stays")
    assert result.tolist() == fresh.tolist()
    assert slots.reasons(slots.roots()) == {0: "a shortcut stays", 1: "a shortcut stays"}


def test_the_first_reason_is_told_and_reaches_what_is_tied():
    slots = Slots()
    a, b = slots.fresh(2), slots.fresh(2)
    slots.unite(a, b, "")
    slots.freeze(b[1:], "first")
    slots.freeze(a, "second")
    assert slots.reasons(slots.roots()) == {1: "first", 0: "second"}


def test_couple_ties_along_one_dimension():
    slots = Slots()
    grid = slots.fresh(6).reshape(2, 3)
    assert slots.couple(grid, 0, "").tolist() == [[0, 1, 2]]
    assert slots.roots().tolist() == [0, 1, 2, 0, 1, 2]


def test_groups_are_tied_position_by_position():
    slots = Slots()
    assert first_of_groups(slots.fresh(6), 3, slots, "").tolist() == [0, 1]
    assert slots.roots().tolist() == [0, 1, 0, 1, 0, 1]


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_compact_keeps_every_element(rows, columns, data):
    bits = st.lists(st.integers(0, 1), min_size=rows * columns, max_size=rows * columns)
    values = data.draw(bits)
    full = np.array(values, dtype=np.int64).reshape(rows, columns)
    small = compact(full)
    assert np.array_equal(np.broadcast_to(small, full.shape), full)
    for dim in varying(small):
        assert not (small == small.take([0], dim)).all()


@pytest.mark.parametrize("dim", [1, -3])
def test_join_is_concatenation(dim):
    a, b = along(np.arange(2), 1, 4), np.full((1, 1, 1, 1), ALWAYS)
    found = joined([a, b], [(1, 2, 5, 5), (1, 3, 5, 5)], dim)
    assert found.shape == (1, 5, 1, 1)
    assert found.ravel().tolist() == [0, 1, -1, -1, -1]
