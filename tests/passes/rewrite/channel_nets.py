"""Models with masked channels, in float64."""

from __future__ import annotations

import torch
from torch import nn

from passes.inputs import as_call
from passes.rewrite.input_masks import attach_input_masks, mask_of, update_supports
from passes.tracing.trace import trace

DEAD = {"second": (1, 4)}
SHAPE = (3, 2, 8, 8)


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model, seed=0):
    """The model in float64, every tensor of it away from its initial value."""
    model = model.double().eval()
    with torch.no_grad():
        for number, (name, tensor) in enumerate(model.state_dict().items()):
            if tensor.is_floating_point():
                fresh = values(*tensor.shape, seed=seed + number)
                tensor.copy_(fresh.abs() + 0.5 if "var" in name else fresh)
    return model


def masked(model, shape, dead, holes=(), rules=None):
    """A graph whose masks lack channels (`dead`) and single inputs (`holes`), by layer."""
    graph = trace(model, as_call(model, values(*shape)))
    graph.rules = rules or {}
    attached = attach_input_masks(graph)
    with torch.no_grad():
        for mask in attached:
            mask_of(graph, mask)[list(dead.get(mask.site, ()))] = 0.0
            if mask.site in holes:
                mask_of(graph, mask).flatten(1)[:, 0] = 0.0
    update_supports(graph)
    return graph


def outputs(graph, seed=5):
    with torch.no_grad():
        return graph.graph_module.eval()(values(*graph.call.args[0].shape, seed=seed))


def targets(graph):
    return [str(node.target) for node in graph.graph_module.graph.nodes]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Chain(nn.Module):
    """Two convolutions and what stands between them: input `(N, 2, *size)`."""

    def __init__(self, first, second, between):
        super().__init__()
        self.first, self.second, self.between = first, second, between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Called(nn.Module):
    """A function as a module that is traced through."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, self.training)


def chain(between=None, first=None, second=None):
    first = first or nn.Conv2d(2, 6, 3, padding=1)
    second = second or nn.Conv2d(6, 3, 3, padding=1)
    return filled(Chain(first, second, between or nn.ReLU()))
