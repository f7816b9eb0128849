"""The first population of a search."""

from __future__ import annotations

import math

import pytest
import torch
from evolution_nets import random_population, random_scores, repair_for, traced

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.ising.start import initial_population, keep_rates
from passes.structure.select import select_global


@pytest.fixture(scope="module")
def net():
    return traced()


def start(repair, seed=0, states=8, keep=0.5, **options):
    generator = torch.Generator().manual_seed(seed)
    scores = random_scores(repair.layout.nodes, 5)
    return initial_population(repair, states, scores, generator, keep=keep, **options)


def test_all_are_feasible_and_the_second_is_what_scores_choose(net):
    repair = repair_for(*net, {"macs": "0.5"}, multiple=2)
    warm = random_population(1, 38, 3, 0.9)[0]
    found = start(repair, warm=warm)
    assert found.shape == (8, 38)
    assert (repair.violations(found) == 0).all()
    scores = random_scores(38, 5)
    assert torch.equal(found[0], repair(warm[None], scores)[0])
    chosen = select_global(
        repair.costs,
        repair.groups,
        repair.layout.by_group(scores),
        repair.limits,
        multiple=2,
    )
    assert torch.equal(found[1], repair.layout.bits(repair.groups, chosen.state))
    assert len({tuple(row.tolist()) for row in found}) > 5


def test_everything_is_there_if_it_fits(net):
    repair = repair_for(*net, {"macs": "1"}, fill=False)
    found = start(repair)
    assert found[0].all()
    counts = repair.layout.kept(found)
    assert counts[1].tolist() == [6, 5, 4, 4]  # half of 12, 10, 7 and 9, halves to even
    scores = random_scores(38, 5)
    for part in repair.layout.parts.values():
        keep = found[1, part]
        assert scores[part][keep].min() > scores[part][~keep].max()
    assert not start(repair_for(*net, {"macs": "0.5"}, fill=False)).all(1).any()


def test_random_states_follow_their_rates(net):
    repair = repair_for(*net, {"macs": "1"}, fill=False)
    for keep in (
        {"stem": 0.25, "a": 0.9, "c": 1.0, "d": 0.5},
        torch.tensor([0.25, 0.9, 1.0, 0.5]),
        torch.tensor([0.25, 0.9, 1.0, 0.5]).repeat_interleave(torch.tensor([12, 10, 7, 9])),
    ):
        found = start(repair, states=200, keep=keep)
        share = repair.layout.kept(found)[2:].double().mean(0) / torch.tensor([12, 10, 7, 9])
        assert share.tolist() == pytest.approx([0.25, 0.9, 1.0, 0.5], abs=0.04)
    assert keep_rates({"stem": 0.5}, repair.layout).tolist() == [0.5] * 12 + [1.0] * 26


def test_the_same_seed_gives_the_same_states(net):
    repair = repair_for(*net, {"macs": "0.5"})
    for options in ({}, {"temperature": 1.0}):
        assert torch.equal(start(repair, **options), start(repair, **options))
        assert not torch.equal(start(repair, **options), start(repair, seed=1, **options))


@pytest.mark.parametrize(
    "keep",
    [
        -0.1,
        1.5,
        math.nan,
        "half",
        {"nowhere": 0.5},
        {"stem": 2.0},
        torch.zeros(5),
        torch.full((4,), math.nan),
        torch.full((38,), -1.0),
    ],
)
def test_malformed_rates_are_refused(net, keep):
    with pytest.raises(ArgumentError, match="keep"):
        start(repair_for(*net, {"macs": "0.5"}), keep=keep)


@pytest.mark.parametrize("states", [3, 0, 4.0, True])
def test_four_states_are_the_least(net, states):
    with pytest.raises(ArgumentError, match="states"):
        start(repair_for(*net, {"macs": "0.5"}), states=states)


def test_a_malformed_warm_start_is_refused(net):
    repair = repair_for(*net, {"macs": "0.5"})
    for warm in (torch.ones(37, dtype=torch.bool), torch.ones(38), random_population(1, 38, 0)):
        with pytest.raises(ArgumentError, match="keep-state"):
            start(repair, warm=warm)


def test_a_budget_that_cannot_be_met(net):
    with pytest.raises(InfeasibleBudget):
        start(repair_for(*net, {"macs": "0.01"}))


def test_frozen_models_have_states_without_nodes(net):
    frozen = ("stem", "a", "c", "d")
    assert start(repair_for(*net, {"macs": "1"}, frozen=frozen)).shape == (8, 0)
    with pytest.raises(InfeasibleBudget, match="no channel"):
        start(repair_for(*net, {"macs": "0.5"}, frozen=frozen))
