"""Small models in float64, their batches, and compressions of them by hand."""

from __future__ import annotations

import copy

import torch
from torch import nn

from passes.inputs import Call
from passes.quantize.encoding import Encoding, largest_code, snap
from passes.tracing.trace import trace


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model, seed=0):
    """The model in float64, with values of its own everywhere."""
    model = model.double().eval()
    with torch.no_grad():
        for number, (name, tensor) in enumerate(model.state_dict().items()):
            if tensor.is_floating_point():
                fresh = values(*tensor.shape, seed=seed + number)
                if tensor.dim() > 1:
                    fresh = fresh / tensor[0].numel() ** 0.5
                tensor.copy_(fresh.abs() * 0.3 + 0.7 if "var" in name else fresh)
    return model


class Residual(nn.Module):
    """Convolutions of many kinds, norms, a sum, a linear layer: `(N, 2, 8, 8)` to `(N, 3)`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, 1, 2, dilation=2, groups=6)
        self.pair = nn.Conv2d(6, 6, (1, 3), padding="same", groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 4, 3, 2, 1, padding_mode="reflect")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.pair(self.deep(x))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def residual():
    return filled(Residual())


def batches(*shape, count=3, seed=50):
    """What gives so many batches of random inputs."""
    calls = [Call((values(*shape, seed=seed + n),)) for n in range(count)]
    return lambda wanted: iter(calls[:wanted])


def graph_of(model, *shape):
    return trace(model, Call((values(*shape),)))


def masked(model, share=0.5, seed=9):
    """A copy that lacks a random share of every weight."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.dim() > 1):
            parameter *= (
                torch.rand(
                    parameter.shape,
                    generator=torch.Generator().manual_seed(seed + number),
                    dtype=torch.float64,
                )
                >= share
            )
    return model


def gridded(model, bits, *shape):
    """A graph of a copy with all weights of layers rounded, and their encodings."""
    model = copy.deepcopy(model)
    graph = graph_of(model, *shape)
    for site in graph.sites:
        weight = graph.weight(site)
        scale = weight.flatten(1).abs().amax(1, keepdim=True).clamp_min(1e-6) / largest_code(bits)
        graph.encodings[site.name] = Encoding(bits, snap(scale))
        weight.copy_(graph.encodings[site.name].nearest(weight))
    return graph


def outputs(model, given):
    with torch.no_grad():
        return torch.cat([call(model) for call in given(10**6)])
