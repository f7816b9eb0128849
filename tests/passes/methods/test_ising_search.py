"""Generations of keep-states: the same samples for parents and children, and the budget for all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "ising"))

from evolution_nets import random_scores, repair_for, traced

from energy_model.errors import InfeasibleBudget, PreconditionError, TrainingError
from passes.ising.repair import annealed
from passes.methods.ising import Ising
from passes.methods.ising.search import KeepStateSearch, remembered

NODES = 38
WEIGHTS = random_scores(NODES, 9) - 0.5
LONG = 10**6


@pytest.fixture(scope="module")
def repair():
    return repair_for(*traced(), {"macs": 0.5})


def linear(population):
    return (population * WEIGHTS).sum(1)  # row by row, whatever the others are


def flat(population):
    return torch.zeros(len(population), dtype=torch.float64)


def started(repair, seed=0, **options):
    config = Ising(**{"patience": LONG, "states": 6} | options)
    search = KeepStateSearch(repair, config, torch.Generator().manual_seed(seed))
    search.begin(random_scores(NODES, 1), repair.limits)
    return search


def advanced(search, count, energies=linear, **options):
    for _ in range(count):
        search.advance(energies, random_scores(NODES, 1), search.repair.limits, **options)
    return search


@pytest.mark.parametrize("kind", ["de", "ratio-de"])
def test_the_energy_falls_and_every_state_is_within_the_budget(repair, kind):
    search = started(repair, search=kind)
    start, last = float(linear(search.population).min()), float("inf")
    for _ in range(15):
        advanced(search, 1)
        assert (repair.violations(search.population) == 0).all()
        assert torch.equal(search.energies, linear(search.population))
        best = float(linear(search.best[None]))
        assert best == float(search.energies.min()) <= last
        last = best
    assert last < start


def test_parents_and_children_are_compared_at_once_on_the_same_samples(repair):
    search, asked = started(repair), []

    def energies(population):
        asked.append(population.clone())
        return linear(population) + len(asked)  # as other samples and weights would

    before = search.population.clone()
    advanced(search, 3, energies)
    assert [len(each) for each in asked] == [12, 12, 12]
    assert torch.equal(asked[0][:6], before)
    # No energy is kept from a generation to the next.
    assert torch.equal(search.energies, linear(search.population) + 3)


def test_the_best_state_gives_way_to_its_improvement(repair):
    search, given = started(repair, search="de+ls"), []

    def better(row):
        given.append(row.clone())
        kept, gone = row[:12].nonzero()[:, 0], (~row[:12]).nonzero()[:, 0]
        row = row.clone()
        row[[int(kept[0]), int(gone[0])]] ^= True
        return row

    advanced(search, 1, better=better)
    assert not given  # of a first generation no state is known to be the best
    best, asked = search.best.clone(), []
    advanced(search, 1, lambda p: asked.append(p.clone()) or flat(p), better=better)
    assert torch.equal(given[0], best)
    row = int((asked[0][:6] == best).all(1).nonzero()[0, 0])
    assert torch.equal(asked[0][6 + row], better(best))


def test_the_same_seed_gives_the_same_states_and_others_differ(repair):
    found = [advanced(started(repair, seed), 5).population for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["de", "ratio-de"])
def test_a_search_goes_on_from_its_state(repair, kind):
    whole = advanced(started(repair, search=kind, patience=50), 8)
    half = advanced(started(repair, search=kind, patience=50), 4)
    state = half.state_dict()
    other = started(repair, seed=5, search=kind, patience=50)
    other.load_state_dict(state)
    advanced(half, 1)  # what goes on does not change what was saved
    advanced(other, 4)
    assert torch.equal(whole.population, other.population)
    assert whole.report() == other.report()
    assert (
        whole.state_dict()["convergence"]["unchanged"]
        == (other.state_dict()["convergence"]["unchanged"])
    )


def test_while_the_budget_falls_states_follow_it_and_the_search_is_not_over(repair):
    config = Ising(states=6, patience=1, noise=0.0)
    search = KeepStateSearch(repair, config, torch.Generator().manual_seed(0))
    scores = random_scores(NODES, 1)
    search.begin(scores, annealed(repair.limits, 0.0))
    spent = []
    for number in range(1, 7):
        limits = annealed(repair.limits, number / 6)
        search.advance(linear, scores, limits)
        spent.append(float(repair.values(search.population)["macs"].max()))
        assert spent[-1] <= limits[0].maximum
        assert not search.why_over
    assert spent[0] > spent[-1]
    state = search.state_dict()
    again = KeepStateSearch(repair, config, torch.Generator())
    again.load_state_dict(state)
    for each in (search, again):
        each.advance(flat, scores, repair.limits)
        assert not each.why_over  # the best of the last budget does not count
        each.advance(flat, scores, repair.limits)
    assert torch.equal(search.population, again.population)
    assert search.why_over == again.why_over != ""


def test_patience_and_a_population_that_became_one_end_it(repair):
    search = advanced(started(repair, patience=2), 1)
    assert not search.why_over
    assert not advanced(search, 2, flat).why_over
    assert "the same for 2 generations" in advanced(search, 1, flat).why_over
    search = started(repair, noise=0.0)
    search.population[:] = search.population[0].clone()
    assert "differ in 0 %" in advanced(search, 1).why_over


def test_energies_that_are_not_finite_lose(repair):
    search = started(repair)
    banned = search.best.clone()

    def energies(population):
        found = linear(population) - 100 * (population == banned).all(1)
        return torch.where((population == banned).all(1), torch.inf, found)

    advanced(search, 2, energies)
    assert not torch.equal(search.best, banned)
    assert search.report()["energy_best"] < float("inf")
    with pytest.raises(TrainingError):
        advanced(search, 1, lambda p: torch.full((len(p),), torch.nan, dtype=torch.float64))


def test_a_report_says_how_it_stands(repair):
    search = started(repair)
    assert search.report() == {"generation": 0}
    told = advanced(search, 2).report()
    assert told["generation"] == 2
    assert told["energy_best"] <= told["energy_mean"]
    assert 0 < told["diversity"] < 1
    assert list(told["kept"].values()) == search.repair.layout.kept(search.best[None])[0].tolist()


def test_a_search_has_to_begin_within_what_is_feasible(repair):
    search = KeepStateSearch(repair, Ising(), torch.Generator())
    with pytest.raises(PreconditionError):
        _ = search.best
    with pytest.raises(InfeasibleBudget):
        started(repair_for(*traced(), {"macs": 0.001}))


def test_a_remembered_energy_is_computed_once():
    asked = []

    def energies(population):
        asked.append(population)
        return linear(population)

    known = remembered(energies)
    rows = torch.rand(5, NODES, generator=torch.Generator().manual_seed(0)) < 0.5
    twice = torch.cat([rows, rows[:2]])
    assert torch.equal(known(twice), linear(twice))
    assert torch.equal(known(rows.flip(0)), linear(rows.flip(0)))
    assert [len(each) for each in asked] == [5]
    assert torch.equal(known(torch.cat([~rows[:1], rows]))[1:], linear(rows))
    # With what is new, the lowest of the others is asked again.
    assert torch.equal(asked[1], torch.stack([~rows[0], rows[linear(rows).argmin()]]))


def test_children_that_are_all_not_finite_only_lose():
    """Where no energy at all is finite a task energy raises, as one of NaN logits does."""
    parents = torch.eye(4, 6).bool()

    def energies(population):
        found = torch.where(
            population.sum(1) == 1, population.double() @ torch.arange(6.0).double(), torch.inf
        )
        if not found.isfinite().any():
            raise PreconditionError("of no candidate the energy is finite", where="energy")
        return found

    known = remembered(energies)
    assert known(parents).tolist() == [0, 1, 2, 3]
    assert known(torch.cat([parents, ~parents])).tolist() == [0, 1, 2, 3] + [float("inf")] * 4
    assert known(torch.cat([~parents, parents])).tolist() == [float("inf")] * 4 + [0, 1, 2, 3]
    with pytest.raises(PreconditionError):
        remembered(energies)(~parents)
