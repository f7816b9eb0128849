"""The Ising energy: a table by hand, the cut, flips, and the dense form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spin_cases import TABLE, one_group, random_energy, random_population, seeded

from energy_model.errors import ArgumentError, PreconditionError
from passes.ising.couplings import Block, Couplings, Edge
from passes.ising.ising_energy import IsingEnergy
from passes.ising.layout import Layout


def mean_bias_energy(spins, population):
    """The authors' form: the same bias for all nodes, the sum of all couplings over their number.

    Its lowest state keeps about half of all nodes, whatever the couplings are.
    """
    x = population.double()
    return -((x @ spins) * x).sum(1) + spins.sum() / len(spins) * x.sum(1)


def rows(*words):
    return torch.tensor([[bit == "1" for bit in word] for word in words])


def test_the_table_with_the_bias_of_each_row():
    states = rows("001", "010", "011", "100", "101", "110", "000", "111")
    found = one_group(TABLE)(states)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([-1.2, -0.7, -1.5, -1.5, -0.7, -1.2, 0, 0])


def test_the_table_with_the_mean_bias():
    states = rows("000", "001", "010", "100", "011", "101", "110", "111")
    found = mean_bias_energy(TABLE, states).tolist()
    expected = [0, -1.1333, -1.1333, -1.1333, -1.8667, -0.2667, -1.2667, 0]
    assert found == pytest.approx(expected, abs=1e-4)
    assert min(found) == found[4]


def test_the_energy_is_minus_the_cut_and_the_same_for_the_complement():
    spins = torch.rand(9, 9, generator=seeded(0), dtype=torch.float64) - 1
    spins = (spins + spins.T) / 2
    states = random_population(1, 30, 9)
    x = states.double()
    cut = torch.einsum("pq,sp,sq->s", spins.abs(), x, 1 - x)
    energy = one_group(spins)
    assert torch.allclose(energy(states), -cut, atol=1e-12, rtol=0)
    assert torch.allclose(energy(~states), energy(states), atol=1e-12, rtol=0)


def test_the_cut_includes_the_edges_in_their_direction():
    blocks = {"a": Block(torch.zeros(2, 2).double(), 1.0), "b": Block(TABLE, 1.0)}
    edge = Edge("a", "b", torch.tensor([-1.0, -0.5]).double(), 2.0)
    layout = Layout(("a", "b"), (2, 3))
    energy = IsingEnergy(layout, Couplings(blocks, (edge,), {"a": 1.0, "b": 1.0}))
    # Only units of a that stay pay back, for each unit of b that goes.
    found = energy(rows("10000", "10111", "01011", "00111", "11110"))
    assert found.tolist() == pytest.approx([-6, 0, -1.5 - 1, 0, -3 - 1.2])


cases = st.tuples(
    st.integers(0, 2**16),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.data(),
    st.booleans(),
)


@settings(max_examples=40)
@given(cases)
def test_blocks_are_the_dense_form_and_flips_are_differences(case):
    seed, sizes, data, symmetric = case
    pairs = [(a, b) for a in range(len(sizes)) for b in range(len(sizes)) if a != b]
    edges = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    energy = random_energy(seed, tuple(sizes), tuple(edges), symmetric)
    spins, bias = energy.dense()
    states = random_population(seed, 5, sum(sizes))
    x = states.double()
    found = energy(states)
    assert torch.allclose(found, -((x @ spins) * x).sum(1) + x @ bias)
    deltas, fields = energy.flip_deltas(states), energy.local_fields(states)
    for node in range(sum(sizes)):
        flipped = states.clone()
        flipped[:, node] = ~flipped[:, node]
        assert torch.allclose(deltas[:, node], energy(flipped) - found)
        change = torch.where(flipped[:, node], 1.0, -1.0).double()
        moved = fields.clone()
        energy.shift_fields(moved, node, change)
        assert torch.allclose(moved, energy.local_fields(flipped))


def test_the_bias_is_the_row_sum_of_the_complete_couplings():
    energy = random_energy(3)
    spins, bias = energy.dense()
    lambdas = bias / spins.sum(1)
    by_group = [lambdas[part] for part in energy.layout.parts.values()]
    assert all(torch.allclose(row, row[0].expand_as(row)) for row in by_group)
    assert len({round(float(row[0]), 9) for row in by_group}) == len(by_group)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_uniform_couplings_keep_the_share_that_half_the_bias_names(share):
    nodes = 40
    spins = torch.full((nodes, nodes), -0.7).double()
    energy = one_group(spins, bias=2 * share)
    widths = torch.arange(nodes)[None] < torch.arange(nodes + 1)[:, None]
    assert abs(int(energy(widths).argmin()) - share * nodes) <= 1


def test_uniform_couplings_cost_nothing_at_both_ends():
    nodes = 40
    energy = one_group(torch.full((nodes, nodes), -0.7).double())
    widths = torch.arange(nodes)[None] < torch.arange(nodes + 1)[:, None]
    kept = torch.arange(nodes + 1).double()
    assert torch.allclose(energy(widths), 0.7 * kept * (kept - nodes))
    assert int(energy(widths).argmin()) == nodes // 2


def test_a_model_without_free_groups_has_the_energy_zero():
    energy = IsingEnergy(Layout((), ()), Couplings({}, (), {}))
    empty = torch.zeros(2, 0, dtype=torch.bool)
    assert energy(empty).tolist() == [0, 0]
    assert energy.flip_deltas(empty).shape == (2, 0)


@pytest.mark.parametrize(
    "population", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool), rows("0101")]
)
def test_what_is_no_population_is_refused(population):
    energy = one_group(TABLE)
    for function in (energy, energy.flip_deltas, energy.local_fields):
        with pytest.raises(ArgumentError, match=r"expected bool \(states, 3\)"):
            function(population)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Couplings({}, (), {"g": 1.0}), "block of 'g'"),
        (Couplings({"g": Block(TABLE[:2], 1.0)}, (), {"g": 1.0}), "block of 'g'"),
        (Couplings({"g": Block(TABLE, 1.0)}, (), {}), "block of 'g'"),
        (
            Couplings({"g": Block(TABLE, 1.0)}, (Edge("g", "h", TABLE[0], 1.0),), {"g": 1.0}),
            "edge from 'g' to 'h'",
        ),
        (
            Couplings({"g": Block(TABLE, 1.0)}, (Edge("g", "g", TABLE[0], 1.0),), {"g": 1.0}),
            "edge from 'g' to 'g'",
        ),
    ],
)
def test_couplings_of_another_layout_are_refused(found, words):
    with pytest.raises(ArgumentError, match=words):
        IsingEnergy(Layout(("g",), (3,)), found)


def test_an_edge_has_as_many_spins_as_its_source_has_units():
    blocks = {"a": Block(torch.zeros(2, 2).double(), 1.0), "b": Block(TABLE, 1.0)}
    found = Couplings(blocks, (Edge("a", "b", TABLE[0], 1.0),), {"a": 1.0, "b": 1.0})
    with pytest.raises(ArgumentError, match="edge from 'a' to 'b'"):
        IsingEnergy(Layout(("a", "b"), (2, 3)), found)


def test_couplings_that_are_not_finite_are_refused():
    with pytest.raises(PreconditionError, match="not finite"):
        one_group(TABLE * float("nan"))
    edge = Edge("g", "h", torch.tensor([torch.inf]).double(), 1.0)
    one = Block(torch.zeros(1, 1).double(), 1.0)
    with pytest.raises(PreconditionError, match="'g'"):
        IsingEnergy(
            Layout(("g", "h"), (1, 1)),
            Couplings({"g": one, "h": one}, (edge,), {"g": 1.0, "h": 1.0}),
        )
