"""Couplings: blocks, edges along the flow of data, weights, biases, running means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from spin_cases import ResidualNet, built, image
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.inputs import Call
from passes.ising.activity import unit_activity
from passes.ising.couplings import couplings, ema, flow
from passes.ising.ising_energy import IsingEnergy
from passes.ising.layout import Layout
from passes.ising.redundancy import group_divergence

FLOW = (("stem", "inner"), ("stem", "wide"), ("inner", "stem"), ("wide", "hidden"))


@pytest.fixture
def case():
    return built(ResidualNet, image())


def halves(layout):
    return {
        name: np.linspace(0, 1, size) for name, size in zip(layout.names, layout.sizes, strict=True)
    }


def test_the_edges_of_a_residual_net_are_who_reads_whom(case):
    _, groups, layout = case
    assert layout.names == ("stem", "inner", "wide", "hidden")
    assert flow(groups) == FLOW  # the block of one layer, from the stream to itself, is none


def test_branches_that_are_joined_lead_to_the_same_group():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1)
            self.deep = nn.Conv2d(6, 6, 3, groups=6)
            self.c, self.head = nn.Conv2d(10, 5, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x):
            y = torch.relu(self.a(x))
            z = self.deep(torch.relu(self.b(y)))
            return self.head(torch.tanh(self.c(torch.cat([y[:, :, 1:-1, 1:-1], z], 1))))

    _, groups, _ = built(Branches, image())
    assert flow(groups) == (("a", "b"), ("a", "c"), ("b", "c"))


def test_blocks_are_the_divergence_less_one(case):
    graph, groups, layout = case
    found = couplings(graph, groups, layout, intra=3.0)
    assert tuple(found.blocks) == layout.names
    for group in groups.free:
        block = found.blocks[group.name]
        assert block.spins.dtype == torch.float64
        assert torch.equal(block.spins, group_divergence(graph, group) - 1)
        assert (block.spins.diagonal() == -1).all()
        assert block.weight == 3.0 / group.units


def test_without_activity_groups_are_coupled_within_only(case):
    assert couplings(*case).edges == ()


def test_edges_carry_the_entropy_less_one(case):
    graph, groups, layout = case
    activity = halves(layout)
    found = couplings(graph, groups, layout, activity, inter=2.0)
    assert tuple((edge.source, edge.target) for edge in found.edges) == FLOW
    for edge in found.edges:
        assert torch.equal(edge.spins, torch.from_numpy(activity[edge.source] - 1))
    assert found.edges[0].weight == 2.0 / math.sqrt(8 * 12)


def test_a_group_without_activity_has_no_edges_of_its_own(case):
    graph, groups, layout = case
    activity = halves(layout)
    del activity["stem"]
    found = couplings(graph, groups, layout, activity)
    assert [(e.source, e.target) for e in found.edges] == [("inner", "stem"), ("wide", "hidden")]


def test_what_is_measured_fits(case):
    graph, groups, layout = case
    activity = unit_activity(graph, groups, [Call((image(),))])
    energy = IsingEnergy(layout, couplings(graph, groups, layout, activity))
    nothing = torch.zeros(1, layout.nodes, dtype=torch.bool)
    assert float(energy(nothing)) == 0
    assert float(energy(~nothing)) == pytest.approx(0, abs=1e-9)


def test_biases_are_one_number_or_some_by_group(case):
    graph, groups, layout = case
    assert couplings(graph, groups, layout, bias=0.5).bias == dict.fromkeys(layout.names, 0.5)
    found = couplings(graph, groups, layout, bias={"inner": 0.25}).bias
    assert found == {"stem": 1.0, "inner": 0.25, "wide": 1.0, "hidden": 1.0}


def test_a_running_mean_moves_blocks_and_edges(case):
    graph, groups, layout = case
    old = couplings(graph, groups, layout, halves(layout))
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter += torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
    flat = {name: np.full(len(h), 0.5) for name, h in halves(layout).items()}
    new = couplings(graph, groups, layout, flat, bias=0.3)
    mean = ema(old, new)
    for name, block in mean.blocks.items():
        expected = 0.9 * old.blocks[name].spins + 0.1 * new.blocks[name].spins
        assert torch.allclose(block.spins, expected)
        assert not torch.allclose(block.spins, old.blocks[name].spins)
    assert torch.allclose(mean.edges[0].spins, 0.9 * old.edges[0].spins + 0.1 * -0.5)
    assert mean.bias == new.bias
    assert torch.equal(ema(old, new, keep=1.0).blocks["stem"].spins, old.blocks["stem"].spins)
    assert torch.equal(ema(old, new, keep=0.0).edges[1].spins, new.edges[1].spins)


def test_a_running_mean_of_other_groups_is_refused(case):
    graph, groups, layout = case
    plain = couplings(graph, groups, layout)
    with pytest.raises(ArgumentError, match="other groups"):
        ema(plain, couplings(graph, groups, layout, halves(layout)))
    with pytest.raises(ArgumentError, match="not within"):
        ema(plain, plain, keep=1.5)


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"intra": -1.0}, "intra"),
        ({"inter": math.inf}, "inter"),
        ({"bias": {"nowhere": 1.0}}, "nowhere"),
        ({"bias": math.nan}, "not finite"),
        ({"activity": {"stem": np.ones(7)}}, "each of 8 units"),
        ({"activity": {"nowhere": np.ones(7)}}, "each of no units"),
        ({"activity": {"stem": np.full(8, 1.5)}}, "within"),
        ({"activity": {"stem": np.full(8, np.nan)}}, "within"),
    ],
)
def test_malformed_arguments_are_refused(case, options, words):
    with pytest.raises(ArgumentError, match=words):
        couplings(*case, **options)


def test_a_layout_of_other_groups_is_refused(case):
    graph, groups, _ = case
    with pytest.raises(ArgumentError, match="layout"):
        couplings(graph, groups, Layout(("stem",), (8,)))


def test_weights_that_are_not_finite_are_refused(case):
    graph, groups, layout = case
    with torch.no_grad():
        graph.module.inner.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(PreconditionError, match=r"inner\.weight"):
        couplings(graph, groups, layout)
