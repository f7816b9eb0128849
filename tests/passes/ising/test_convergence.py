"""When a search over keep-states is over."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from evolution_nets import random_population
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.ising.convergence import Convergence, diversity


def row(text):
    return torch.tensor([c == "1" for c in text])


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 1000), st.floats(0, 1))
@settings(max_examples=60)
def test_diversity_is_the_mean_over_all_pairs(states, nodes, seed, rate):
    population = random_population(states, nodes, seed, rate)
    pairs = [float((a != b).double().mean()) for a, b in itertools.combinations(population, 2)]
    expected = sum(pairs) / len(pairs) if pairs else 0.0
    assert diversity(population) == pytest.approx(expected, abs=1e-12)


def test_diversity_by_hand():
    assert diversity(torch.stack([row("0000"), row("0001"), row("0011")])) == (1 + 2 + 1) / 3 / 4
    assert diversity(torch.zeros(4, 0, dtype=torch.bool)) == 0
    with pytest.raises(ArgumentError, match="population"):
        diversity(torch.zeros(4, 3))


def test_the_best_state_has_to_stay():
    watch = Convergence(patience=3)
    texts = ["01", "01", "01", "11", "11", "11", "11"]
    found = [watch.observe(row(text), 0.5) for text in texts]
    assert found[:-1] == [""] * 6
    assert found[-1] == "the best state has been the same for 3 generations"
    watch.restart()
    assert watch.observe(row("11"), 0.5) == ""


def test_states_that_are_nearly_one():
    assert Convergence(5).observe(row("01"), 0.01) == ""
    assert "differ in 0.99 % of the nodes, less than 1 %" in Convergence(5).observe(
        row("01"), 0.0099
    )
    assert Convergence(5, least_diversity=0).observe(row("01"), 0.0) == ""


def test_the_best_state_is_copied():
    watch, best = Convergence(patience=1), row("01")
    watch.observe(best, 0.5)
    best ^= True
    assert watch.observe(best, 0.5) == ""


def test_it_goes_on_as_before():
    watch = Convergence(patience=3)
    again = Convergence(patience=3)
    again.load_state_dict(watch.state_dict())
    assert again.observe(row("10"), 0.5) == ""
    for _ in range(3):
        watch.observe(row("01"), 0.5)
    again.load_state_dict(watch.state_dict())
    assert again.observe(row("01"), 0.5) == watch.observe(row("01"), 0.5) != ""
    assert again.observe(row("10"), 0.5) == ""


@pytest.mark.parametrize(
    ("patience", "least"), [(0, 0.01), (1.5, 0.01), (True, 0.01), (3, -1), (3, math.nan)]
)
def test_malformed_settings_are_refused(patience, least):
    with pytest.raises(ArgumentError):
        Convergence(patience, least)


@pytest.mark.parametrize(
    ("best", "spread"),
    [(torch.zeros(3), 0.5), (torch.zeros(1, 3, dtype=torch.bool), 0.5), (row("01"), math.nan)],
)
def test_malformed_generations_are_refused(best, spread):
    with pytest.raises(ArgumentError):
        Convergence(3).observe(best, spread)
