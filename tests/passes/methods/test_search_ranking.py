"""Who is best, the front, and whose weights are still needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import done, failed, row

from energy_model.errors import ArgumentError
from passes.methods.embedding.ranking import best_rows, last_rows, needed_weights, pareto_front


def places(rows):
    return [r.place for r in rows]


def test_the_last_rung_of_each_counts():
    rows = [done(0, 0), done(0, 0, 1), row(0, 0, 2), done(0, 1), row(0, 2), failed(0, 3)]
    rows += [done(0, 4), failed(0, 4, 1)]
    assert places(last_rows(rows)) == [(0, 0, 1), (0, 1, 0)]
    assert last_rows([]) == []


def test_the_best_are_those_who_climbed_highest():
    rows = [
        done(0, 0, 0, reward=0.9),
        done(0, 1, 0, reward=0.1),
        done(0, 1, 1, reward=0.2),
        done(1, 0, 0, reward=0.9),
        done(1, 0, 1, reward=0.3),
        done(1, 1, 1, reward=0.3),
        failed(1, 2),
    ]
    assert places(best_rows(rows, 9)) == [(1, 0, 1), (1, 1, 1), (0, 1, 1), (0, 0, 0)]
    assert places(best_rows(rows, 1)) == [(1, 0, 1)]
    assert places(best_rows([done(0, 0, reward=-1.0), done(0, 1, reward=-0.5)], 1)) == [(0, 1, 0)]


def test_the_front_by_hand():
    points = [(10, 0.5), (20, 0.5), (20, 0.7), (30, 0.6), (40, 0.9), (40, 0.9), (5, 0.2)]
    rows = [done(0, slot, accuracy=a, costs={"params": c}) for slot, (c, a) in enumerate(points)]
    assert places(pareto_front(rows, "params")) == [(0, s, 0) for s in (6, 0, 2, 4)]
    assert pareto_front([], "params") == []
    with pytest.raises(ArgumentError, match="no cost 'macs'"):
        pareto_front(rows, "macs")


def test_the_front_compares_those_that_were_trained_as_long():
    rows = [
        done(0, 0, 0, accuracy=0.99, costs={"params": 1}),
        done(0, 1, 0, accuracy=0.4, costs={"params": 5}),
        done(0, 1, 1, accuracy=0.5, costs={"params": 5}),
    ]
    assert places(pareto_front(rows, "params")) == [(0, 1, 1)]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    rows = [
        done(0, slot, accuracy=a / 8, costs={"params": c}) for slot, (c, a) in enumerate(points)
    ]
    front = pareto_front(rows, "params")
    chosen = [(r.costs["params"], r.accuracy * 8) for r in front]

    def dominated(point):
        return any(c <= point[0] and a >= point[1] and (c, a) != point for c, a in points)

    assert sorted(chosen) == sorted({point for point in points if not dominated(point)})


def test_weights_of_the_best_and_of_those_who_climb():
    old = [done(0, slot, 2, reward=0.1 * slot) for slot in range(6)]
    now = [done(1, 0), done(1, 0, 1), row(1, 0, 2), done(1, 1), failed(1, 2), row(1, 3)]
    best = {old[5].key, old[4].key}
    assert needed_weights([*old, *now], 2) == {*best, now[1].key}
    assert needed_weights([*old, *now[:2], *now[3:]], 2) == best
    assert needed_weights([*old, *now], 9) == {*(r.key for r in old), now[1].key, now[3].key}
    assert needed_weights([], 2) == frozenset()
