"""The choice of float layers is the cheapest of all sets, by brute force."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.layer_choice import Border, choose_floating, total_time
from energy_model.errors import ArgumentError


def subsets(names):
    return map(
        frozenset, chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))
    )


times = st.integers(0, 20).map(float)


@st.composite
def problems(draw):
    layers = "abcdef"[: draw(st.integers(1, 6))]
    floats = {name: draw(times) for name in layers}
    integers = {name: draw(times) for name in layers if draw(st.integers(0, 4))}
    borders = []
    for _ in range(draw(st.integers(0, 6))):
        producer = draw(st.sampled_from(layers))
        others = [name for name in layers if name != producer]
        if others:
            read = draw(st.lists(st.sampled_from(others), min_size=1, unique=True))
            borders.append(Border(producer, tuple(read), draw(times), draw(times)))
    return floats, integers, borders


@pytest.mark.slow
@settings(max_examples=300)
@given(problems())
def test_no_other_set_takes_less(problem):
    floats, integers, borders = problem
    chosen = choose_floating(floats, integers, borders, margin=0)
    assert floats.keys() - integers.keys() <= chosen <= floats.keys()
    found = total_time(chosen, floats, integers, borders)
    totals = {s: total_time(s, floats, integers, borders) for s in subsets(floats)}
    assert found == min(totals.values())
    # Of equal sets the smallest: leaving any layer out of it costs more.
    forced = floats.keys() - integers.keys()
    best = {s | forced for s, total in totals.items() if total == found}
    assert chosen == frozenset.intersection(*best)


def test_conversions_decide():
    floats, integers = {"a": 1.0, "b": 2.0, "c": 1.0}, {"a": 2.0, "b": 1.9, "c": 2.0}
    assert choose_floating(floats, integers) == {"a", "c"}
    chain_of = [Border("a", ("b",), 0.2, 0.2), Border("b", ("c",), 0.2, 0.2)]
    assert choose_floating(floats, integers, chain_of) == {"a", "b", "c"}
    dear = [Border("a", ("b", "c"), 9.0, 9.0)]
    assert choose_floating(floats, {**integers, "b": 0.1, "a": 1.2}, dear) == set()


def test_a_small_gain_is_noise():
    assert choose_floating({"a": 0.97}, {"a": 1.0}) == set()
    assert choose_floating({"a": 0.97}, {"a": 1.0}, margin=0) == {"a"}
    assert choose_floating({"a": 0.90}, {"a": 1.0}) == {"a"}
    assert choose_floating({"a": 1.0}, {"a": 1.0}, margin=0) == set()


@pytest.mark.parametrize(
    ("integers", "borders", "told"),
    [
        ({"b": 1.0}, (), "no float time of b"),
        ({"a": 1.0}, (Border("z", ("a",), 0, 0),), "no float time of z"),
        ({"a": -1.0}, (), "a time of -1"),
        ({"a": float("nan")}, (), "a time of nan"),
        ({"a": 1.0}, (Border("a", (), float("inf"), 0),), "a time of inf"),
    ],
)
def test_times_that_cannot_be(integers, borders, told):
    with pytest.raises(ArgumentError, match=told):
        choose_floating({"a": 1.0}, integers, borders)
