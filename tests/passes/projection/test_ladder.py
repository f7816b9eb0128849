from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.projection.ladder import Step, build_ladder


def test_steps_of_forced_and_dear_weights():
    ladder = build_ladder(10, [(4, (2,)), (10, (5,))], forced=2)
    assert ladder.steps == (Step(2, (2,), True), Step(4, (2,)), Step(10, (5,)))
    ladder = build_ladder(10, [(4, (2,)), (10, (5,))], forced=6)
    assert ladder.steps == (Step(4, (2,), True), Step(6, (5,), True), Step(10, (5,)))


@pytest.mark.parametrize(
    ("size", "ends"), [(3, [3]), (4, [4]), (5, [4, 5])], ids=["below", "at", "above"]
)
def test_size_around_the_cache(size, ends):
    ladder = build_ladder(size, [(4, (2,)), (size, (5,))])
    assert [step.end for step in ladder.steps] == ends
    assert ladder.size == size


@given(
    size=st.integers(1, 30), cache=st.integers(0, 40), forced=st.integers(0, 40),
    first=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)  # fmt: skip
def test_use_is_the_sum_of_the_charges(size, cache, forced, first, extra):
    beyond = tuple(a + b for a, b in zip(first, extra, strict=True))
    ladder = build_ladder(size, [(cache, first), (size, beyond)], forced=forced)
    assert ladder.size == size
    total = (0, 0)
    for rank in range(size):
        assert ladder.used(rank) == total
        charges = ladder.charges_at(rank)
        assert charges == (first if rank < cache else beyond)
        total = tuple(a + b for a, b in zip(total, charges, strict=True))
    assert ladder.used(size) == ladder.used(size + 5) == total
    marked = [rank for rank in range(size) if _step(ladder, rank).forced]
    assert marked == list(range(min(forced, size)))


def _step(ladder, rank):
    return next(step for step in ladder.steps if rank < step.end)


def test_no_charge_beyond_the_layer():
    with pytest.raises(IndexError, match="4"):
        build_ladder(4, [(4, (1,))]).charges_at(4)
