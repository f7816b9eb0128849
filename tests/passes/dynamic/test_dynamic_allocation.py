from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.dynamic.allocation import block_shares, shares, survivors

WEIGHTS = st.one_of(
    st.just(0.0), st.integers(0, 20), st.floats(0, 1e300), st.sampled_from([0.1, 0.3, 5e-324])
)
SITES = st.lists(st.tuples(WEIGHTS, st.integers(0, 40)), max_size=7)
BLOCKS = st.sampled_from([1, 3, 9, 49])


def columns(rows, width):
    return [[row[i] for row in rows] for i in range(width)]


def ideal_shares(total, weights, caps):
    """Water-filling by its level: the `level` with `sum(min(cap, level * weight)) = total`."""
    weights = [Fraction(w) for w in weights]
    total = min(total, sum(caps))
    heavy = sum(c for w, c in zip(weights, caps, strict=True) if w)
    if total > heavy:  # what weighs nothing shares the rest equally
        rest = [0 if w else c for w, c in zip(weights, caps, strict=True)]
        light = ideal_shares(total - heavy, [1] * len(caps), rest)
        return [c if w else s for w, c, s in zip(weights, caps, light, strict=True)]
    pairs = [(w, c) for w, c in zip(weights, caps, strict=True) if w and c]
    for level in sorted({Fraction(c) / w for w, c in pairs}):
        if sum(min(c, level * w) for w, c in pairs) >= total:
            # Between the level before and this one the sum is linear.
            free = sum(w for w, c in pairs if c >= level * w)
            fixed = sum(c for w, c in pairs if c < level * w)
            level = (total - fixed) / free
            break
    else:
        level = Fraction(0)
    return [min(Fraction(c), level * w) for w, c in zip(weights, caps, strict=True)]


@settings(max_examples=100)
@given(rows=SITES, total=st.integers(0, 300))
@example(rows=[(1e300, 5), (5e-324, 5), (0.0, 5)], total=14)
def test_shares_are_exact_capped_and_within_one_of_the_ideal(rows, total):
    weights, caps = columns(rows, 2)
    found, ideal = shares(total, weights, caps), ideal_shares(total, weights, caps)
    assert sum(found) == min(total, sum(caps))
    assert all(0 <= g <= c for g, c in zip(found, caps, strict=True))
    assert all(abs(g - s) < 1 for g, s in zip(found, ideal, strict=True))
    # The largest remainders are those rounded up, ties to the first.
    order = sorted(range(len(ideal)), key=lambda i: (math.floor(ideal[i]) - ideal[i], i))
    up = [g > math.floor(s) for g, s in zip(found, ideal, strict=True)]
    assert [up[i] for i in order] == sorted((up[i] for i in order), reverse=True)


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(0, 40)), unique_by=lambda r: r[0], max_size=6
    ),
    total=st.integers(0, 200),
    seed=st.randoms(use_true_random=False),
)
def test_shares_move_with_their_sites(rows, total, seed):
    weights, caps = columns(rows, 2)
    ideal = ideal_shares(total, weights, caps)
    remainders = [s - math.floor(s) for s in ideal if s.denominator > 1]
    if len(set(remainders)) < len(remainders):
        return  # ties go by position
    order = list(range(len(rows)))
    seed.shuffle(order)
    moved = shares(total, [weights[i] for i in order], [caps[i] for i in order])
    assert moved == [shares(total, weights, caps)[i] for i in order]


@settings(max_examples=30)
@given(rows=SITES, total=st.integers(0, 300), scale=st.sampled_from([0.5, 2, 1024]))
def test_one_constant_in_all_weights_changes_nothing(rows, total, scale):
    weights, caps = columns(rows, 2)
    weights = [0 if w < 1e-100 else w for w in weights]  # halves of the smallest floats are not
    assert shares(total, [w * scale for w in weights], caps) == shares(total, weights, caps)


def test_ties_of_remainders_go_to_the_first_site():
    assert shares(5, [1, 1, 1], [9, 9, 9]) == [2, 2, 1]
    assert shares(1, [0.1, 0.1, 0.1], [9, 9, 9]) == [1, 0, 0]
    # 0.1 + 0.2 > 0.3 in floats; the exact numbers behind them decide, and here 0.3 is smaller.
    assert shares(1, [0.3, 0.1 + 0.2], [1, 1]) == [0, 1]


def test_full_layers_pass_their_surplus_on():
    # One tensor at density 0.99 with heavy inflow: 10 free of 1,000.
    assert shares(400, [990, 100, 300], [10, 900, 700]) == [10, 98, 292]
    assert shares(400, [990, 100, 300], [0, 0, 0]) == [0, 0, 0]
    assert shares(400, [0, 0, 0], [10, 900, 150]) == [10, 240, 150]
    assert shares(400, [5, 0, 0], [10, 900, 150]) == [10, 240, 150]
    assert shares(0, [1, 2], [3, 4]) == [0, 0]
    assert shares(9, [], []) == []


def test_many_sites_that_freeze_one_after_the_other():
    n = 300
    found = shares(n * n, [2.0**-i for i in range(n)], [3] * n)
    assert found == [3] * n
    assert sum(shares(450, [2.0**-i for i in range(n)], [3] * n)) == 450


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf])
def test_weights_that_are_none_are_refused(bad):
    with pytest.raises(ArgumentError, match="weights"):
        shares(3, [1.0, bad], [2, 2])


@pytest.mark.parametrize(
    "arguments", [(-1, [1], [1]), (1, [1], [-1]), (1, [1], [1, 2]), (1.5, [1], [1])]
)
def test_counts_that_are_none_are_refused(arguments):
    with pytest.raises(ArgumentError):
        shares(*arguments)


def test_survivors_of_the_paper_and_of_set():
    kept, dropped = [90, 10, 50], [10, 40, 0]
    assert shares(50, survivors(kept, dropped), [999] * 3) == [30, 3, 17]
    assert shares(50, survivors(kept, dropped, damping=0), [999] * 3) == dropped
    half = survivors(kept, dropped, damping=0.5)
    # (1 - 0.5) K + 0.5 R sum(K) / sum(R) = 20, 21.67, 8.33
    assert [w / sum(half) * 50 for w in half] == pytest.approx([20, 65 / 3, 25 / 3])


def test_survivors_where_a_sum_is_zero():
    assert survivors([0, 0], [3, 1], damping=0.5) == [3.0, 1.0]
    assert survivors([0, 0], [3, 1]) == [0.0, 0.0]
    assert survivors([4, 2], [0, 0], damping=0.5) == [4.0, 2.0]
    assert survivors([], []) == []


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(0, 10**8), st.floats(1e-12, 1e12)),
        min_size=1,
        max_size=6,
    ),
    damping=st.floats(0, 1),
    gamma=st.floats(0, 50),
)
def test_survivors_are_finite_and_agree_with_the_formula(rows, damping, gamma):
    kept, dropped, costs = columns(rows, 3)
    found = survivors(kept, dropped, damping, costs, gamma)
    assert all(0 <= w < math.inf for w in found)
    reference = min(costs)
    r = [k * (reference / c) ** gamma for k, c in zip(kept, costs, strict=True)]
    if sum(dropped) and sum(r):
        expected = [
            (1 - damping) * k / sum(dropped) + damping * x / sum(r)
            for k, x in zip(dropped, r, strict=True)
        ]
        assert [w / sum(found) for w in found] == pytest.approx(expected, abs=1e-12)


def test_costs_steer_towards_what_is_cheap():
    kept, dropped, costs = [100, 100], [50, 50], [4.0, 1.0]
    assert survivors(kept, dropped, costs=costs) == survivors(kept, dropped)
    assert shares(100, survivors(kept, dropped, costs=costs, gamma=1.0), [999, 999]) == [20, 80]
    assert shares(105, survivors(kept, dropped, costs=costs, gamma=0.5), [999, 999]) == [35, 70]
    # Only ratios count.
    twice = survivors(kept, dropped, costs=[8.0, 2.0], gamma=1.0)
    assert twice == survivors(kept, dropped, costs=costs, gamma=1.0)


@pytest.mark.parametrize(
    "keywords",
    [
        {"damping": -0.1},
        {"damping": 1.1},
        {"damping": math.nan},
        {"costs": [1.0, 0.0]},
        {"costs": [1.0, math.nan]},
        {"costs": [1.0]},
        {"costs": [1.0, 1.0], "gamma": -1.0},
    ],
)
def test_survivors_out_of_range_are_refused(keywords):
    with pytest.raises(ArgumentError):
        survivors([1, 2], [3, 4], **keywords)


@settings(max_examples=120)
@given(
    rows=st.lists(st.tuples(WEIGHTS, st.integers(0, 30), BLOCKS), max_size=7),
    total=st.integers(0, 2000),
    carried=st.integers(-60, 60),
)
def test_block_shares_conserve_parameters_up_to_the_ledger(rows, total, carried):
    weights, caps, blocks = columns(rows, 3)
    counts, left = block_shares(total, weights, caps, blocks, carried)
    assert sum(g * b for g, b in zip(counts, blocks, strict=True)) + left == total + carried
    assert all(0 <= g <= c for g, c in zip(counts, caps, strict=True))
    if total + carried < 0:
        assert left == total + carried and not any(counts)
        return
    assert left >= 0
    room = [b for g, c, b in zip(counts, caps, blocks, strict=True) if g < c]
    assert all(left < b for b in room)


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(1, 50), BLOCKS), min_size=1, max_size=7),
    total=st.integers(0, 5000),
)
def test_large_cells_stay_close_to_the_shares_in_parameters(rows, total):
    weights, blocks = columns(rows, 2)
    counts, _ = block_shares(total, weights, [10**6] * len(rows), blocks)
    ideal = ideal_shares(total, weights, [10**9] * len(rows))
    for block in set(blocks):
        large = [i for i, b in enumerate(blocks) if b >= block]
        missing = sum(ideal[i] - counts[i] * blocks[i] for i in large)
        assert 0 <= missing < block  # the parameters of these cells, up to one of the smallest


@settings(max_examples=30)
@given(rows=SITES, total=st.integers(0, 300), block=BLOCKS)
def test_one_block_size_is_shares_of_whole_cells(rows, total, block):
    weights, caps = columns(rows, 2)
    counts, left = block_shares(total, weights, caps, [block] * len(rows))
    assert counts == shares(total // block, weights, caps)
    assert left == total - block * sum(counts)


def test_a_ledger_that_nobody_can_take_waits_for_the_next_event():
    assert block_shares(5, [1.0], [10], [9]) == ([0], 5)
    assert block_shares(5, [1.0], [10], [9], carried=5) == ([1], 1)
    assert block_shares(5, [1.0], [10], [9], carried=-7) == ([0], -2)
    # A site of single weights takes it, whatever its weight.
    assert block_shares(5, [1.0, 0.0], [10, 10], [9, 1]) == ([0, 5], 0)
    # A group without weight is passed over for one with weight.
    assert block_shares(10, [1.0, 0.0, 1.0], [10, 10, 10], [9, 3, 1]) == ([0, 0, 10], 0)


def test_what_full_sites_leave_is_placed_among_the_dropped_by_a_second_call():
    counts, left = block_shares(100, [1.0, 1.0], [2, 3], [9, 1])
    assert (counts, left) == ([2, 3], 79)
    back, left = block_shares(0, [1.0, 1.0], [8, 28], [9, 1], carried=left)
    assert 9 * back[0] + back[1] == 79 and left == 0


@pytest.mark.parametrize(
    "arguments",
    [(-1, [1], [1], [1]), (1, [1], [1], [0]), (1, [1], [1], [1, 1]), (1, [1], [-1], [1])],
)
def test_block_shares_out_of_range_are_refused(arguments):
    with pytest.raises(ArgumentError):
        block_shares(*arguments)
