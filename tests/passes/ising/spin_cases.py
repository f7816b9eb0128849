"""Couplings by hand and at random, and a residual net, for the tests of the Ising energy."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from passes.inputs import as_call
from passes.ising.couplings import Block, Couplings, Edge
from passes.ising.ising_energy import IsingEnergy
from passes.ising.layout import Layout
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace

TABLE = torch.tensor([[0, -0.5, -1], [-0.5, 0, -0.2], [-1, -0.2, 0]], dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def one_group(spins, bias=1.0):
    """The energy of a single block with weight 1."""
    layout = Layout(("g",), (len(spins),))
    return IsingEnergy(layout, Couplings({"g": Block(spins, 1.0)}, (), {"g": bias}))


def random_energy(seed, sizes=(4, 3, 5), edges=((0, 1), (1, 2), (2, 0)), symmetric=True):
    """Couplings of either sign, with a diagonal, and other weights and biases everywhere."""
    generator = seeded(seed)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    names = tuple(f"g{number}" for number in range(len(sizes)))
    blocks = {}
    for name, size in zip(names, sizes, strict=True):
        spins = numbers(size, size)
        blocks[name] = Block(spins + spins.T if symmetric else spins, float(numbers(1).abs()))
    joined = tuple(
        Edge(names[a], names[b], numbers(sizes[a]), float(numbers(1).abs())) for a, b in edges
    )
    bias = {name: float(numbers(1)) for name in names}
    return IsingEnergy(Layout(names, tuple(sizes)), Couplings(blocks, joined, bias))


def random_population(seed, states, nodes):
    return torch.rand(states, nodes, generator=seeded(seed)) < 0.5


def all_states(nodes):
    return torch.tensor(list(itertools.product([False, True], repeat=nodes)))


class ResidualNet(nn.Module):
    """A stem, two blocks (one of a single layer), a strided layer behind them, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.back = nn.Conv2d(12, 8, 1)
        self.loop = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2)
        self.hidden = nn.Linear(16 * 9, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.inner(x)))
        x = torch.relu(x + self.loop(x))
        x = torch.relu(self.wide(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def image(batch=4, seed=0):
    return torch.randn(batch, 1, 8, 8, generator=seeded(seed))


def built(net, inputs, seed=0):
    """A net with weights of a seed, its graph, groups and layout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = net()
    graph = trace(model, as_call(model, inputs))
    groups = channel_groups(graph)
    return graph, groups, Layout.of(groups)
