"""Slices whose bounds follow a shape, or the mode, in graphs of both modes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from passes.inputs import as_call
from passes.tracing.trace import trace


class Halved(nn.Module):
    """Half of the channels, by their number; then dropout, so that the two modes differ."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        y = self.conv(x)
        return F.dropout(y[:, : y.shape[1] // 2], 0.5, self.training)


class Cut(Halved):
    """Other channels in training than in evaluation."""

    def forward(self, x):
        return self.conv(x)[:, (4 if self.training else 2) :]


def both(model):
    x = torch.randn(2, 3, 8, 8)
    return trace(model.eval(), as_call(model, x)).graph_module, x


def test_a_bound_that_follows_a_shape_stays_a_node_of_the_graph():
    model = Halved()
    graph, x = both(model)
    assert torch.equal(graph(x), model(x))
    [cut] = [n for n in graph.graph.nodes if n.name == "getitem_1"]
    assert isinstance(cut.args[1][1].stop, torch.fx.Node)


def test_a_bound_that_follows_the_mode_does_so_in_the_graph():
    model = Cut()
    graph, x = both(model)
    assert torch.equal(graph(x), model(x))
    assert graph(x).shape[1] == 6
    assert torch.equal(graph.train()(x), model.train()(x))
    assert graph(x).shape[1] == 4
