"""Evolution of how much of every group stays."""

from __future__ import annotations

import math

import pytest
import torch
from evolution_nets import random_scores, repair_for, traced

from energy_model.errors import ArgumentError
from passes.ising.evolution import select
from passes.ising.ranked_states import best_of_groups
from passes.ising.ratio_evolution import RatioEvolution, reflected
from passes.ising.start import initial_population
from passes.structure.ranking import allowed_counts


@pytest.fixture(scope="module")
def net():
    return traced()


@pytest.fixture(scope="module")
def repair(net):
    return repair_for(*net, {"macs": "0.6"}, fill=False)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def begin(repair, seed=0, states=8):
    return initial_population(repair, states, random_scores(38, 5), seeded(seed), keep=0.6)


def run(repair, evolution, population, generator, generations, energy):
    """Population and best energy after some generations."""
    zero = torch.zeros(population.shape[0])
    scores = random_scores(38, 5)
    best = []
    for _ in range(generations):
        proposed = repair(evolution.propose(population, generator, scores), scores)
        found = select(population, proposed, energy(population), energy(proposed), zero, zero)
        evolution.accept(found.replaced)
        population = found.population
        best.append(float(found.energies[found.best]))
    return population, best


def test_reflection_by_hand():
    values = torch.tensor([[1.2, 0.5, -0.1, 3.0, -5.0]], dtype=torch.float64)
    least = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2], dtype=torch.float64)
    assert reflected(values, least)[0].tolist() == pytest.approx([0.8, 0.5, 0.3, 1.0, 1.0])


def test_the_best_of_groups_by_hand(repair):
    scores = torch.arange(38.0)
    scores[:12] = 1.0  # ties: the later ones stay
    found = best_of_groups(torch.tensor([[2, 1, 7, 0]]), scores, repair.layout)
    expected = [10, 11, 21, *range(22, 29)]
    assert found[0].nonzero().flatten().tolist() == expected
    with pytest.raises(ArgumentError, match="counts"):
        best_of_groups(torch.zeros(1, 3, dtype=torch.int64), scores, repair.layout)
    with pytest.raises(ArgumentError, match="scores"):
        best_of_groups(torch.tensor([[2, 1, 7, 0]]), scores * math.nan, repair.layout)


def test_equal_states_have_equal_children(repair):
    population = begin(repair)[:1].expand(4, -1)
    found = RatioEvolution(repair.groups).propose(population, seeded(0), random_scores(38, 5))
    assert torch.equal(repair.layout.kept(found), repair.layout.kept(population))


@pytest.mark.parametrize("multiple", [1, 4])
def test_children_have_counts_that_are_allowed(repair, multiple):
    evolution = RatioEvolution(repair.groups, multiple, mutation=0.9)
    generator, population = seeded(0), begin(repair)
    seen = set()
    for _ in range(30):
        population = evolution.propose(population, generator, random_scores(38, 1))
        evolution.accept(torch.ones(8, dtype=torch.bool))
        for number, group in enumerate(repair.groups.free):
            counts = set(repair.layout.kept(population)[:, number].tolist())
            assert counts <= set(allowed_counts(group, multiple))
            seen |= {(number, count) for count in counts}
    assert len(seen) > 8


def test_genes_follow_states_that_were_repaired(repair):
    evolution = RatioEvolution(repair.groups)
    population, scores = begin(repair), random_scores(38, 5)
    proposed = evolution.propose(population, seeded(0), scores)
    sizes = torch.tensor(repair.layout.sizes)
    assert torch.equal(evolution.ratios, repair.layout.kept(population) / sizes.double())
    evolution.accept(torch.ones(8, dtype=torch.bool))
    genes = evolution.ratios.clone()
    changed = proposed.clone()
    changed[0, : sizes[0]] = True  # of the first state all units of the first group return
    evolution.propose(changed, seeded(1), scores)
    assert evolution.ratios[0, 0] == 1
    assert torch.equal(evolution.ratios[1:], genes[1:])
    assert torch.equal(evolution.ratios[0, 1:], genes[0, 1:])
    # What is less than one unit is remembered: genes are not all shares of whole units.
    assert ((genes * sizes) % 1 > 1e-6).any()


def test_only_children_that_are_accepted_hand_on_their_genes(repair):
    evolution = RatioEvolution(repair.groups)
    population = begin(repair)
    evolution.propose(population, seeded(0), random_scores(38, 5))
    before = evolution.ratios.clone()
    taken = torch.arange(8) % 2 == 0
    evolution.accept(taken)
    assert torch.equal(evolution.ratios[~taken], before[~taken])
    assert not torch.equal(evolution.ratios[taken], before[taken])


@pytest.mark.slow
def test_it_finds_the_shares_that_an_energy_wants(repair):
    wanted = torch.tensor([6, 7, 5, 3])

    def energy(population):
        return (repair.layout.kept(population) - wanted).double().square().sum(1)

    def as_they_are(population, scores):
        return population

    found = 0
    for seed in range(8):
        start, evolution = begin(repair, seed), RatioEvolution(repair.groups)
        assert float(energy(start).min()) > 0
        _, best = run(as_they_are, evolution, start, seeded(1000 + seed), 40, energy)
        assert best == sorted(best, reverse=True)
        found += best[-1] == 0
    assert found >= 7


def test_a_resumed_search_goes_on_as_before(repair):
    energy = lambda population: (population.double() @ random_scores(38, 9)).sin()  # noqa: E731
    evolution, generator = RatioEvolution(repair.groups), seeded(0)
    half, _ = run(repair, evolution, begin(repair), generator, 5, energy)
    kept, saved = evolution.state_dict(), generator.get_state()
    whole, best = run(repair, evolution, half, generator, 5, energy)
    again, other = RatioEvolution(repair.groups), torch.Generator()
    again.load_state_dict(kept)
    other.set_state(saved)
    found, found_best = run(repair, again, half, other, 5, energy)
    assert torch.equal(found, whole)
    assert found_best == best
    assert torch.equal(again.ratios, evolution.ratios)
    other.set_state(saved)
    forgetful = RatioEvolution(repair.groups)
    run(repair, forgetful, half, other, 5, energy)
    assert not torch.equal(forgetful.ratios, evolution.ratios)


def test_seeds_differ(repair):
    population, scores = begin(repair), random_scores(38, 5)
    found = [
        RatioEvolution(repair.groups).propose(population, seeded(seed), scores)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_malformed_input_is_refused(repair):
    evolution, population = RatioEvolution(repair.groups), begin(repair)
    scores = random_scores(38, 5)
    with pytest.raises(ArgumentError, match="before propose"):
        evolution.accept(torch.ones(8, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="scores: are missing"):
        evolution.propose(population, seeded(0))
    with pytest.raises(ArgumentError, match="3 states, 4 is the least"):
        evolution.propose(population[:3], seeded(0), scores)
    with pytest.raises(ArgumentError, match="population"):
        evolution.propose(population[:, 1:], seeded(0), scores)
    evolution.propose(population, seeded(0), scores)
    with pytest.raises(ArgumentError, match="accepted"):
        evolution.accept(torch.ones(7, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="ratios"):
        evolution.load_state_dict({"ratios": torch.zeros(8, 3)})
    with pytest.raises(ArgumentError, match="mutation"):
        RatioEvolution(repair.groups, mutation=2.0)


def test_frozen_models_have_no_genes(net):
    frozen = repair_for(*net, {"macs": "1"}, frozen=("stem", "a", "c", "d"))
    evolution = RatioEvolution(frozen.groups)
    population = torch.zeros(4, 0, dtype=torch.bool)
    assert evolution.propose(population, seeded(0), torch.zeros(0)).shape == (4, 0)
    evolution.accept(torch.zeros(4, dtype=torch.bool))
