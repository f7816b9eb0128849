"""Sizes in the code: what follows the width passes, what does not freezes the channels it meets."""

from __future__ import annotations

import pytest
import torch
from slicing import randomize, traced, worst_error
from structure_nets import image
from torch import nn

from passes.structure.proof import prove
from passes.structure.record import record
from passes.structure.walk import walk


class Sized(nn.Module):
    """Flattens features with a size that `size` computes from the features."""

    def __init__(self, size):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.bypass = nn.Conv2d(3, 4, 4, stride=4)
        self.head = nn.Linear(24, 5)
        self.other = nn.Linear(16, 5)
        self.size = size

    def forward(self, x):
        y = self.conv(x)
        return self.head(y.view(y.shape[0], self.size(y))) + self.other(self.bypass(x).flatten(1))


FOLLOWS = [lambda y: -1, lambda y: y.size(1) * 4, lambda y: y[0].numel(), lambda y: y.shape[1] << 2]
FIXED = [lambda y: 24, lambda y: y.size(1) + 18, lambda y: 6 * y.size(2) * y.size(3)]


@pytest.mark.spread(2)
@pytest.mark.parametrize("size", FOLLOWS)
def test_a_size_that_follows_the_width(size):
    graph, groups = traced(randomize(Sized(size)), image())
    assert [(g.name, g.units) for g in groups.free] == [("conv", 6), ("bypass", 4)]
    assert worst_error(graph, groups, (image(),)) < 1e-12


@pytest.mark.spread(1)
@pytest.mark.parametrize("size", FIXED)
def test_a_size_that_does_not(size):
    graph, groups = traced(randomize(Sized(size)), image())
    assert [group.name for group in groups.free] == ["bypass"]
    assert "view" in groups.by_name["conv"].why
    assert worst_error(graph, groups, (image(),)) < 1e-12


def test_without_the_proof_a_fixed_size_would_pass():
    """The walk alone does not judge sizes: the proof is what freezes them."""
    graph, _ = traced(Sized(FIXED[0]), image())
    context, values = walk(graph.graph_module, record(graph, graph.graph_module))
    roots = context.slots.roots()
    conv = int(roots[0])
    assert conv not in context.slots.reasons(roots)
    prove(context, values, roots)
    assert conv in context.slots.reasons(roots)


def test_a_size_is_taken_from_another_tensor():
    """The channels of both tensors stay, as the number of one is the size of the other."""

    class Borrowed(Sized):
        def forward(self, x):
            y, z = self.conv(x), self.bypass(x)
            return self.head(y.reshape(-1, z.size(1) * 6)) + self.other(z.flatten(1))

    _, groups = traced(Borrowed(None), image())
    assert groups.free == ()
    assert torch.tensor([group.frozen for group in groups]).all()
