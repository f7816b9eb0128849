"""The reward of a candidate: published values, and what section 1 of the specification says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.methods.embedding.reward import Reward, gain

# Accuracies of teacher and student on CIFAR-100, C, and f, from the authors' table.
PUBLISHED = {
    "VGG-19": (73.71, 71.64, 0.8470, 0.9492),
    "ResNet-18": (78.68, 71.91, 0.8876, 0.9024),
    "ResNet-34": (78.71, 75.47, 0.8664, 0.9417),
    "ShuffleNet": (71.14, 68.17, 0.8298, 0.9305),
}
BASE = {"params": 200, "macs": 1000, "energy": 50.0}
shares = st.floats(0, 1, allow_subnormal=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_table_to_four_decimals(name):
    teacher, student, saved, expected = PUBLISHED[name]
    reward = Reward("params", {"params": 10_000}, teacher)
    assert round(reward({"params": round(10_000 * (1 - saved))}, student), 4) == expected


def test_the_parameters_of_the_table():
    # 20.09M and 3.07M parameters, as printed, are C = .847 to the digits that they have.
    reward = Reward("params", {"params": 20_086_692}, 73.71)
    assert round(reward.compression({"params": 3_070_000}), 3) == 0.847


def test_the_teacher_is_worth_nothing():
    assert Reward("params", BASE, 0.7)(BASE, 0.7) == 0
    assert Reward(("params", "macs"), BASE, 0.7)(BASE, 0.7) == 0


def test_the_ends_of_the_gain():
    assert (gain(0), gain(1)) == (0, 1)
    assert gain(0.5) == 0.75
    assert gain(-1) == -3  # twice as large as the teacher


@given(shares, shares)
def test_the_gain_rises_ever_more_slowly(a, b):
    low, high = min(a, b), max(a, b)
    assert gain(low) <= gain(high)
    assert gain((a + b) / 2) >= (gain(a) + gain(b)) / 2 - 1e-12
    assert gain(a) == pytest.approx(1 - (1 - a) ** 2, abs=1e-12)


@given(st.integers(0, 400), st.floats(0.01, 1))
def test_it_is_the_gain_times_relative_accuracy(params, accuracy):
    reward = Reward("params", BASE, 0.8)
    c = 1 - params / 200
    assert reward({"params": params}, accuracy) == pytest.approx(c * (2 - c) * accuracy / 0.8)
    assert reward.gain({"params": params}) * reward.relative(accuracy) == reward(
        {"params": params}, accuracy
    )


def test_several_costs_count_by_their_geometric_mean():
    costs = {"params": 50, "macs": 160, "energy": 40.0}  # ratios 1/4, 4/25, 4/5
    assert Reward(("params", "macs"), BASE, 1.0).compression(costs) == pytest.approx(0.8)
    both = Reward(("params", "macs", "energy"), BASE, 1.0)
    assert both.compression(costs) == pytest.approx(1 - (0.25 * 0.16 * 0.8) ** (1 / 3))
    assert both.compression({**costs, "macs": 0}) == 1
    assert Reward(("macs",), BASE, 1.0).compression(costs) == pytest.approx(0.84)


def test_a_student_that_beats_the_teacher():
    assert Reward("params", BASE, 0.5)({"params": 0}, 0.6) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("metric", "base", "accuracy", "words"),
    [
        ("latency", BASE, 0.5, "no cost 'latency'"),
        ((), BASE, 0.5, "no cost is named"),
        ("params", {"params": 0}, 0.5, "the teacher's params is 0"),
        ("params", {"params": -1}, 0.5, "is -1"),
        ("params", {"params": math.nan}, 0.5, "is nan"),
        ("params", BASE, 0.0, "accuracy is 0.0"),
        ("params", BASE, math.nan, "accuracy is nan"),
    ],
)
def test_what_makes_no_reward(metric, base, accuracy, words):
    with pytest.raises(ArgumentError, match=words):
        Reward(metric, base, accuracy)


def test_what_has_no_reward():
    reward = Reward(("params", "macs"), BASE, 0.5)
    with pytest.raises(ArgumentError, match="no cost 'macs'"):
        reward({"params": 3}, 0.5)
    with pytest.raises(ArgumentError, match="'macs' is -2"):
        reward({"params": 3, "macs": -2}, 0.5)
    with pytest.raises(ArgumentError, match="accuracy is nan"):
        reward(BASE, math.nan)
    for value in (1.1, math.nan, -math.inf):
        with pytest.raises(ArgumentError, match="no share"):
            gain(value)
