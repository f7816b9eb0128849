"""Binary differential evolution: operators by hand, drift, selection rules, and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, TrainingError
from passes.ising.evolution import (
    BinaryEvolution,
    best_row,
    children,
    crossed,
    distinct_parents,
    mutated,
    select,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def bits(*rows):
    return torch.tensor([[c == "1" for c in row] for row in rows])


def draws(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


# The operators, by hand.


def test_parents_by_hand():
    given_draws = torch.tensor(
        [[0.0, 0.9, 0.1, 0.5], [0.3, 0.0, 0.2, 0.1], [0.7, 0.8, 0.0, 0.9], [0.5, 0.4, 0.6, 0.0]]
    )
    assert distinct_parents(given_draws).tolist() == [[2, 3, 1], [3, 2, 0], [0, 1, 3], [1, 0, 2]]
    assert given_draws.diagonal().tolist() == [0.0] * 4


@given(st.integers(4, 12), st.integers(0, 1000))
@settings(max_examples=40)
def test_parents_are_three_others(states, seed):
    for row, found in enumerate(distinct_parents(draws(seeded(seed), states, states)).tolist()):
        assert len({row, *found}) == 4


def test_a_mutant_by_hand():
    population = bits("00000000", "00110011", "01010101", "11111111")
    parents = torch.tensor([[1, 2, 3], [0, 3, 2], [3, 0, 1], [2, 1, 0]])
    low, high = 0.89, 0.9  # F = 0.9 is below the second
    u = torch.tensor([[low, high] * 4] * 4, dtype=torch.float64)
    expected = bits(
        # x_r1 00110011; x_r2, x_r3 differ at 0, 2, 4, 6, and all of these are drawn.
        "10011001",
        # 00000000; 3 and 2 differ at 0, 2, 4, 6.
        "10101010",
        # 11111111; 0 and 1 differ at 2, 3, 6, 7; drawn are 2 and 6.
        "11011101",
        # 01010101; 1 and 0 differ at 2, 3, 6, 7; drawn are 2 and 6.
        "01110111",
    )
    assert torch.equal(mutated(population, parents, u, 0.9), expected)
    assert torch.equal(mutated(population, parents, u, 0.0), population[parents[:, 0]])


def test_a_crossing_by_hand():
    population, mutants = bits("0000", "1111"), bits("1111", "0000")
    u = torch.tensor([[0.49, 0.5, 0.9, 0.0], [0.5, 0.6, 0.7, 0.8]], dtype=torch.float64)
    # C = 0.5 takes what is drawn below it, and the forced node.
    assert torch.equal(
        crossed(population, mutants, u, 0.5, torch.tensor([2, 1])), bits("1011", "1011")
    )
    # Nothing is drawn below 0, one node comes from the mutant all the same.
    forced = crossed(population, mutants, u, 0.0, torch.tensor([3, 0]))
    assert torch.equal(forced, bits("0001", "0111"))


def test_noise_flips_at_its_rate_and_node_by_node():
    population = torch.zeros(8, 4000, dtype=torch.bool)
    assert not children(population, seeded(0)).any()  # equal states: absorbing without noise
    rates = torch.linspace(0, 0.4, 4000, dtype=torch.float64)
    found = children(population, seeded(0), noise=rates)
    assert torch.equal(BinaryEvolution(noise=rates).propose(population, seeded(0)), found)
    found = found.double().mean(0)
    assert found[0] == 0
    for part in rates.chunk(4):
        lowest, highest = float(part[0]), float(part[-1])
        own = float(found[(rates >= lowest) & (rates <= highest)].mean())
        assert own == pytest.approx((lowest + highest) / 2, abs=0.015)
    assert float(children(population, seeded(1), noise=0.1).double().mean()) == pytest.approx(
        0.1, abs=0.01
    )


# Drift without selection.


def test_neutral_drift_keeps_the_share():
    generator = seeded(0)
    population = draws(generator, 8, 20_000) < 0.5
    for _ in range(50):
        population = children(population, generator)
    assert float(population.double().mean()) == pytest.approx(0.5, abs=0.01)


def coded_children(population, generator):
    """The operator as the authors coded it: it is wrong in two ways, and exists only here.

    A node mutates with a probability of 0.1. Where the two other parents agree, the first is
    flipped; where they differ, the node is dropped. Nine of ten nodes come from the mutant.
    """
    states, nodes = population.shape
    parents = distinct_parents(draws(generator, states, states))
    first, second, third = (population[parents[:, i]] for i in range(3))
    site = draws(generator, states, nodes) > 0.9
    mutant = torch.where(site, ~(second ^ third) & ~first, first)
    return torch.where(draws(generator, states, nodes) < 0.9, mutant, population)


def test_the_coded_operator_drifts_to_fewer_nodes():
    generator = seeded(0)
    population = draws(generator, 8, 6208) < 0.5
    shares = []
    for _ in range(150):
        population = coded_children(population, generator)
        shares.append(float(population.double().mean()))
    assert shares[0] < 0.49
    assert sum(shares[-50:]) / 50 == pytest.approx(0.39, abs=0.02)


# Selection.

_ENERGIES = st.sampled_from([0.0, 1.0, 2.0, -1.0, math.inf, -math.inf, math.nan])
_VIOLATIONS = st.sampled_from([0.0, 0.0, 0.5, 1.0])


def wins(new, old):
    """Whether a child beats its parent; each is an energy and a violation."""
    if not math.isfinite(new[0]):
        return False
    if not math.isfinite(old[0]):
        return True
    if old[1] == 0 and new[1] == 0:
        return new[0] < old[0]
    return new[1] < old[1]


@given(st.lists(st.tuples(_ENERGIES, _ENERGIES, _VIOLATIONS, _VIOLATIONS), min_size=1, max_size=6))
@settings(max_examples=100)
def test_selection_by_feasibility_rules(rows):
    old, new = [(a, v) for a, _, v, _ in rows], [(b, w) for _, b, _, w in rows]
    parents = torch.zeros(len(rows), 3, dtype=torch.bool)
    numbers = [torch.tensor(c, dtype=torch.float64) for c in zip(*rows, strict=True)]
    if not any(math.isfinite(e) for e, _ in old + new):
        with pytest.raises(TrainingError, match="NaN or infinite"):
            select(parents, ~parents, *numbers)
        return
    found = select(parents, ~parents, *numbers)
    expected = [wins(n, o) for n, o in zip(new, old, strict=True)]
    assert found.replaced.tolist() == expected
    assert found.population.tolist() == [[taken] * 3 for taken in expected]
    best = found.best
    for row, taken in enumerate(expected):
        own = new[row] if taken else old[row]
        assert str(float(found.energies[row])) == str(own[0])
        assert float(found.violations[row]) == own[1]
        kept = (float(found.energies[best]), float(found.violations[best]))
        assert not wins(own, kept)
        assert row >= best or wins(kept, own)


def test_ties_keep_the_parent():
    parents, zero = torch.zeros(4, 1, dtype=torch.bool), torch.zeros(4)
    assert not select(parents, ~parents, zero, zero, zero, zero).replaced.any()
    half = torch.tensor([math.nan, 0, 0, 0])
    assert not select(parents, ~parents, half, half, zero, zero).replaced.any()


def test_malformed_selections_are_refused():
    parents, zero = torch.zeros(4, 2, dtype=torch.bool), torch.zeros(4)
    for bad in (torch.tensor([0, 0, -1.0, 0]), torch.tensor([0, 0, math.nan, 0])):
        with pytest.raises(ArgumentError, match="violations: are not all finite"):
            select(parents, parents, zero, zero, zero, bad)
    with pytest.raises(ArgumentError, match="energies"):
        select(parents, parents, zero[:3], zero, zero, zero)
    with pytest.raises(ArgumentError, match="population"):
        select(parents, parents[:, :1], zero, zero, zero, zero)
    with pytest.raises(ArgumentError, match="3 children of 4 parents"):
        select(parents, parents[:3], zero, zero[:3], zero, zero[:3])
    with pytest.raises(ArgumentError, match="no state"):
        best_row(zero[:0], zero[:0])


# The search.


def quadratic(seed, nodes):
    """A random symmetric energy."""
    weights = torch.randn(nodes, nodes, generator=seeded(seed), dtype=torch.float64)
    weights = (weights + weights.T) / 2

    def energy(population):
        x = population.double()
        return torch.einsum("sp,pq,sq->s", x, weights, x)

    return energy


def all_rows(nodes):
    return torch.tensor(list(itertools.product([False, True], repeat=nodes)))


def run(energy, population, generator, generations, evolution, stop=-math.inf):
    """The best energy of every generation, and the last population."""
    zero = torch.zeros(population.shape[0])
    history = [float(energy(population).min())]
    for _ in range(generations):
        if history[-1] <= stop + 1e-9:
            break
        proposed = evolution.propose(population, generator)
        found = select(population, proposed, energy(population), energy(proposed), zero, zero)
        population = found.population
        history.append(float(found.energies[found.best]))
    return history, population


def reached(seeds, noise):
    """In how many runs the optimum of a random energy of 12 nodes is found."""
    count = 0
    for seed in seeds:
        energy = quadratic(seed, 12)
        optimum = float(energy(all_rows(12)).min())
        generator = seeded(seed + 1000)
        start = draws(generator, 16, 12) < 0.5
        history, _ = run(energy, start, generator, 200, BinaryEvolution(noise=noise), optimum)
        count += history[-1] <= optimum + 1e-9
    return count


@pytest.mark.parametrize("noise", [0.0, 1 / 12])
@pytest.mark.parametrize(
    ("seeds", "least"), [(range(7, 17), 9), pytest.param(range(50), 45, marks=pytest.mark.slow)]
)
def test_the_optimum_of_12_nodes_is_found(noise, seeds, least):
    assert reached(seeds, noise) >= least


@pytest.mark.spread(1)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_energy_never_rises(seed):
    energy = quadratic(seed, 60)
    generator = seeded(seed)
    start = draws(generator, 8, 60) < 0.5
    history, _ = run(energy, start, generator, 60, BinaryEvolution(noise=1 / 60))
    assert all(b <= a for a, b in itertools.pairwise(history))
    assert history[-1] < history[0]


def test_the_same_seed_gives_the_same_children():
    population = draws(seeded(0), 8, 50) < 0.5
    first = BinaryEvolution(noise=0.02).propose(population, seeded(3))
    assert torch.equal(first, BinaryEvolution(noise=0.02).propose(population, seeded(3)))
    assert not torch.equal(first, BinaryEvolution(noise=0.02).propose(population, seeded(4)))
    assert torch.equal(population, draws(seeded(0), 8, 50) < 0.5)


def test_nothing_global_is_drawn():
    before = torch.get_rng_state()
    children(draws(seeded(0), 8, 50) < 0.5, seeded(1), noise=0.1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_resumed_search_goes_on_as_before():
    energy = quadratic(0, 40)
    generator = seeded(1)
    start = draws(generator, 8, 40) < 0.5
    evolution = BinaryEvolution(noise=0.02)
    _, half = run(energy, start, generator, 10, evolution)
    saved, kept = generator.get_state(), evolution.state_dict()
    history, whole = run(energy, half, generator, 10, evolution)
    other, again = torch.Generator(), BinaryEvolution(noise=0.02)
    other.set_state(saved)
    again.load_state_dict(kept)
    other_history, other_whole = run(energy, half, other, 10, again)
    assert other_history == history
    assert torch.equal(other_whole, whole)


# Bad input.


@pytest.mark.parametrize(
    ("population", "words"),
    [
        (torch.zeros(3, 5, dtype=torch.bool), "3 states, 4 is the least"),
        (torch.zeros(5, dtype=torch.bool), "expected bool"),
        (torch.zeros(5, 5), "expected bool"),
    ],
)
def test_malformed_populations_are_refused(population, words):
    with pytest.raises(ArgumentError, match=words):
        children(population, seeded(0))


@pytest.mark.parametrize("name", ["mutation", "crossover", "noise"])
@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, "high", True])
def test_rates_are_from_0_to_1(name, rate):
    with pytest.raises(ArgumentError, match=name):
        BinaryEvolution(**{name: rate})
    with pytest.raises(ArgumentError, match=name):
        children(torch.zeros(4, 5, dtype=torch.bool), seeded(0), **{name: rate})


def test_rates_of_noise_fit_the_nodes():
    population = torch.zeros(4, 5, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="noise"):
        children(population, seeded(0), noise=torch.zeros(4))
    with pytest.raises(ArgumentError, match="noise"):
        children(population, seeded(0), noise=torch.full((5,), math.nan))
    with pytest.raises(ArgumentError, match="noise"):
        BinaryEvolution(noise=torch.full((5,), 1.5))
    with pytest.raises(ArgumentError, match="noise"):
        BinaryEvolution(noise=torch.zeros(4)).propose(population, seeded(0))


def test_a_model_without_nodes_has_children_without_nodes():
    assert children(torch.zeros(4, 0, dtype=torch.bool), seeded(0)).shape == (4, 0)
