from __future__ import annotations

import pytest
import torch
from search_nets import FAMILIES, HARDWARE, family, family_space, outputs, space_of, teacher
from torch import nn
from torch.nn import functional as F

from passes.architecture.genotype import Genotype
from passes.architecture.policy import Policy
from passes.architecture.space import SearchSpace
from passes.graph import LayerRule
from passes.inputs import as_call
from passes.tracing.trace import trace


def space_for(make, policy=None, **options):
    return SearchSpace(teacher(make), HARDWARE, policy, **options)


def run(module, x):
    with torch.no_grad():
        return module(x)


def test_a_removed_branch_leaves_its_shortcut_and_not_twice_of_it():
    space = family_space("resnet")
    net, x = family("resnet").module, torch.randn(2, 3, 8, 8, dtype=torch.float64)
    student = space.build(Genotype(("add", "add_3")))

    def without_branch(block, value):
        return F.relu(value)

    value = run(lambda v: F.relu(net.bn1(net.conv1(v))), x)
    for number, block in enumerate(net.blocks):
        value = without_branch(block, value) if number in (0, 3) else run(block, value)
    expected = run(lambda v: net.fc(v.mean((2, 3))), value)
    torch.testing.assert_close(run(student.runnable, x), expected, rtol=0, atol=1e-12)


def test_all_units_of_a_branch_are_the_branch():
    space = family_space("resnet")
    units = Genotype(("blocks.0.conv1", "blocks.0.conv2"))
    assert space.repair(units) == Genotype(("add",))
    assert space.sketch(units) == space.sketch(Genotype(("add",)))


def test_a_part_inside_a_removed_one_is_not_named():
    space = family_space("resnet")
    both = Genotype(("add", "blocks.0.conv1"))
    assert space.repair(both) == Genotype(("add",))


def test_the_paper_doubles_what_an_empty_branch_leaves():
    policy = Policy.coarse()
    graph = family("resnet")
    space = SearchSpace(graph, HARDWARE, policy)
    names = ["blocks.1.conv1", "blocks.1.bn1", "relu_3", "blocks.1.conv2", "blocks.1.bn2"]
    doubled = space.build(space.repair(Genotype.of(names)))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    net = graph.module
    value = run(lambda v: net.blocks[0](F.relu(net.bn1(net.conv1(v)))), x)
    value = F.relu(value + value)
    expected = run(lambda v: net.fc(net.blocks[2:](v).mean((2, 3))), value)
    torch.testing.assert_close(run(doubled.runnable, x), expected, rtol=0, atol=1e-12)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("name", "blocks", "units"),
    [
        ("resnet", 4, 9),
        ("vgg", 0, 4),
        ("mobilenet", 3, 4),
        ("vit", 6, 2),
        ("cells", 1, 2),
    ],
)
def test_how_many_parts_there_are(name, blocks, units):
    kinds = [part.kind for part in family_space(name).structure.parts.values()]
    assert (kinds.count("block"), kinds.count("unit")) == (blocks, units)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_part_alone_is_removed_as_if_it_were_an_identity(name):
    space = family_space(name)
    for part in space.structure.parts.values():
        genotype = space.repair(Genotype((part.name,)))
        if genotype.removed == (part.name,):
            assert torch.equal(outputs(space.build(genotype)), bypassed(space, part))


def bypassed(space, part):
    """The teacher, in which a value takes the place of another while it runs."""
    graph = space.structure.graph
    nodes = list(graph.graph_module.graph.nodes)

    class Bypass(torch.fx.Interpreter):
        def run_node(self, n):
            if n is nodes[part.exit]:
                return self.env_of[nodes[part.entry]]
            value = super().run_node(n)
            self.env_of[n] = value.clone() if isinstance(value, torch.Tensor) else value
            return value

    runner = Bypass(graph.graph_module, garbage_collect_values=False)
    runner.env_of = {}
    example = graph.call.tensors()[0]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(example.shape, generator=generator, dtype=example.dtype)
    with torch.no_grad():
        return runner.run(x)


class Chain(nn.Module):
    """Five convolutions; only the first and the third have an activation after them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))]
        )
        self.last = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        x = F.relu(self.layers[0](x))
        x = F.relu(self.layers[2](self.layers[1](x)))
        return self.last(self.layers[3](x))


def test_an_activation_stays_between_weight_layers():
    space = space_for(Chain)
    assert set(space.structure.parts) == {"layers.1", "layers.2", "layers.3"}
    lost = Genotype(("layers.2",))
    assert space.violations(lost) == ["two weight layers lose the last activation between them"]
    assert space.repair(lost) == Genotype()
    for legal in (("layers.1",), ("layers.1", "layers.2"), ("layers.1", "layers.3")):
        assert space.violations(Genotype(legal)) == []
    free = space_for(Chain, Policy(keep_nonlinearity=False))
    assert free.violations(lost) == []
    assert free.build(lost).by_name.keys() == {"layers.0", "layers.1", "layers.3", "last"}


def test_what_may_not_go_is_told():
    space = space_for(Chain)
    told = {(d.layer, d.why) for d in space.decisions}
    assert ("last", "its weight layer is the last one") in told


class Shared(nn.Module):
    """A layer that is called twice, and a block whose sum is scaled."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.a(F.relu(self.a(x))))
        x = torch.add(x, F.relu(self.b(x)), alpha=2)
        y = F.relu(self.c(x))
        return self.head(x + y) + y.mean()


def test_shared_layers_scaled_sums_and_values_that_leave_a_branch_stay():
    model = Shared().double()
    graph = trace(model, as_call(model, torch.randn(3, 6, dtype=torch.float64)))
    space = SearchSpace(graph, HARDWARE)
    kinds = {name: part.kind for name, part in space.structure.parts.items()}
    assert kinds == {"b": "unit", "c": "unit"}
    x = torch.randn(3, 6, dtype=torch.float64)
    value = run(lambda v: F.relu(model.a(F.relu(model.a(v)))), x)
    value = value + 2 * value
    y = run(lambda v: F.relu(model.c(v)), value)
    expected = run(model.head, value + y) + y.mean()
    torch.testing.assert_close(run(space.build(Genotype(("b",))).runnable, x), expected)


def test_a_rule_keeps_a_layer():
    graph = teacher(FAMILIES["resnet"])
    graph.rules["blocks.0.conv2"] = LayerRule(1.0)
    space = SearchSpace(graph, HARDWARE)
    assert "blocks.0.conv1" in space.structure.parts
    assert not {"blocks.0.conv2", "add"} & set(space.structure.parts)
    frozen = {g.name for g in space.structure.groups if g.frozen}
    assert {"conv1", "blocks.0.conv1"} <= frozen


def test_single_nodes_can_go():
    space = space_of("resnet", Policy(("block", "unit", "node"), keep_nonlinearity=False))
    parts = space.structure.parts
    assert parts["blocks.0.bn1"].kind == "node"
    assert parts["blocks.0.conv1"].kind == "unit"
    genotype = Genotype.of(["blocks.0.bn1", "relu_1"])
    layer = {x.name: x for x in space.sketch(genotype).layers}["blocks.0.conv1"]
    assert (layer.kind, layer.has_norm, layer.has_act) == ("conv", False, False)
    assert space.repair(Genotype.of([*genotype.removed, "blocks.0.conv1"])) == Genotype(
        ("blocks.0.conv1",)
    )
    assert torch.isfinite(outputs(space.build(genotype))).all()
