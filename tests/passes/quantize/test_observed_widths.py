"""Widths of operands: found around the layers of a quantized graph, announced, and carried on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from energy_model.errors import ArgumentError
from energy_model.hardware import load_hardware
from energy_model.widths import Widths
from passes.graph import common_widths
from passes.inputs import as_call
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.encoding import Encoding
from passes.quantize.widths import (
    apply_widths,
    carried,
    observed_widths,
    weight_bits,
    with_widths,
)
from passes.tracing.trace import observed_sites, trace

EYERISS = load_hardware("eyeriss")


def quantizer(bits=8):
    made = ActivationQuantizer(bits)
    made.set_range(0.0, 4.0)
    return made


class Plain(nn.Module):
    """Two layers that are told whole, between quantizers, and one whose output is not."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 3, 1), nn.Linear(48, 5)
        self.q0, self.q1, self.q2 = quantizer(8), quantizer(6), quantizer(4)

    def forward(self, x):
        x = self.q1(torch.relu(self.norm(self.first(self.q0(x)))))
        x = F.max_pool2d(F.dropout(x, 0.5, self.training), 2)
        x = self.q2(F.relu(self.second(x)))
        return self.head(x.permute(0, 2, 3, 1).flatten(1)[:, :48])


def traced(model, shape=(2, 2, 8, 8)):
    model = model.eval()
    return trace(model, as_call(model, torch.randn(*shape)))


def encoding(graph, name, bits):
    weight = graph.weight(graph.by_name[name])
    return Encoding(bits, torch.full((weight.shape[0], 1), 0.25))


def test_what_feeds_a_layer_and_what_follows_it():
    graph = traced(Plain())
    graph.encodings = {"first": encoding(graph, "first", 8), "head": encoding(graph, "head", 4)}
    assert observed_widths(graph) == {
        "first": Widths(8, 8, 6),
        "second": Widths(None, 6, 4),
        "head": Widths(4, 4, None),
    }


def test_widths_are_put_into_the_sites_and_energy_follows():
    graph = traced(Plain())
    before = {site.name: site.energy(EYERISS, graph.weight(site)) for site in graph.sites}
    apply_widths(graph)
    for site in graph.sites:
        assert [use.widths for use in site.uses] == [observed_widths(graph)[site.name]]
        after = site.energy(EYERISS, graph.weight(site))
        assert after.activations == site.activation_energy(EYERISS) < before[site.name].activations
        assert after.weights == before[site.name].weights


def test_a_graph_without_quantizers_has_whole_words():
    graph = traced(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()))
    sites = graph.sites
    assert observed_widths(graph) == {"0": Widths()}
    apply_widths(graph)
    assert graph.sites == sites


def test_quantizers_without_a_range_do_not_count():
    model = nn.Sequential(ActivationQuantizer(), nn.Conv2d(2, 3, 1), ActivationQuantizer())
    graph = traced(model)
    assert observed_widths(graph)["1"] == Widths()
    model[0].set_range(0.0, 1.0)
    assert observed_widths(graph)["1"] == Widths(inputs=8)


class Between(nn.Module):
    """A layer after something that stands between it and its quantizer."""

    def __init__(self, between, before=None):
        super().__init__()
        self.between = between
        self.before = before or quantizer(5)
        self.layer = nn.Conv2d(2, 3, 1)
        self.other = quantizer(3)
        self.register_buffer("mask", (torch.arange(64.0).view(8, 8) % 2))
        self.register_buffer("factor", torch.full((8, 8), 0.5))

    def forward(self, x):
        return self.layer(self.between(self, self.before(x)))


MOVES = {
    "nothing": lambda m, x: x,
    "relu": lambda m, x: F.relu(x),
    "method": lambda m, x: x.transpose(2, 3).contiguous(),
    "slice": lambda m, x: x[:, :, 2:],
    "pool": lambda m, x: F.max_pool2d(x, 2),
    "split": lambda m, x: torch.cat(torch.chunk(x, 2, 1)[::-1], 1),
    "pad": lambda m, x: F.pad(x, (1, 1, 1, 1)),
    "mask": lambda m, x: x * m.mask,
    "unflatten": lambda m, x: x.flatten(2).reshape(-1, 2, 8, 8),
}
COMPUTES = {
    "sum": lambda m, x: x + x,
    "mean": lambda m, x: F.avg_pool2d(x, 2),
    "sigmoid": lambda m, x: torch.sigmoid(x),
    "factor": lambda m, x: x * m.factor,
    "product": lambda m, x: x * x,
    "pad": lambda m, x: F.pad(x, (1, 1), value=0.3),
    "half": lambda m, x: torch.cat([x[:, :1], torch.tanh(x[:, 1:])], 1),
}


@pytest.mark.parametrize("between", MOVES.values(), ids=MOVES)
def test_values_that_only_move_keep_their_width(between):
    assert observed_widths(traced(Between(between)))["layer"].inputs == 5


@pytest.mark.parametrize("between", COMPUTES.values(), ids=COMPUTES)
def test_values_that_are_computed_have_none(between):
    assert observed_widths(traced(Between(between)))["layer"].inputs is None


def test_of_joined_inputs_the_widest_counts():
    joined = Between(lambda m, x: torch.cat([x[:, :1], m.other(x)[:, 1:]], 1))
    assert observed_widths(traced(joined))["layer"].inputs == 5


class After(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.layer, self.after = nn.Conv2d(2, 3, 1), after
        self.one, self.two = quantizer(5), quantizer(7)

    def forward(self, x):
        return self.after(self, self.layer(x))


@pytest.mark.parametrize(
    ("after", "bits"),
    [
        (lambda m, y: m.one(y), 5),
        (lambda m, y: m.two(F.silu(y)), 7),
        (lambda m, y: m.one(y) + m.two(F.relu(y)), 7),
        (lambda m, y: m.one(y) + y, None),
        (lambda m, y: m.one(y + 1), None),
        (lambda m, y: m.one(F.avg_pool2d(y, 2)), None),
        (lambda m, y: y, None),
    ],
)
def test_outputs_have_the_width_of_all_that_reads_them(after, bits):
    assert observed_widths(traced(After(after)))["layer"].outputs == bits


def test_functional_and_shared_layers():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2, 1, 1))
            self.twice = nn.Conv2d(2, 2, 1)
            self.q, self.r = quantizer(4), quantizer(6)

        def forward(self, x):
            x = self.q(F.conv2d(self.r(x), self.weight))
            x = self.r(self.twice(x))
            return self.r(F.conv2d(input=self.twice(x), weight=self.weight))

    graph = traced(Shared())
    # Some call of each has inputs of 6 bits; not every output meets a quantizer.
    assert observed_widths(graph) == {
        "weight": Widths(None, None, 6),
        "twice": Widths(None, 6, None),
    }


def test_layers_inside_an_opaque_leaf_have_whole_words():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.inner(x) if float(x.detach().sum()) > -1e9 else x

    graph = traced(nn.Sequential(quantizer(), Untraceable(), quantizer(), nn.Conv2d(2, 3, 1)))
    [inside, outside] = graph.sites
    found = observed_widths(graph)
    assert inside.opaque
    assert found[inside.name] == Widths()
    assert found[outside.name] == Widths(inputs=8)


def test_announced_widths_are_pure_and_checked():
    graph = traced(Plain())
    sites = graph.sites
    given = with_widths(sites, {"second": Widths(4, 8)})
    assert graph.sites is sites
    assert [site.widths for site in given] == [Widths(), Widths(4, 8), Widths()]
    assert given[0] is sites[0]
    with pytest.raises(ArgumentError, match="no layer is named third"):
        with_widths(sites, {"third": Widths(4)})


def test_bits_that_a_weight_is_or_will_be_stored_in():
    graph = traced(Plain().half().float())
    site = graph.by_name["second"]
    assert weight_bits(graph, site) == 32
    graph.sites = with_widths(graph.sites, {"second": Widths(4, 8)})
    assert weight_bits(graph, graph.by_name["second"]) == 4
    graph.encodings["second"] = encoding(graph, "second", 3)
    assert weight_bits(graph, graph.by_name["second"]) == 3


def test_sites_that_are_found_anew_keep_their_widths():
    graph = traced(Plain())
    graph.sites = with_widths(graph.sites, {"second": Widths(4, 8), "head": Widths(2)})
    found = observed_sites(graph)
    assert {site.name: site.widths for site in found} == {
        "first": Widths(),
        "second": Widths(4, 8),
        "head": Widths(2),
    }


def test_parts_of_one_parameter_keep_theirs_in_order():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x + 1, x - 1, need_weights=False)[0]

    graph = traced(Block(), (2, 5, 8))
    parts = [site for site in graph.sites if site.owners == graph.sites[0].owners]
    assert len(parts) == 3
    known = {site.name: Widths(number + 2) for number, site in enumerate(parts)}
    before = with_widths(graph.sites, known)
    assert carried(before, graph.sites) == before
    # Not equally many any more: the most that any had.
    fewer = copy.copy(graph.sites[1:])
    assert carried(before, fewer)[0].widths == Widths(4)
    assert carried((), graph.sites) == graph.sites


def test_common_widths_are_the_most():
    assert common_widths([Widths(4, 8, 8), Widths(6, 4, None)]) == Widths(6, 8, None)
