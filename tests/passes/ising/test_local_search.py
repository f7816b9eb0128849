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
from passes.ising.gate_gradients import flip_changes
from passes.ising.layout import Layout
from passes.ising.local_search import best_swaps

PAIR = Layout(("a", "b"), (4, 3))


def bits(*rows):
    return torch.tensor([[c == "1" for c in row] for row in rows])


def test_changes_are_exact_for_a_linear_energy():
    slopes = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    row = bits("1010")
    for node, change in enumerate(flip_changes(slopes, row[0]).tolist()):
        other = row.clone()
        other[0, node] ^= True
        assert float((other.double() - row.double())[0] @ slopes) == change


def test_swaps_by_hand():
    # Group a: nodes 0 and 1 stay; group b: node 4 stays.
    rows = bits("1100100")
    changes = torch.tensor([[-1.0, -3, 2, -4, 1, -2, 5]])
    # a: drop 1 and add 3 for -7, then drop 0 and add 2 for +1, which is no gain;
    # b: drop 4 and add 5 for -1.
    assert torch.equal(best_swaps(rows, changes, 1, PAIR), bits("1001100"))
    assert torch.equal(best_swaps(rows, changes, 2, PAIR), bits("1001010"))
    assert torch.equal(best_swaps(rows, changes, 9, PAIR), bits("1001010"))
    full = bits("1111111")
    assert torch.equal(best_swaps(full, -changes.abs(), 9, PAIR), full)


@given(st.integers(0, 500), st.integers(0, 8))
@settings(max_examples=60)
def test_swaps_lower_the_first_order_energy(seed, count):
    layout = Layout(("a", "b", "c"), (5, 4, 3))
    rows = random_population(4, 12, seed)
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    changes = torch.stack([flip_changes(*pair) for pair in zip(slopes, rows, strict=True)])
    found = best_swaps(rows, changes, count, layout)
    flipped = rows ^ found
    assert (flipped.sum(1) <= 2 * count).all()
    assert ((changes * flipped).sum(1) <= 0).all()
    assert torch.equal(layout.kept(found), layout.kept(rows))
    gain = best_swap(rows[0], changes[0], layout)
    if count:
        assert (float((changes * flipped)[0].sum()) < 0) == (gain < 0)


def best_swap(row, changes, layout):
    gains = [
        float(changes[drop] + changes[add])
        for part in layout.parts.values()
        for drop, add in itertools.permutations(range(part.start, part.stop), 2)
        if row[drop] and not row[add]
    ]
    return min(gains, default=math.inf)


def test_malformed_input_is_refused():
    rows = bits("1010101")
    with pytest.raises(ArgumentError, match="not finite"):
        best_swaps(rows, torch.full((7,), math.nan), 1, PAIR)
    with pytest.raises(ArgumentError, match="changes"):
        best_swaps(rows, torch.zeros(6), 1, PAIR)
    with pytest.raises(ArgumentError, match="population"):
        best_swaps(rows[:, 1:], torch.zeros(6), 1, PAIR)
    for count in (-1, 1.5, True):
        with pytest.raises(ArgumentError, match="count"):
            best_swaps(rows, torch.zeros(7), count, PAIR)
