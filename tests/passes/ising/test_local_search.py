"""Better neighbours of keep-states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from evolution_nets import random_population
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.ising.layout import Layout
from passes.ising.local_search import best_flips, descend, flip_changes

PAIR = Layout(("a", "b"), (4, 3))


def bits(*rows):
    return torch.tensor([[c == "1" for c in row] for row in rows])


def quadratic(seed, nodes):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(nodes, nodes, generator=generator, dtype=torch.float64)

    def energy(row):
        return float(row.double() @ weights @ row.double())

    def changes(row):
        """One flip at a time, by the energy itself."""
        flips = torch.eye(row.numel(), dtype=torch.bool)
        return torch.tensor([energy(row ^ f) - energy(row) for f in flips], dtype=torch.float64)

    return energy, changes


def test_slopes_are_signed_by_the_state():
    rows = bits("10", "01")
    found = flip_changes(rows, torch.tensor([2.0, -3.0]))
    assert found.tolist() == [[-2.0, -3.0], [2.0, 3.0]]
    each = flip_changes(rows, torch.tensor([[2.0, -3.0], [5.0, 7.0]]))
    assert each.tolist() == [[-2.0, -3.0], [5.0, -7.0]]


def test_slopes_are_exact_for_a_linear_energy():
    slopes = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    row = bits("1010")
    for node, change in enumerate(flip_changes(row, slopes)[0].tolist()):
        other = row.clone()
        other[0, node] ^= True
        assert float((other.double() - row.double())[0] @ slopes) == change


def test_flips_by_hand():
    rows = bits("1010101", "0000000")
    changes = torch.tensor([[-1.0, -5, 3, -2, 0, 1, -4], [1.0, 2, 3, 4, 5, 6, -7]])
    assert torch.equal(best_flips(rows, changes, 0), rows)
    assert torch.equal(best_flips(rows, changes, 2), bits("1110100", "0000001"))
    # Moves that do not lower the energy are not applied, however many are asked for.
    assert torch.equal(best_flips(rows, changes, 50), bits("0111100", "0000001"))
    shared = best_flips(rows, changes[0], 1)
    assert torch.equal(shared, bits("1110101", "0100000"))
    assert torch.equal(rows, bits("1010101", "0000000"))


def test_swaps_by_hand():
    # Group a: nodes 0 and 1 stay; group b: node 4 stays.
    rows = bits("1100100")
    changes = torch.tensor([[-1.0, -3, 2, -4, 1, -2, 5]])
    # a: drop 1 and add 3 for -7, then drop 0 and add 2 for +1, which is no gain;
    # b: drop 4 and add 5 for -1.
    assert torch.equal(best_flips(rows, changes, 1, layout=PAIR), bits("1001100"))
    assert torch.equal(best_flips(rows, changes, 2, layout=PAIR), bits("1001010"))
    assert torch.equal(best_flips(rows, changes, 9, layout=PAIR), bits("1001010"))
    full = bits("1111111")
    assert torch.equal(best_flips(full, -changes.abs(), 9, layout=PAIR), full)


@given(st.integers(0, 500), st.integers(0, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_moves_lower_the_first_order_energy(seed, count, swaps):
    layout = Layout(("a", "b", "c"), (5, 4, 3))
    rows = random_population(4, 12, seed)
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    changes = flip_changes(rows, slopes)
    found = best_flips(rows, changes, count, layout=layout if swaps else None)
    flipped = rows ^ found
    assert (flipped.sum(1) <= count * (2 if swaps else 1)).all()
    assert ((changes * flipped).sum(1) <= 0).all()
    if swaps:
        assert torch.equal(layout.kept(found), layout.kept(rows))
        gain = best_swap(rows[0], changes[0], layout)
        if count:
            assert (float((changes * flipped)[0].sum()) < 0) == (gain < 0)
    else:
        expected = changes.clamp(max=0).sort(dim=1).values[:, :count].sum(1)
        assert torch.allclose((changes * flipped).sum(1), expected)


def best_swap(row, changes, layout):
    gains = [
        float(changes[drop] + changes[add])
        for part in layout.parts.values()
        for drop, add in itertools.permutations(range(part.start, part.stop), 2)
        if row[drop] and not row[add]
    ]
    return min(gains, default=math.inf)


@given(st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_descent_ends_where_no_flip_helps(seed):
    energy, changes = quadratic(seed, 9)
    row = random_population(1, 9, seed)[0]
    found = descend(changes, row)
    assert energy(found) <= energy(row) + 1e-9
    assert float(changes(found).min()) >= -1e-9
    one = descend(changes, row, moves=1)
    lowest = float(changes(row).min())
    assert int((one ^ row).sum()) == (lowest < -1e-9)
    assert energy(one) - energy(row) == pytest.approx(min(lowest, 0.0), abs=1e-9)


@given(st.integers(0, 500))
@settings(max_examples=15, deadline=None)
def test_descent_by_swaps_ends_where_no_swap_helps(seed):
    energy, changes = quadratic(seed, 7)
    row = random_population(1, 7, seed)[0]
    found = descend(changes, row, layout=PAIR)
    assert torch.equal(PAIR.kept(found[None]), PAIR.kept(row[None]))
    assert energy(found) <= energy(row) + 1e-9
    for part in PAIR.parts.values():
        for drop, add in itertools.permutations(range(part.start, part.stop), 2):
            if found[drop] and not found[add]:
                other = found.clone()
                other[[drop, add]] ^= True
                assert energy(other) >= energy(found) - 1e-9


def test_descent_ends_on_flat_ground():
    row = random_population(1, 7, 0)[0]
    for layout in (None, PAIR):
        assert torch.equal(descend(lambda r: torch.zeros(r.shape), row, layout=layout), row)
    assert descend(lambda r: torch.zeros(0), torch.zeros(0, dtype=torch.bool)).shape == (0,)


@pytest.mark.parametrize("layout", [None, PAIR])
def test_changes_of_no_energy_do_not_go_round_for_ever(layout):
    row = random_population(1, 7, 0)[0]
    with pytest.raises(ArgumentError, match="came back to where it was"):
        descend(lambda r: -torch.arange(1.0, 8.0), row, layout=layout)
    assert descend(lambda r: -torch.ones(7), row, moves=1).ne(row).sum() == 1


def test_malformed_input_is_refused():
    rows = bits("1010101")
    with pytest.raises(ArgumentError, match="not finite"):
        best_flips(rows, torch.full((7,), math.nan), 1)
    with pytest.raises(ArgumentError, match="changes"):
        best_flips(rows, torch.zeros(6), 1)
    with pytest.raises(ArgumentError, match="population"):
        best_flips(rows[:, 1:], torch.zeros(6), 1, layout=PAIR)
    for count in (-1, 1.5, True):
        with pytest.raises(ArgumentError, match="count"):
            best_flips(rows, torch.zeros(7), count)
    with pytest.raises(ArgumentError, match="population"):
        descend(lambda r: torch.zeros(7), torch.zeros(7))
    with pytest.raises(ArgumentError, match="not finite"):
        descend(lambda r: torch.full((7,), math.inf), rows[0])
    with pytest.raises(ArgumentError, match="slopes"):
        flip_changes(rows, torch.zeros(3))
