"""A net, a model of its latency, and a clock that the tests set."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from energy_model.budget import Limit
from energy_model.latency import LatencyModel, LayerTime
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.inputs import as_call
from passes.structure.groups import channel_groups
from passes.structure.latency_terms import Widths
from passes.structure.state import full_state
from passes.tracing.trace import trace

BASE = 1.0
TIME = LayerTime((0.0, 0.0, 0.0, 1e-3))


def graph_of():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU())
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4)).eval()
    return trace(model, as_call(model, torch.zeros(1, 2, 8, 8)))


def predictor(graph):
    """Time in proportion to the products of widths, 1 s at full widths."""
    model = LatencyModel({site.name: TIME for site in graph.sites})
    groups = channel_groups(graph)
    full = model.predict(Widths(graph, groups).of(full_state(groups)))
    return LatencyModel(model.layers, scale=BASE / full)


class Clock:
    """Measures what the predictor says, times a factor; notes every file."""

    def __init__(self, graph, factor=1.0, spread=0.0, least=0.0):
        self.model, self.factor, self.spread, self.least = predictor(graph), factor, spread, least
        self.files = []

    def __call__(self, cut):
        widths = {
            s.name: (s.uses[0].shape.in_channels, s.uses[0].shape.out_channels) for s in cut.sites
        }
        self.files.append(widths)
        return Timing(max(self.least, self.factor * self.model.predict(widths)), self.spread)


def limits(share):
    return (ResolvedLimit(Limit("latency", Fraction(str(share))), BASE, share * BASE),)
