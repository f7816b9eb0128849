"""A gate on a layer's weight against one on its input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from passes.rewrite.gate_context import GateContext, LiveGate
from passes.rewrite.gated_layer import GatedLayer, takes_gate

NODES = torch.tensor([0, 1, 2, 4, 3, 1])
KEEP = torch.tensor([True, False, True, True, False, False])
LAYERS = {
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2), (2, 6, 9), 1),
    "conv2d": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 5, 4), 1),
    "unbatched": (nn.Conv2d(6, 4, 3, bias=False), (6, 7, 6), 0),
    "conv3d": (nn.Conv3d(6, 4, 2, dilation=2), (2, 6, 4, 4, 4), -4),
    "linear": (nn.Linear(6, 4), (5, 6), 1),
    "linear, last": (nn.Linear(6, 4, bias=False), (3, 5, 6), -1),
}


def pair(layer, dim):
    """A gated layer, and a gate before a copy of the layer."""
    layer = copy.deepcopy(layer).double()
    context = GateContext()
    ours = GatedLayer(NODES, dim, context, "layer", layer)
    gate, reader = LiveGate(NODES, dim, context), copy.deepcopy(layer)
    for each in (ours, gate):
        each.keep.copy_(KEEP)
    return ours, layer, nn.Sequential(gate, reader), context


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_a_gate_before_the_layer(name):
    layer, shape, dim = LAYERS[name]
    ours, layer, theirs, context = pair(layer, dim)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    row = torch.tensor([True, False, True, True, True])
    for rows in (None, row, row.double() * 0.5):
        context.rows = rows
        found = []
        for model, part in ((ours, layer), (theirs, theirs[1])):
            x = values.clone().requires_grad_()
            out = model(x)
            out.square().sum().backward()
            found.append((out, x.grad, *(p.grad for p in part.parameters())))
            part.zero_grad()
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
        if rows is None:
            gradient = found[0][2]
            assert bool((gradient[:, ~KEEP] == 0).all())
            assert bool((gradient[:, KEEP] != 0).all())


def test_the_gate_is_on_the_smaller_of_weight_and_input():
    ours, layer, theirs, _ = pair(nn.Linear(6, 4), 1)
    seen = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for rows, on_input in ((3, True), (4, False)):
        x = torch.randn(rows, 6, dtype=torch.float64)
        assert torch.allclose(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
        assert bool((seen.pop()[:, ~KEEP] == 0).all()) == on_input


def test_where_channels_are_not_summed_over_the_gate_is_on_the_input():
    ours, _, theirs, _ = pair(nn.Linear(5, 4), 1)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x)[:, 1], ours(torch.zeros_like(x))[:, 1])


def test_the_layer_has_one_owner_and_is_copied_with_the_model():
    model = nn.Module()
    model.layer = nn.Conv2d(6, 4, 3)
    model.gate = GatedLayer(NODES, 1, GateContext(), "layer", model.layer)
    assert list(model.state_dict()) == ["layer.weight", "layer.bias", "gate.keep"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.layer.weight.zero_()
        twin.layer.bias.zero_()
    x = torch.randn(1, 6, 4, 4)
    assert not twin.gate(x).any()
    assert model.gate(x).any()


class Readers(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.hooked = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.grouped, self.spread = nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 4, 1)
        self.named = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, x):
        x = self.spread(self.grouped(self.hooked(self.plain(x))))
        return self.named(input=torch.relu(x))


def test_which_readers_take_a_gate():
    module = symbolic_trace(Readers())
    taken = [node.name for node in module.graph.nodes if takes_gate(module, node)]
    assert taken == ["plain"]
