"""Paired comparisons: against counting sample by sample, and what cannot be paired."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.paired import Against, Correct, against
from bench.statistics import mcnemar, paired_t, sign_test
from energy_model.errors import ArgumentError
from transform.recipes.run import packed


def stored(truths, **other):
    return {"samples": len(truths), "order": "a", "after": packed(truths), **other}


def correct(truths, **other):
    return Correct.read(stored(truths, **other), sum(truths) / len(truths), "run")


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(pairs)
def test_what_only_one_has_right_is_counted_sample_by_sample(both):
    first, second = (correct([pair[k] for pair in both]) for k in (0, 1))
    assert first.only_this(second) == sum(a and not b for a, b in both)
    assert second.only_this(first) == sum(b and not a for a, b in both)
    found = against([0.5], [0.4], [(first, second)])
    assert found.mcnemar == mcnemar(found.won, found.lost)
    assert (found.pairs, found.judged, found.p, found.spread) == (1, 1, None, None)


def test_runs_without_samples_are_no_error():
    assert Correct.read(None, 0.9, "run") is None
    first, second = [0.9, 0.8, 0.85], [0.7, 0.75, 0.8]
    found = against(first, second, [(None, None)] * 3)
    test = paired_t(first, second)
    spread = statistics.stdev(a - b for a, b in zip(first, second, strict=True))
    assert found == Against(test.difference, spread, 3, test.p, sign_test(first, second))
    assert against([], []) == Against()


def test_the_median_over_seeds_is_one_of_the_runs():
    def pair(won, lost):
        one = [True] * won + [False] * lost
        return correct(one), correct([not value for value in one])

    counts = [(9, 1), (6, 4), (8, 2)]
    found = against([0.9] * 3, [0.8] * 3, [pair(*count) for count in counts])
    assert found.mcnemar == mcnemar(8, 2)
    assert (found.won, found.lost) == (23, 7)
    assert found.mcnemar > mcnemar(23, 7)  # what counting each sample once a seed would claim
    upper = against([0.9] * 2, [0.8] * 2, [pair(*count) for count in counts[:2]])
    assert upper.mcnemar == mcnemar(6, 4)


def test_equal_methods_rarely_look_different_on_samples_that_all_seeds_share():
    """Hard samples are hard for every seed: the pooled test would be wrong far too often."""
    generator, median, pooled, rounds = random.Random(0), 0, 0, 300
    for _ in range(rounds):
        # Both methods are equal on average; this test set happens to suit one or the other.
        edge = [generator.choice((0.3, 0.7)) for _ in range(40)]
        counts = []
        for _ in range(5):
            won = sum(generator.random() < share for share in edge)
            counts.append((won, len(edge) - won))
        median += statistics.median_high(mcnemar(*each) for each in counts) <= 0.05
        pooled += mcnemar(sum(a for a, _ in counts), sum(b for _, b in counts)) <= 0.05
    assert median / rounds <= 0.05
    assert pooled / rounds > 0.05


@pytest.mark.parametrize("other", [{"order": "b"}, {"samples": 9}])
def test_other_samples_or_another_order_are_not_paired(other):
    truths = [True, False] * 4
    first = correct(truths)
    second = Correct(*(other.get(k, getattr(first, k)) for k in ("samples", "order", "bits")))
    assert first.pairs_with(first)
    assert not first.pairs_with(second)
    found = against([0.5], [0.5], [(first, second)])
    assert (found.mcnemar, found.judged, found.pairs) == (None, 0, 1)


@pytest.mark.parametrize(
    "values",
    [
        {"samples": 9, "after": "80"},  # one digit pair too few
        {"samples": 1, "after": "8000"},
        {"samples": 1, "after": "81"},  # a bit beyond the last sample
        {"samples": 1, "after": "00"},  # not the accuracy that was reported
        {"samples": 1, "after": "zz"},
        {"samples": 0, "after": ""},
        {"samples": "many", "after": "80"},
        {"samples": 1, "after": None},
        {"samples": 1},
        ["80"],
    ],
)
def test_damaged_samples_are_refused(values):
    assert Correct.read({"samples": 1, "after": "80"}, 1.0, "run").bits == 0x80
    with pytest.raises(ArgumentError, match="run: which test samples are right cannot be read"):
        Correct.read(values, 1.0, "run")
