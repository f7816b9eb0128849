"""Where quantizers go in models that people use."""

from __future__ import annotations

import pytest
import torch
from quantize_nets import seeded, traced

from bench.zoo.cifar_resnet import resnet20
from passes.quantize.eligible import eligible
from passes.quantize.operations import Kind, operation
from passes.quantize.placement import places
from passes.torchvision_shim import ensure_torchvision_importable

ensure_torchvision_importable()
from torchvision import models  # noqa: E402 -- its schemas must be there first

NETS = {
    "resnet20": (resnet20, 32),
    "resnet18": (models.resnet18, 64),
    "mobilenet_v2": (models.mobilenet_v2, 64),
    "mobilenet_v3_small": (models.mobilenet_v3_small, 64),
    "squeezenet1_1": (models.squeezenet1_1, 64),
}
# Quantizers: the input, what layers write but for the last, sums, concatenations, averages,
# activation functions that are not fused, products. Then further calls of them.
COUNTS = {
    "resnet20": (1 + 19 + 9 + 1, 5),
    "resnet18": (1 + 20 + 8 + 1, 2),
    "mobilenet_v2": (1 + 52 + 10 + 1, 1),
    "mobilenet_v3_small": (1 + 53 + 6 + 10 + 19 + 9, 1),
    "squeezenet1_1": (1 + 26 + 8, 3),
}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    build, size = NETS[request.param]
    model = build().eval()
    graph = traced(model, torch.randn(1, 3, size, size, generator=seeded()))
    chosen = eligible(graph, static=True)
    assert chosen.reasons == {}
    return request.param, graph, places(graph, chosen.layers)


@pytest.mark.spread(1)
def test_how_many(net):
    name, _, found = net
    shared = sum(p.shared for p in found)
    assert (len(found) - shared, shared) == COUNTS[name]


def test_every_layer_reads_and_writes_quantized_values_but_the_last(net):
    _, graph, found = net
    read = {reader for place in found for reader in place.readers}
    nodes = {n.name: n for n in graph.graph_module.graph.nodes}
    layers = {path for s in graph.sites for path, _ in s.owners}
    called = [n for n in nodes.values() if n.op == "call_module" and n.target in layers]
    written = {place.of for place in found}
    for node in called:
        source = node
        while source.name not in read:
            source = source.args[0]
            assert operation(graph.graph_module, source).kind is Kind.NOTHING
    assert {n.target for n in called} - written <= {called[-1].target}


def test_sums_and_concatenations_read_quantized_values_alone(net):
    _, graph, found = net
    quantized = {(p.node, reader) for p in found for reader in p.readers}
    for node in graph.graph_module.graph.nodes:
        done = operation(graph.graph_module, node)
        if done.kind in (Kind.ADD, Kind.CONCAT):
            for source in done.sources:
                via = source
                reader = node
                while operation(graph.graph_module, via).kind is Kind.NOTHING:
                    via, reader = via.args[0], via
                assert (via.name, reader.name) in quantized


def test_nothing_is_quantized_between_a_layer_and_what_is_fused_into_it(net):
    _, graph, found = net
    at = {p.node for p in found}
    for node in graph.graph_module.graph.nodes:
        kind = operation(graph.graph_module, node).kind
        if kind is Kind.NORM and len(node.args[0].users) == 1:
            assert node.args[0].name not in at
        if kind is Kind.RELU and len(node.args[0].users) == 1:
            assert node.args[0].name not in at
