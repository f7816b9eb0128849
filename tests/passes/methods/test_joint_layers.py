"""The method `joint` in one shot on layers and types of other kinds."""

from __future__ import annotations

import copy

import pytest
import torch
from joint_problem import (
    SIZE,
    X,
    attention,
    bits_of,
    check_written,
    compressed,
    nominal,
    small,
    small_graph,
    traced,
)
from torch import nn
from torch.nn import functional as F

MODES = ("both", "prune", "quantize")


def state_of(graph):
    return copy.deepcopy(graph.module.state_dict())


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


class Odd(nn.Module):
    """A grouped, a depthwise and a transposed convolution, and a functional layer."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 2, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 2, groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.w = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        x = self.up(torch.relu(self.depthwise(torch.relu(self.grouped(x)))))
        return F.linear(x.mean((2, 3)), self.w)


@pytest.mark.spread(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", ["free", "uniform"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_of_other_kinds(mode, levels, channels_last):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Odd().eval(), torch.randn(2, 4, 5, 5)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    graph, expected = traced(model, x), traced(plain, x)
    assert {s.name for s in graph.sites} == {"grouped", "depthwise", "up", "w"}
    size = sum(s.size for s in graph.sites)
    for each in (graph, expected):
        compressed(each, 3 * size, mode=mode, levels=levels)
    assert nominal(graph) <= 3 * size
    check_written(graph)
    assert same(state_of(graph), state_of(expected))


def test_everything_fits_and_the_outputs_stay():
    model = small()
    expected = model(X)
    graph = traced(model, X)
    compressed(graph, 32 * SIZE)
    assert torch.equal(model(X), expected)


@pytest.mark.spread(1)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"mode": "quantize"}, {"levels": "uniform"}])
def test_models_of_other_types(dtype, options):
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    with torch.no_grad():
        for seed, layer in enumerate((model[0], model[2])):
            generator = torch.Generator().manual_seed(seed)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    graph = traced(model.to(dtype).eval(), torch.ones(2, 6, dtype=dtype))
    compressed(graph, 300, **options)
    assert nominal(graph) <= 300
    assert all(graph.weight(s).dtype == dtype for s in graph.sites)
    check_written(graph)


def test_short_levels_and_norms_on_demand():
    graph = small_graph()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        graph.module.norm.weight.uniform_(0.5, 2, generator=generator)
        graph.module.norm.running_var.uniform_(0.5, 2, generator=generator)
    compressed(graph, 200, significand=5)
    short = [book.levels for book in graph.codebooks.values()]
    short += [graph.module.first.bias, graph.module.second.bias, graph.module.head.bias]
    norm = graph.module.norm
    for values in short:
        mantissa = torch.frexp(values.detach().double())[0] * 32
        assert torch.equal(mantissa, mantissa.round())
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    mantissa = torch.frexp(factor)[0] * 32
    assert torch.allclose(mantissa, mantissa.round(), atol=1e-5)
    assert nominal(graph) <= 200
    check_written(graph)


def test_parts_of_attention_have_their_own_bits():
    graph = traced(attention().eval(), X)
    parts = [s.name for s in graph.sites if "in_proj" in s.name]
    assert len(parts) > 1
    compressed(graph, 600, bits={parts[0]: 1})
    assert bits_of(graph)[parts[0]] == 1
    assert len(set(bits_of(graph).values())) > 1
    assert nominal(graph) <= 600
    check_written(graph)
