from __future__ import annotations

import pytest
import torch
from search_nets import FAMILIES, HARDWARE, family, family_space, outputs, space_of
from torch import nn

from passes.architecture.genotype import Genotype
from passes.architecture.policy import Policy
from passes.architecture.sketch import sketch_of
from passes.architecture.space import SearchSpace
from passes.architecture.steps import SHOWN
from passes.inputs import Call, as_call
from passes.tracing.trace import trace
from transform.finished import traced_anew


def all_skips(space):
    return Genotype.of(skips=map(space.structure.names_of, space.structure.skips))


def with_scales(student, value):
    with torch.no_grad():
        for name, parameter in student.runnable.named_parameters():
            if name.startswith("skips."):
                parameter.fill_(value)
    return student


@pytest.mark.parametrize("name", FAMILIES)
def test_the_identity_is_the_teacher_to_the_bit(name):
    student = family_space(name).build(Genotype())
    assert torch.equal(outputs(student), outputs(family(name)))


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_gated_skips_change_nothing_until_they_are_trained(name):
    space = family_space(name)
    genotype = space.repair(all_skips(space))
    assert genotype.skips
    student = space.build(genotype)
    torch.testing.assert_close(outputs(student), outputs(family(name)), rtol=0, atol=1e-12)
    changed = outputs(with_scales(student, 0.1))
    assert float((changed - outputs(family(name))).abs().max()) > 1e-6
    count = len(genotype.skips)
    assert space.cost(genotype)["params"] == space.cost(Genotype())["params"] + count


def manual(space, pairs, scale):
    """The teacher, which adds scaled values to inputs while it runs."""
    graph = space.structure.graph
    nodes = list(graph.graph_module.graph.nodes)
    places = {node: place for place, node in enumerate(nodes)}

    class Adding(torch.fx.Interpreter):
        def run_node(self, n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            for source, target in pairs:
                if places[n] == target:
                    args = (args[0] + scale * self.kept[source], *args[1:])
            value = getattr(self, n.op)(n.target, args, kwargs)
            self.kept[places[n]] = value.clone() if isinstance(value, torch.Tensor) else value
            return value

    runner = Adding(graph.graph_module)
    runner.kept = {}
    example = graph.call.tensors()[0]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        return runner.run(torch.randn(example.shape, generator=generator, dtype=example.dtype))


@pytest.mark.parametrize("name", ["resnet", "cells"])
def test_each_skip_adds_its_source_to_its_target_alone(name):
    space = family_space(name)
    for pair in list(space.structure.skips)[::7]:
        genotype = Genotype.of(skips=[space.structure.names_of(pair)])
        student = with_scales(space.build(genotype), 0.3)
        torch.testing.assert_close(outputs(student), manual(space, [pair], 0.3))


def test_several_skips_may_have_one_target():
    space = family_space("resnet")
    target = max(t for _, t in space.structure.skips)
    pairs = [pair for pair in space.structure.skips if pair[1] == target]
    assert len(pairs) > 2
    genotype = Genotype.of(skips=map(space.structure.names_of, pairs))
    student = with_scales(space.build(genotype), 0.3)
    torch.testing.assert_close(outputs(student), manual(space, pairs, 0.3))


def test_plain_skips_add_without_a_parameter():
    space = space_of("resnet", Policy(skips="plain"))
    pair = next(iter(space.structure.skips))
    genotype = Genotype.of(skips=[space.structure.names_of(pair)])
    student = space.build(genotype)
    torch.testing.assert_close(outputs(student), manual(space, [pair], 1.0))
    assert space.cost(genotype) == space.cost(Genotype())
    assert sketch_of(student, like=space.sketch(Genotype())) == space.sketch(genotype)
    assert space_of("resnet", Policy(skips="none")).structure.skips == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_are_ordered_alike_and_not_connected(name):
    space = family_space(name)
    steps = space.structure.steps
    edges = set(space.sketch(Genotype()).edges)
    layers = space.structure.layer_of
    for source, target in space.structure.skips:
        given = steps[steps[target].data]
        assert source < target
        assert steps[source].shape == given.shape
        assert steps[target].kind not in ("cat", "attention", "other", "input")
        assert steps[source].kind in SHOWN
        assert (layers[source], layers[target]) not in edges
        assert layers[source] != layers[target]


def test_a_skip_from_a_removed_layer_starts_where_its_value_now_comes_from():
    space = family_space("resnet")
    result = Genotype.of(["blocks.0.conv1"], {}, [("relu_1", "blocks.1.conv1")])
    assert space.repair(result).skips == (("relu", "blocks.1.conv1"),)
    assert space.sketch(result) == space.sketch(space.repair(result))
    inside = Genotype.of(["blocks.0.conv1"], {}, [("blocks.0.conv1", "blocks.1.conv1")])
    assert "one of its ends is removed" in space.violations(inside)[0]
    never = Genotype.of(skips=[("blocks.0.conv1", "blocks.1.conv1")])
    assert "cannot be connected" in space.violations(never)[0]
    assert space.repair(never) == Genotype()


def test_a_skip_that_removals_make_a_connection_is_dropped():
    space = family_space("vgg")
    pair = ("features.9", "features.13")
    assert space.violations(Genotype.of(skips=[pair])) == []
    both = Genotype.of(["features.10"], {"features.0": 4}, [pair])
    assert "these two are connected" in space.violations(both)[0]
    assert space.repair(both) == Genotype.of(["features.10"], {"features.0": 4})


def test_a_skip_is_trained_stored_and_traced_as_all_else():
    space = family_space("resnet")
    genotype = space.repair(Genotype.of(skips=[("relu", "blocks.1.conv2")]))
    student = space.build(genotype)
    model = student.runnable.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    model(x).square().mean().backward()
    scale = dict(model.named_parameters())["skips.scale_0"]
    assert float(scale.grad.abs()) > 0
    optimizer.step()
    assert float(scale.detach()) != 0
    anew = traced_anew(student, Call((x,)))
    assert sketch_of(anew).skips == space.sketch(genotype).skips
    assert anew.runnable.state_dict().keys() == model.state_dict().keys()


class InPlace(nn.Module):
    """What it writes in place is read again once a part is removed."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        y = self.bn(self.conv2(x))
        y += x
        y.relu_()
        return self.head(torch.nn.functional.hardtanh(y, inplace=True)).mean((2, 3))


def test_students_can_be_trained_though_the_teacher_writes_in_place():
    model = InPlace().eval()
    graph = trace(model, as_call(model, torch.randn(2, 3, 4, 4)))
    space = SearchSpace(graph, HARDWARE)
    whole = space.build(Genotype())
    assert torch.equal(outputs(whole), outputs(graph))
    assert graph.module.relu.inplace
    for part in ("conv2", "add"):
        found = space.repair(Genotype((part,)))
        assert found.removed
        student = space.build(found)
        student.runnable.train()(torch.randn(4, 3, 4, 4)).sum().backward()
        assert all(p.grad is not None for p in student.runnable.parameters())


class Views(nn.Module):
    """Writes into a part of a tensor that is read as a whole."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        x[:, :2].relu_()
        return self.head(x).mean((2, 3))


def test_what_relies_on_writing_in_place_computes_the_same():
    model = Views().eval()
    graph = trace(model, as_call(model, torch.randn(2, 3, 4, 4)))
    student = SearchSpace(graph, HARDWARE).build(Genotype())
    assert "relu_" in student.graph_module.code
    assert torch.equal(outputs(student), outputs(graph))
