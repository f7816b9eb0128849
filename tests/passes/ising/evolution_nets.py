"""A small net with a residual stream, a concatenation and a depthwise layer, and its budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction

import torch
from torch import nn

from energy_model.budget import Limit
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.ising.layout import Layout
from passes.ising.repair import Repair
from passes.rewrite.shrink import shrink
from passes.structure.costs import StructureCosts
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace

KEYS = ("energy", "params", "macs")
HARDWARE = Hardware(
    "small", array_rows=3, array_columns=2, input_cache_bytes=96, weight_cache_bytes=32
)


class Mixed(nn.Module):
    """Groups of 12, 10, 7 and 9 units."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.a = nn.Conv2d(12, 10, 3, padding=1)
        self.b = nn.Conv2d(10, 12, 1)
        self.c = nn.Conv2d(12, 7, 3, padding=1)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.d = nn.Conv2d(19, 9, 1)
        self.head = nn.Linear(9, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = torch.cat([x, self.depthwise(self.c(x))], 1)
        return self.head(torch.relu(self.d(x)).mean((2, 3)))


def traced():
    """The net's graph and groups."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed().eval()
    graph = trace(model, as_call(model, (torch.zeros(2, 3, 6, 6),)))
    return graph, channel_groups(graph)


def limit(costs, key, share):
    base = costs.value(key, {})
    return ResolvedLimit(Limit(key, Fraction(share)), base, int(base * Fraction(share)))


def repair_for(graph, groups, shares, *, multiple=1, minimum=1, frozen=(), fill=True):
    """A `Repair` to a share of some costs, with other minima or more frozen groups."""
    changed = tuple(
        replace(g, frozen=True, why="is to stay")
        if g.name in frozen
        else replace(g, minimum=min(g.units, minimum))
        for g in groups
    )
    groups = replace(groups, groups=changed)
    costs = StructureCosts(graph, groups, HARDWARE, KEYS)
    limits = tuple(limit(costs, key, share) for key, share in shares.items())
    return Repair(costs, groups, Layout.of(groups), limits, multiple, fill)


def counted(graph, groups, state):
    """Parameters and multiply-accumulates of the model that is really cut."""
    small = copy.deepcopy(graph)
    shrink(small, groups, state)
    parameters = sum(p.numel() for p in small.module.parameters())
    return {"params": parameters, "macs": cost_table(small, HARDWARE).total.macs}


def random_population(states, nodes, seed, rate=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(states, nodes, generator=generator) < rate


def random_scores(nodes, seed):
    return torch.rand(nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
