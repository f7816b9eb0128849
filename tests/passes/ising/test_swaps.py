"""Swaps that lower an Ising energy, against all swaps there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from spin_cases import one_group, random_energy, random_population

from energy_model.errors import ArgumentError
from passes.ising import swaps
from passes.ising.swaps import descend_swaps


def neighbours(energy, row):
    """Every state that is one swap inside a group away."""
    for part in energy.layout.parts.values():
        nodes = range(part.start, part.stop)
        for out, into in itertools.product(nodes, nodes):
            if row[out] and not row[into]:
                other = row.clone()
                other[[out, into]] = other[[into, out]]
                yield other


@pytest.mark.parametrize("seed", range(6))
def test_every_move_is_the_best_swap_of_all(seed):
    energy = random_energy(seed, symmetric=bool(seed % 2))
    row = random_population(seed, 1, energy.layout.nodes)[0]
    moved = descend_swaps(energy, row, 1)
    found = torch.stack([row, *neighbours(energy, row)])
    assert float(energy(moved[None])) == pytest.approx(float(energy(found).min()), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_as_many_moves_as_there_are_end_where_no_swap_helps(seed, monkeypatch):
    monkeypatch.setattr(swaps, "_ROWS", 7)
    energy = random_energy(seed, sizes=(30, 25), edges=((0, 1),))
    row = random_population(seed, 1, energy.layout.nodes)[0]
    values = [float(energy(descend_swaps(energy, row, moves)[None])) for moves in range(40)]
    count = values.index(values[-1])
    assert 5 < count < 39
    assert values[: count + 1] == sorted(set(values), reverse=True)
    for end in (descend_swaps(energy, row, 40), descend_swaps(energy, row)):
        found = torch.stack(list(neighbours(energy, end)))
        assert float(energy(found).min()) >= float(energy(end[None])) - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_in_the_end_no_swap_helps_and_no_count_has_changed(seed):
    energy = random_energy(seed, sizes=(7, 1, 9))
    row = random_population(seed, 1, energy.layout.nodes)[0]
    before = row.clone()
    end = descend_swaps(energy, row)
    assert torch.equal(row, before)
    assert torch.equal(energy.layout.kept(end[None]), energy.layout.kept(row[None]))
    found = torch.stack([end, *neighbours(energy, end)])
    assert float(energy(found).min()) >= float(energy(end[None])) - 1e-9
    assert torch.equal(descend_swaps(energy, end), end)


def test_it_separates_pairs_that_single_flips_and_sums_of_them_leave_together():
    """A pair that stays whole and one that is gone: no flip helps, the swap does."""
    spins = -torch.ones(4, 4, dtype=torch.float64) * 0.5
    spins[0, 1] = spins[1, 0] = spins[2, 3] = spins[3, 2] = -0.9
    energy = one_group(spins.fill_diagonal_(0))
    together = torch.tensor([True, True, False, False])
    flips = energy.flip_deltas(together[None])[0]
    assert flips.min() > 0
    apart = descend_swaps(energy, together)
    assert int(apart[:2].sum()) == int(apart[2:].sum()) == 1
    assert float(energy(apart[None])) < float(energy(together[None]))


@pytest.mark.parametrize("moves", [0, 2])
def test_so_many_moves_at_most(moves):
    energy = random_energy(1, sizes=(9, 8), edges=((0, 1),))
    row = random_population(4, 1, 17)[0]
    moved = descend_swaps(energy, row, moves)
    assert int((moved ^ row).sum()) <= 2 * moves
    assert (float(energy(moved[None])) < float(energy(row[None]))) == (moves > 0)


def test_nothing_to_swap():
    energy = random_energy(0, sizes=(2, 3), edges=())
    for row in (torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)):
        assert torch.equal(descend_swaps(energy, row), row)
    empty = random_energy(0, sizes=(), edges=())
    assert descend_swaps(empty, torch.zeros(0, dtype=torch.bool)).shape == (0,)


def test_malformed_input_is_refused():
    energy = random_energy(0)
    with pytest.raises(ArgumentError):
        descend_swaps(energy, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ArgumentError):
        descend_swaps(energy, torch.zeros(12, dtype=torch.bool), -1)
