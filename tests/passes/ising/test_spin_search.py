"""Solvers: local optima, never worse than the start, brute force, planted redundancy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spin_cases import (
    TABLE,
    all_states,
    one_group,
    random_energy,
    random_population,
    seeded,
)

from energy_model.errors import ArgumentError
from passes.ising.couplings import Couplings
from passes.ising.ising_energy import IsingEnergy
from passes.ising.layout import Layout
from passes.ising.redundancy import kernel_divergence
from passes.ising.spin_search import descend, tabu_search

NONE_LEFT = {"g0": 0, "g1": 0, "g2": 0}


def descended(energy, population, *, generator, least=None):
    return descend(energy, population, least=least)


def short_tabu(energy, population, *, generator, least=None):
    return tabu_search(energy, population, generator=generator, patience=40, least=least)


SOLVERS = [descended, short_tabu]


def floors_of(layout, least):
    return torch.tensor([least.get(name, 1) for name in layout.names])


def downhill(energy, states, least):
    """Of every state, whether a flip that is allowed lowers its energy."""
    layout = energy.layout
    low = layout.kept(states) <= floors_of(layout, least)
    group = torch.repeat_interleave(torch.arange(len(layout.sizes)), torch.tensor(layout.sizes))
    deltas = energy.flip_deltas(states).masked_fill(states & low[:, group], math.inf)
    return deltas.min(1).values < -1e-9


@pytest.mark.spread(1)
@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_the_result_is_a_local_optimum_no_worse_than_the_start(solver, seed):
    energy = random_energy(seed)
    least = {"g0": 2, "g2": 3}
    start = random_population(seed, 6, 12)
    start[:, [0, 1, 4, 7, 8, 9]] = True
    before = start.clone()
    found = solver(energy, start, generator=seeded(seed), least=least)
    assert torch.equal(start, before)
    assert (energy(found) <= energy(start)).all()
    assert (energy.layout.kept(found) >= floors_of(energy.layout, least)).all()
    assert not downhill(energy, found, least).any()


def test_the_check_of_local_optima_can_fail():
    energy = random_energy(0)
    start = random_population(0, 6, 12)
    assert downhill(energy, start, NONE_LEFT).any()


@pytest.mark.slow
@pytest.mark.parametrize("solver", [short_tabu])
def test_small_instances_are_solved(solver):
    solved = 0
    for seed in range(20):
        energy = random_energy(seed)
        lowest = float(energy(all_states(12)).min())
        start = random_population(seed, 3, 12)
        found = solver(energy, start, generator=seeded(seed), least=NONE_LEFT)
        solved += float(energy(found).min()) == pytest.approx(lowest)
    assert solved >= 19


def test_descent_takes_the_steepest_flip_first():
    # From 000 the flips change -1.2 (the last), -0.7 and -1.5: then 100 is a local optimum.
    start = torch.zeros(1, 3, dtype=torch.bool)
    found = descend(one_group(TABLE), start, least={"g": 0})
    assert found.tolist() == [[True, False, False]]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_states(solver):
    energy = random_energy(5, (20, 30), ((0, 1),))
    start = random_population(5, 3, 50)
    random = torch.random.get_rng_state()
    found = [solver(energy, start, generator=seeded(9)) for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("solver", SOLVERS)
def test_uniform_couplings_end_at_the_share_of_the_bias(solver, share):
    nodes = 40
    energy = one_group(torch.full((nodes, nodes), -1 / nodes).double(), bias=2 * share)
    found = solver(energy, random_population(2, 4, nodes), generator=seeded(0))
    assert (found.sum(1) - share * nodes).abs().max() <= 1


def duplicated(*shape):
    """The energy of a layer that has every filter twice, and where the first of each pair is."""
    weight = torch.randn(shape, generator=seeded(1), dtype=torch.float64).repeat_interleave(2, 0)
    spins, first = kernel_divergence(weight) - 1, torch.arange(0, len(weight), 2)
    assert (spins[first, first + 1] == -1).all()
    return one_group(spins / len(weight)), first


@pytest.mark.parametrize(
    ("shape", "solver"),
    [*(((24, 16, 3, 3), solver) for solver in SOLVERS), ((24, 1, 3, 3), tabu_search)],
)
def test_of_planted_duplicates_one_of_each_pair_stays(solver, shape):
    energy, first = duplicated(*shape)
    start = random_population(4, 8, 48)
    assert (start[:, first] ^ start[:, first + 1]).double().mean() < 0.7
    found = solver(energy, start, generator=seeded(0))
    best = found[int(energy(found).argmin())]
    assert (best[first] ^ best[first + 1]).double().mean() >= 0.95
    assert abs(int(best.sum()) - 24) <= 1


@pytest.mark.parametrize("shape", [(24, 12, 1, 1), (24, 30)])
def test_to_split_all_pairs_is_lowest_even_where_many_splits_come_close(shape):
    # Two numbers describe each unit, so that others are nearly as alike as its duplicate.
    energy, first = duplicated(*shape)
    pairs = torch.zeros(1, 48, dtype=torch.bool)
    pairs[0, first] = True
    found = energy(tabu_search(energy, random_population(4, 8, 48), generator=seeded(0))).min()
    assert float(energy(pairs)) - 1e-9 <= float(found) < 0.999 * float(energy(pairs))


def test_tabu_search_leaves_local_optima():
    spins = torch.rand(80, 80, generator=seeded(0), dtype=torch.float64) - 1
    energy, start = one_group(spins), random_population(1, 6, 80)
    local = energy(descend(energy, start))
    found = energy(tabu_search(energy, start, generator=seeded(0)))
    assert (found <= local + 1e-9).all()
    assert (found < local - 1e-3).sum() >= 4


def test_with_a_tenure_that_binds_all_nodes_the_search_still_ends():
    energy = random_energy(0)
    start = random_population(0, 2, 12)
    start[:, [0, 4, 7]] = True
    found = tabu_search(energy, start, generator=seeded(0), patience=200, tenure=50)
    assert (energy(found) <= energy(start)).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_search_is_returned(solver):
    energy = one_group(TABLE)
    empty = torch.zeros(0, 3, dtype=torch.bool)
    assert solver(energy, empty, generator=seeded(0)).shape == (0, 3)
    frozen = IsingEnergy(Layout((), ()), Couplings({}, (), {}))
    bare = torch.zeros(2, 0, dtype=torch.bool)
    assert solver(frozen, bare, generator=seeded(0)).shape == (2, 0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_malformed_starts_are_refused(solver):
    energy = one_group(TABLE)
    start = torch.tensor([[True, False, False]])
    with pytest.raises(ArgumentError, match="fewer than 2 units of 'g'"):
        solver(energy, start, generator=seeded(0), least={"g": 2})
    with pytest.raises(ArgumentError, match="no group 'h'"):
        solver(energy, start, generator=seeded(0), least={"h": 1})
    with pytest.raises(ArgumentError, match="expected bool"):
        solver(energy, start.double(), generator=seeded(0))


@pytest.mark.parametrize("options", [{"patience": -1}, {"tenure": -1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        tabu_search(one_group(TABLE), torch.ones(1, 3) > 0, generator=seeded(0), **options)
