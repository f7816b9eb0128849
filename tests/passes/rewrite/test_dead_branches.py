"""Branches that add a constant go, with all that only they needed; the function stays."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from channel_nets import filled, values
from masked_nets import Called
from torch import nn

from passes.graph import LayerRule
from passes.inputs import as_call
from passes.rewrite import dead_branches
from passes.rewrite.dead_branches import remove_dead_branches
from passes.rewrite.dead_structure import remove_dead_structure
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

SHAPE = (2, 3, 8, 8)
WHAT = "dead branch removed"


class Residual(nn.Module):
    """A stem, and a block that adds a branch of two layers to what a shortcut makes of it."""

    def __init__(self, add=torch.add, last=None, shortcut=None, first=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = first or nn.Conv2d(6, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = last or nn.Conv2d(4, 6, 3, padding=1)
        self.shortcut = shortcut or nn.Identity()
        self.head = nn.Conv2d(6, 5, 1)
        self.add = add

    def forward(self, x):
        x = torch.relu(self.stem(x))
        branch = self.last(torch.relu(self.norm(self.first(x))))
        return self.head(torch.relu(self.add(self.shortcut(x), branch)))


def dead(model, bias=False):
    """A model whose branch ends in zeros, and in a bias if it is to."""
    model = filled(model)
    with torch.no_grad():
        model.last.weight.zero_()
        if not bias and model.last.bias is not None:
            model.last.bias.zero_()
    return model


def removed(model, *inputs, remove=remove_dead_branches, **options):
    """Remove dead branches; the function is the same, and nothing in the graph is idle."""
    inputs = inputs or (values(*SHAPE),)
    graph = trace(model, as_call(model, inputs), train=False)
    graph.rules = options.pop("rules", {})
    others = [inputs, tuple(values(3, *x.shape[1:], seed=7) * 2 for x in inputs)]
    with torch.no_grad():
        before = [model(*(x.clone() for x in other)) for other in others]
    decisions = remove(graph, **options)
    with torch.no_grad():
        for other, expected in zip(others, before, strict=True):
            given = [x.clone() for x in other]
            found = graph.runnable(*given)
            assert found.shape == expected.shape
            assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-12
            for x, kept in zip(given, other, strict=True):
                torch.testing.assert_close(x, kept, rtol=0, atol=0)
    graph.graph_module.graph.lint()
    idle = [n.name for n in graph.graph_module.graph.nodes if n.op != "output" and not n.users]
    assert idle == [] or not decisions
    assert graph.rewritten == bool([d for d in decisions if d.what == WHAT])
    return graph, decisions


def called(graph):
    return [str(n.target) for n in graph.graph_module.graph.nodes if n.op == "call_module"]


ADDITIONS = {
    "function": torch.add,
    "operator": operator.add,
    "other way round": lambda x, y: y + x,
    "method": lambda x, y: x.add(y),
    "in place": lambda x, y: y.add_(x),
    "in place, by the operator": lambda x, y: operator.iadd(y, x),
}


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", ADDITIONS)
def test_zeros_are_not_added(name):
    graph, decisions = removed(dead(Residual(ADDITIONS[name])))
    assert [(d.layer, d.what, d.why) for d in decisions] == [("first", WHAT, "it adds zeros")]
    assert (decisions[0].before, decisions[0].after) == ("432 weights", "0 numbers")
    assert called(graph) == ["stem", "shortcut", "head"]
    assert {name for name, _ in graph.graph_module.named_children()} == {"stem", "shortcut", "head"}
    assert [site.name for site in graph.sites] == ["stem", "head"]
    assert graph.module.first.weight.shape == (4, 6, 3, 3)
    assert graph.sites == trace(graph.runnable, graph.call, train=False).sites


def test_what_is_left_can_be_trained_and_copied():
    graph, _ = removed(dead(Residual()))
    model = copy.deepcopy(graph.runnable).train()
    model(values(*SHAPE)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any("first" in name or "last" in name for name in model.state_dict())


SHORTCUTS = {
    "convolution": nn.Conv2d(6, 6, 1),
    "convolution without bias": nn.Conv2d(6, 6, 3, padding=1, bias=False),
    "transposed": nn.ConvTranspose2d(6, 6, 1),
    "norm": nn.BatchNorm2d(6),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_constant_goes_into_the_bias_of_what_it_is_added_to(name):
    model = dead(Residual(shortcut=copy.deepcopy(SHORTCUTS[name])), bias=True)
    bias = 0 if model.shortcut.bias is None else model.shortcut.bias.detach().clone()
    graph, decisions = removed(model)
    assert decisions[0].why == "what it adds goes into the bias of shortcut"
    assert called(graph) == ["stem", "shortcut", "head"]
    torch.testing.assert_close(model.shortcut.bias.detach(), bias + model.last.bias.detach())


def test_a_constant_that_fits_no_bias_stays_as_one_number_for_each_channel():
    unfit = (nn.Identity(), nn.Sigmoid(), nn.BatchNorm2d(6, affine=False), nn.InstanceNorm2d(6))
    for shortcut in unfit:
        model = dead(Residual(shortcut=shortcut), bias=True)
        graph, decisions = removed(model)
        assert decisions[0].why == "it adds the same to every input, 6 numbers"
        assert decisions[0].after == "6 numbers"
        constant = graph.graph_module.get_buffer("branch_constants.of_add")
        torch.testing.assert_close(constant, model.last.bias.detach().reshape(1, 6, 1, 1))
        assert called(graph)[-1] == "head"
        assert remove_dead_branches(graph) == []


def test_a_bias_that_others_use_takes_nothing():
    class Shared(Residual):
        def forward(self, x):
            x = torch.relu(self.stem(x))
            branch = self.last(torch.relu(self.norm(self.first(x))))
            return self.head(self.shortcut(x) + branch) + self.head(self.shortcut(-x))

    model = dead(Shared(shortcut=nn.Conv2d(6, 6, 1)), bias=True)
    assert "6 numbers" in removed(model)[1][0].why
    model = dead(Residual(shortcut=nn.Conv2d(6, 6, 1)), bias=True)
    model.stem.bias = model.shortcut.bias
    assert "6 numbers" in removed(model)[1][0].why

    class Twice(Residual):
        def forward(self, x):
            x = torch.relu(self.stem(x))
            branch = self.last(torch.relu(self.norm(self.first(x))))
            short = self.shortcut(x)
            return self.head(short + branch) + self.head(short)

    model = dead(Twice(shortcut=nn.Conv2d(6, 6, 1)), bias=True)
    assert "6 numbers" in removed(model)[1][0].why


def test_linear_layers():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.last, self.other = nn.Linear(8, 5), nn.Linear(5, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.other(x) + self.last(F.gelu(self.up(x)))

    graph, decisions = removed(dead(Mixer(), bias=True))
    assert decisions[0].why == "what it adds goes into the bias of other"
    assert called(graph) == ["other"]


def test_a_constant_of_each_position_stays():
    model = dead(Residual(), bias=True)
    model.register_parameter("table", nn.Parameter(values(6, 8, 8)))
    model.add = lambda x, y: x + (y + model.table)
    assert removed(model)[1] == []
    with torch.no_grad():
        model.table.fill_(0.5)
    graph, decisions = removed(model)
    assert decisions[0].after == "6 numbers"
    assert not hasattr(graph.graph_module, "table")
    assert hasattr(model, "table")


def test_what_depends_on_the_input_stays():
    model = filled(Residual())
    assert removed(model)[1] == []
    with torch.no_grad():
        model.last.weight[:5] = 0
        model.last.bias.zero_()
    assert removed(model)[1] == []


def test_additions_that_do_something_else_stay():
    unfit = (
        lambda x, y: torch.add(x, y, alpha=2),
        lambda x, y: x[:, :, :1, :1] + y,  # the operand would have to grow
        lambda x, y: x.float() + y,
        lambda x, y: y + y,
        lambda x, y: x - y,
    )
    for add in unfit:
        model = dead(Residual(add))
        graph = trace(model, as_call(model, values(*SHAPE)), train=False)
        code = graph.graph_module.code
        assert remove_dead_branches(graph) == []
        assert graph.graph_module.code == code
        assert not graph.rewritten


def test_only_what_has_weights_is_worth_it():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, groups=3)

        def forward(self, x):
            x = self.stem(x)
            return torch.tanh(x) + self.last(x)

    assert removed(dead(Tiny(), bias=True))[1] == []
    assert len(removed(dead(Tiny()))[1]) == 1


def test_layers_that_are_kept():
    for options in (
        {"keep": ["first"]},
        {"keep": ["last"]},
        {"rules": {"first": LayerRule(1.0)}},
        {"rules": {"last": LayerRule(0.1)}},
    ):
        graph, decisions = removed(dead(Residual()), **options)
        assert decisions == []
        assert "last" in called(graph)
    assert len(removed(dead(Residual()), keep=["stem"], rules={"head": LayerRule(1.0)})[1]) == 1


def test_layers_that_something_else_calls_stay():
    class Again(Residual):
        def forward(self, x):
            return super().forward(x) + self.first(torch.relu(self.stem(x))).mean()

    graph, decisions = removed(dead(Again()))
    assert decisions[0].layer == "last"
    assert sorted(called(graph)) == ["first", "head", "shortcut", "stem", "stem"]
    assert [site.name for site in graph.sites] == ["stem", "first", "head"]
    first = graph.by_name["first"]
    assert sum(use.count for use in first.uses) == 1


def test_parts_of_parts_go_as_a_whole():
    block = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 3, 1))
    model = Called(lambda m, x: m.stem(x) + m.parts.block(x), stem=nn.Conv2d(3, 3, 1))
    model.parts = nn.ModuleDict({"block": block})
    filled(model).parts.block[1].weight.data.zero_()
    graph, decisions = removed(model)
    assert decisions[0].layer == "parts.block.0.0"
    assert [name for name, _ in graph.graph_module.named_children()] == ["stem"]


class Functions(nn.Module):
    """Parameters of the model itself and of a part that is never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 6, 1), nn.Module()
        self.block.weight = nn.Parameter(torch.zeros(6, 6, 1, 1))
        self.shared = nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        return x + F.conv2d(x, self.block.weight) * self.shared + self.shared


def test_functions_and_their_parameters():
    model = filled(Functions())
    with torch.no_grad():
        model.block.weight.zero_()
    graph, decisions = removed(model)
    assert [d.layer for d in decisions] == ["block"]
    names = {name for name, _ in graph.graph_module.named_parameters()}
    assert names == {"stem.weight", "stem.bias", "shared"}
    assert not hasattr(graph.graph_module, "block")


class InPlace(Residual):
    """The activation of the branch changes what the shortcut reads."""

    def forward(self, x):
        x = self.stem(x)
        branch = self.last(self.norm(self.first(F.relu(x, inplace=True))))
        return self.head(x + branch)


class ThroughView(Residual):
    def forward(self, x):
        x = self.stem(x)
        branch = self.last(self.norm(self.first(x.view(x.shape).mul_(2))))
        return self.head(torch.relu(x + branch))


class LaterChange(Residual):
    """The sum is changed in place, and then its operand is read again."""

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(x + self.last(torch.relu(self.norm(self.first(x)))), inplace=True)
        return self.head(y) + self.head(x)


class ChangedInput(nn.Module):
    """The sum is changed in place, and its operand is the model's input."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return F.relu(x + self.last(torch.tanh(self.first(x))), inplace=True) * 2


class AddedInPlace(Residual):
    """The stream itself grows, and somebody reads what it was by a name of its own."""

    def forward(self, x):
        x = self.stem(x)
        old = x.view(x.shape)
        y = x.add_(self.last(torch.relu(self.norm(self.first(x)))))
        return self.head(y) + self.head(old)


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", [InPlace, ThroughView, LaterChange, ChangedInput])
def test_what_is_changed_in_place_and_read_elsewhere_stays(kind, monkeypatch):
    assert removed(dead(kind()))[1] == []
    monkeypatch.setattr(dead_branches._Memory, "allows", lambda self, branch: True)
    with pytest.raises(AssertionError):
        removed(dead(kind()))


def test_a_stream_that_grows_in_place():
    assert removed(dead(AddedInPlace(), bias=True))[1] == []
    assert removed(dead(Residual(lambda x, y: x.add_(y))), values(*SHAPE))[1] != []


def test_a_dead_inside_makes_a_dead_branch():
    model = filled(Residual(last=nn.Conv2d(4, 6, 1)))
    with torch.no_grad():
        model.norm.weight.zero_()
    graph, decisions = removed(model, remove=remove_dead_structure)
    assert [d.what for d in decisions] == [WHAT]
    assert graph.by_name.keys() == {"stem", "head"}


def test_after_a_branch_its_stream_may_lose_channels():
    model = dead(Residual())
    with torch.no_grad():
        model.head.weight[:, [1, 4]] = 0
    graph, decisions = removed(model, remove=remove_dead_structure)
    assert [d.what for d in decisions] == [WHAT, "dead channels removed"]
    assert graph.graph_module.stem.out_channels == 4
    assert graph.by_name["stem"].size == 4 * 3 * 9


def test_the_channels_of_a_constant_are_cut_too():
    model = dead(Residual(), bias=True)
    with torch.no_grad():
        model.head.weight[:, [1, 4]] = 0
    graph, _ = removed(model, remove=remove_dead_structure)
    assert graph.graph_module.get_buffer("branch_constants.of_add").shape == (1, 4, 1, 1)
    assert graph.runnable.head.in_channels == 4


@pytest.mark.slow
def test_blocks_that_start_as_identities():
    ensure_torchvision_importable()
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.resnet18(num_classes=10, zero_init_residual=True).double().eval()
    with torch.no_grad():
        model.layer3[0].bn2.bias.fill_(0.3)
        model.layer4[1].bn2.bias.fill_(0.2)
    x = values(2, 3, 64, 64)
    graph = trace(model, as_call(model, x), train=False)
    with torch.no_grad():
        before = model(x)
        decisions = remove_dead_branches(graph)
        torch.testing.assert_close(graph.runnable(x), before, rtol=1e-12, atol=1e-12)
    assert [d.what for d in decisions] == [WHAT] * 8
    whys = {d.layer: d.why for d in decisions}
    assert whys["layer1.0.conv1"] == "it adds zeros"
    assert whys["layer3.0.conv1"] == "what it adds goes into the bias of layer3.0.downsample.1"
    assert "1 numbers" in whys["layer4.1.conv1"]
    assert [site.name for site in graph.sites] == [
        "conv1",
        *(f"layer{n}.0.downsample.0" for n in (2, 3, 4)),
        "fc",
    ]


def test_the_comparison_fails_where_a_branch_is_not_dead(monkeypatch):
    def all_zeros(graph, nodes):
        found = constants(graph, nodes)
        for given in found.values():
            for tensor in given.values():
                tensor.zero_()
        return found

    constants = dead_branches.constant_inputs
    monkeypatch.setattr(dead_branches, "constant_inputs", all_zeros)
    with pytest.raises(AssertionError):
        removed(filled(Residual()))


def test_a_model_without_a_graph_is_left_alone():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    graph = trace(Branching(), as_call(Branching(), torch.ones(2, 3)))
    assert remove_dead_branches(graph) == []
