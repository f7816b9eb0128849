"""Successive halving: who goes on, what it costs, and when it is trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.methods.embedding.ladder import Ladder
from passes.rank_correlation import rank_correlation

LADDER = Ladder()
scores = st.lists(st.none() | st.integers(0, 4).map(float), min_size=1, max_size=12)


def test_nine_candidates_cost_22_epochs_instead_of_90():
    assert LADDER.counts(9) == (9, 3, 1)
    assert LADDER.total_epochs(9) == 9 * 1 + 3 * 2 + 1 * 7 == 22
    assert LADDER.total_epochs(9, [False, False]) == 90


def test_the_batch_of_the_defaults():
    assert LADDER.counts(8) == (8, 3, 1)
    assert LADDER.total_epochs(8) == 8 + 6 + 7
    assert LADDER.counts(2) == (2, 1, 1)
    assert LADDER.counts(8, [False, True]) == (8, 8, 3)
    assert [LADDER.epochs(rung) for rung in range(3)] == [1, 2, 7]
    assert Ladder((10,)).counts(8) == (8,)
    assert Ladder((10,)).total_epochs(8) == 80
    assert Ladder((0, 4)).epochs(0) == 0


@pytest.mark.parametrize(
    ("given_scores", "expected"),
    [
        ([0.1, 0.9, 0.5, 0.4, 0.8, 0.2, 0.3, 0.7, 0.6], (1, 4, 7)),
        ([0.5] * 9, (0, 1, 2)),  # ties by order
        ([0.1, 0.9, 0.9, 0.9], (1, 2)),
        ([None, 0.1, None, 0.2], (1, 3)),
        ([None] * 9, ()),
        ([None, None, None, 0.1], (3,)),  # one in three, rounded up, of all
        ([0.3], (0,)),
        ([-0.5, -0.1, -0.9], (1,)),
        ([], ()),
    ],
)
def test_who_goes_on(given_scores, expected):
    assert LADDER.promoted(given_scores) == expected


def test_without_trust_all_go_on_that_did_not_fail():
    assert LADDER.promoted([0.1, None, 0.9, 0.5], trusted=False) == (0, 2, 3)


@pytest.mark.slow
@given(scores)
def test_none_that_stays_is_better_than_one_that_goes(values):
    gone = LADDER.promoted(values)
    assert len(gone) == min(-(-len(values) // 3), sum(v is not None for v in values))
    assert list(gone) == sorted(set(gone))
    for stay in set(range(len(values))) - set(gone):
        if values[stay] is not None:
            assert all((values[go], -go) > (values[stay], -stay) for go in gone)


@given(scores)
def test_the_count_is_the_planned_one(values):
    assert len(LADDER.promoted(values)) <= LADDER.counts(len(values))[1]
    if None not in values:
        assert len(LADDER.promoted(values)) == LADDER.counts(len(values))[1]


def history(pairs, last=2):
    return [{0: a, 1: b, last: b} for a, b in pairs]


AGREEING = history([(n, n) for n in range(16)])
OPPOSED = history([(n, -n) for n in range(16)])


def test_a_rung_is_trusted_once_sixteen_were_trained_to_the_end():
    assert LADDER.trusted([]) == (False, False)
    assert LADDER.trusted(AGREEING[:15]) == (False, False)
    assert LADDER.trusted(AGREEING) == (True, True)
    assert LADDER.correlations(AGREEING[:15]) == (None, None)
    assert LADDER.correlations(AGREEING) == (1.0, 1.0)


def test_a_rung_that_misleads_does_not_decide():
    assert LADDER.trusted(OPPOSED) == (False, True)
    assert LADDER.correlations(OPPOSED)[0] == pytest.approx(-1)


def test_the_first_sixteen_decide_for_good():
    assert LADDER.trusted(AGREEING + OPPOSED) == (True, True)
    assert LADDER.trusted(OPPOSED + AGREEING) == (False, True)


def test_those_that_did_not_reach_the_end_do_not_count():
    stopped, failed = [{0: 5.0}] * 9, [{}] * 9
    assert LADDER.trusted(stopped + AGREEING[:15] + failed) == (False, False)
    mixed = stopped + AGREEING[:8] + failed + AGREEING[8:]
    assert LADDER.correlations(mixed) == (1.0, 1.0)
    only_last = [{2: 100.0 - n} for n in range(16)]  # such as the teacher
    assert LADDER.trusted(only_last + AGREEING) == (True, True)


def test_the_border_of_trust():
    # With 4 pairs and one swap of distance d the correlation is 1 - d^2 / 5: .8, .2, ...
    pairs = history([(1, 1), (2, 2), (3, 4), (4, 3)])
    assert Ladder(probes=4, least=0.8).correlations(pairs)[0] == pytest.approx(0.8)
    assert Ladder(probes=4, least=0.79).trusted(pairs)[0]
    assert not Ladder(probes=4, least=0.81).trusted(pairs)[0]
    half = history([(1, 1), (2, 3), (3, 2)])  # exactly one half
    assert Ladder(probes=3).trusted(half)[0]


def test_equal_scores_tell_nothing():
    flat = history([(1.0, n) for n in range(16)])
    assert LADDER.correlations(flat) == (None, 1.0)
    assert LADDER.trusted(flat) == (False, True)


def test_trust_without_probes():
    assert Ladder(probes=0).trusted([]) == (True, True)
    assert Ladder(probes=0).trusted(OPPOSED) == (True, True)
    assert Ladder((10,)).trusted([]) == ()


def test_few_probes_are_not_two():
    assert Ladder(probes=1).trusted(AGREEING[:2]) == (False, False)
    assert Ladder(probes=1).trusted(AGREEING[:3]) == (True, True)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlation_is_scipy_s(pairs):
    stats = pytest.importorskip("scipy.stats")
    first, second = zip(*pairs, strict=True)
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_rank_correlation_by_hand():
    # 1 - 6 * sum of d^2 / (n (n^2 - 1)), ranks 1 2 3 4 5 against 2 1 4 3 5.
    assert rank_correlation([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(0.8)
    assert rank_correlation([], []) is None
    assert rank_correlation([1.0], [2.0]) is None
    with pytest.raises(ArgumentError, match="1 values against 2"):
        rank_correlation([1], [1, 2])


@pytest.mark.parametrize(
    "options",
    [
        {"fidelity": ()},
        {"fidelity": (3, 1)},
        {"fidelity": (1, 1)},
        {"fidelity": (-1, 1)},
        {"eta": 1},
        {"probes": -1},
    ],
)
def test_no_ladder(options):
    with pytest.raises(ArgumentError):
        Ladder(**options)


def test_a_score_that_is_no_number():
    with pytest.raises(ArgumentError, match="not a number"):
        LADDER.promoted([0.1, float("nan")])
