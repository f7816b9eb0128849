"""Dead channels go physically, the function stays; what is not dead, or not exactly, stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import structure_nets as nets
import torch
from channel_nets import chain, filled, masked, outputs, values
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_nets import Branching, Called, seeded
from slicing import randomize
from torch import nn

from bench.zoo.lenet_300_100 import lenet_300_100
from energy_model.errors import ArgumentError
from passes.graph import LayerRule
from passes.inputs import as_call
from passes.rewrite import dead_structure
from passes.rewrite.dead_structure import plan_dead, remove_dead_structure
from passes.structure.groups import channel_groups
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

SHAPE = (3, 2, 8, 8)


def traced(model, *inputs):
    return trace(model.eval(), as_call(model, inputs), train=False)


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


def zero(tensor, *index):
    """Zero some rows, or some columns after a `slice(None)`."""
    with torch.no_grad():
        tensor[index] = 0


def close(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def net(name, seed=0):
    return randomize(seeded(getattr(nets, name), seed).double(), seed)


def removed(model, x=None, rules=None, **options):
    """Remove what is dead; the function is the same on other inputs in other batches."""
    x = values(*SHAPE) if x is None else x
    graph = traced(model, x)
    graph.rules = rules or {}
    others = [x, values(5, *x.shape[1:], seed=9) * 3]
    with torch.no_grad():
        before = [model(other) for other in others]
        size = numbers(graph.runnable)
        decisions = remove_dead_structure(graph, **options)
        for other, expected in zip(others, before, strict=True):
            close(graph.runnable(other), expected)
            close(graph.graph_module(other), expected)
    assert numbers(graph.runnable) < size or not done(decisions)
    return graph, decisions


def idle(between, second):
    """Two layers, of which the first has two rows of zeros."""
    model = chain(between, second=second)
    zero(model.first.weight, [1, 4])
    return model


def done(decisions, what="dead channels removed"):
    return {d.layer: (d.why, d.before, d.after) for d in decisions if d.what == what}


def stays(decisions):
    return {d.layer: d.why for d in decisions if d.what == "dead channels stay"}


def test_rows_of_zeros():
    model = idle(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), nn.Conv2d(6, 3, 3, padding=1))
    zero(model.between[0].weight, [1, 4])
    zero(model.between[0].bias, [1, 4])
    graph, decisions = removed(model)
    assert done(decisions) == {"first": ("2 always zero", "6 units", "4 units")}
    assert model.between[0].num_features == 4
    assert not graph.rewritten
    assert [site.size for site in graph.sites] == [4 * 2 * 9, 3 * 4 * 9]


def test_columns_and_what_only_they_needed():
    layers = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 6, 3), nn.Conv2d(6, 7, 3, padding=1)
    model = filled(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(7, 4, 1)))
    zero(model[4].weight, slice(None), [1, 3])  # so rows 1 and 3 of the layer before are unread
    zero(model[2].weight, [0, 2, 4, 5, 6], [2])  # and then this column
    zero(model[1].weight, [0, 1, 3, 4, 5], 4)  # and then that one
    assert done(removed(model)[1]) == {
        "0": ("1 not read", "5 units", "4 units"),
        "1": ("1 not read", "6 units", "5 units"),
        "2": ("2 not read", "7 units", "5 units"),
    }
    assert [tuple(model[i].weight.shape[:2]) for i in range(3)] == [(4, 2), (5, 4), (5, 5)]


READERS = {
    "one by one": nn.Conv2d(6, 3, 1),
    "without padding": nn.Conv2d(6, 3, 2, stride=2, dilation=2),
    "without bias": nn.Conv2d(6, 3, 2, bias=False),
    "reflected": nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(6, 3, 3, padding="same", padding_mode="circular"),
}
BETWEEN = {
    "sigmoid": nn.Sigmoid(),
    "norm": nn.Sequential(nn.BatchNorm2d(6), nn.GELU()),
    "depthwise": nn.Conv2d(6, 6, 3, groups=6),
    "pool": nn.Sequential(nn.AvgPool2d(2), nn.Tanh()),
    "slopes": nn.PReLU(6),
    "resized": nn.Upsample(scale_factor=1.7, mode="bilinear"),
}


@pytest.mark.spread(4)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("between", BETWEEN)
def test_constants_go_into_the_bias(between, reader):
    model = idle(copy.deepcopy(BETWEEN[between]), copy.deepcopy(READERS[reader]))
    assert done(removed(model)[1]) == {"first": ("2 constant", "6 units", "4 units")}
    assert model.second.in_channels == len(model.second.bias) + 1 == 4


def test_the_bias_is_what_the_constants_contribute():
    model = idle(nn.Sigmoid(), nn.Conv2d(6, 3, 3))
    constant = torch.sigmoid(model.first.bias[[1, 4]])
    expected = model.second.bias + model.second.weight[:, [1, 4]].sum((2, 3)) @ constant
    removed(model)
    torch.testing.assert_close(model.second.bias, expected, rtol=1e-14, atol=1e-14)


def test_groups_take_constants_each_in_its_own_bias():
    model = idle(nn.Sigmoid(), nn.Conv2d(6, 4, 1, groups=2))
    assert done(removed(model)[1]) == {"first": ("1 constant", "3 units", "2 units")}
    assert (model.second.in_channels, model.second.groups) == (4, 2)
    model = chain(nn.ReLU(), second=nn.Conv2d(6, 4, 1, groups=2))
    zero(model.second.weight, [0, 1], 1)
    assert not removed(model)[1]  # the other group reads its own
    zero(model.second.weight, [2, 3], 1)
    assert done(removed(model)[1]) == {"first": ("1 not read", "3 units", "2 units")}


@pytest.mark.parametrize("padding", [1, "same"])
def test_constants_at_a_border_stay(padding):
    model = idle(nn.Sigmoid(), nn.Conv2d(6, 3, 3, padding=padding))
    _, decisions = removed(model)
    assert not done(decisions)
    assert stays(decisions) == {"first": "second pads with zeros"}
    assert decisions[0].before == "2 of 6 units"
    zero(model.first.bias, [1])
    model.between = nn.Tanh()
    assert done(removed(model)[1]) == {"first": ("1 always zero", "6 units", "5 units")}


def test_what_counts_is_what_a_layer_is_given():
    def forward(m, x):
        x = m.first(x)
        torch.relu_(x)
        y = m.second(x)
        x.add_(1)
        return y * m.third(x).mean()

    parts = {"first": nn.Conv2d(2, 6, 1), "second": nn.Conv2d(6, 3, 3, padding=1)}
    model = filled(Called(forward, **parts, third=nn.Conv2d(6, 1, 1)))
    zero(model.first.weight, [1, 4])
    with torch.no_grad():
        model.first.bias[[1, 4]] = torch.tensor([-1.0, 1.0]).double()
    _, decisions = removed(model)  # the first is 0 to one reader and 1 to the other
    assert done(decisions) == {"first": ("1 constant", "6 units", "5 units")}
    assert stays(decisions) == {"first": "second pads with zeros"}


def test_constants_that_differ_from_position_to_position_stay():
    parts = {"a": nn.Conv2d(2, 6, 1), "b": nn.Conv2d(6, 3, 1), "table": torch.zeros(6, 8, 8)}
    model = filled(Called(lambda m, x: m.b(m.a(x) + m.table), **parts))
    zero(model.a.weight, [1, 4])
    zero(model.table, [4])
    _, decisions = removed(model)
    assert done(decisions) == {"a": ("1 constant", "6 units", "5 units")}
    assert stays(decisions) == {"a": "b is given another constant at each position"}


def test_a_layer_that_is_called_twice_has_one_bias_for_both():
    parts = {"a": nn.Linear(4, 5), "b": nn.Linear(4, 5), "c": nn.Linear(5, 3)}
    model = filled(Called(lambda m, x: m.c(m.a(x).sigmoid()) * m.c(m.b(x).tanh()), **parts))
    for layer in (model.a, model.b):
        zero(layer.weight, [1, 2])
    assert stays(removed(model, values(3, 4))[1]) == {"a": "c is called more than once"}
    zero(model.c.weight, slice(None), [3])
    assert done(removed(model, values(3, 4))[1]) == {"a": ("1 not read", "5 units", "4 units")}


def test_a_shared_bias_and_a_function_take_nothing():
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3), nn.Linear(3, 3)))
    model[3].bias = model[2].bias
    zero(model[0].weight, [1, 2])
    assert stays(removed(model, values(3, 4))[1]) == {"0": "2 shares its bias"}
    model = net("Functional")
    zero(model.first, [1, 3])
    assert stays(removed(model, nets.image())[1]) == {"first": "linear takes no bias here"}


HEAD = slice(4, 8)
# A net, rows and columns of it that are zero, and what goes.
CASES = {
    "no column": ("Functional", {}, {"second": [1]}, {"first": ("1 not read", 6, 5)}),
    "a norm": ("Functional", {"first": [3], "gain": [3], "shift": [3], "third": [5]}, {}, {
        "first": ("1 always zero", 6, 5), "second": ("1 not read", 7, 6)}),
    "features that are different constants": (
        "Flat", {"conv.weight": [0, 5]}, {}, {"conv": ("2 constant", 6, 4)}),
    "one part of a residual stream": ("Residual", {"b.weight": [3], "b.bias": [3]}, {}, {}),
    "every part of it, before a sigmoid": (
        "Residual", {"b.weight": [3], "b.bias": [3], "bn.weight": [3, 4], "bn.bias": [3, 4]}, {},
        {"stem": ("1 constant", 8, 7)}),
    "what only some read": ("Residual", {}, {"a.weight": [3, 4]}, {}),
    "what none reads": ("Residual", {}, {"a.weight": [3, 4], "head.weight": [3, 5]}, {
        "stem": ("1 not read", 8, 7)}),
    "parts of a concatenation": ("Concat", {}, {"head.weight": [2, 8, 9, 16], "b.weight": [0]}, {
        "a": ("1 not read", 7, 6), "b": ("1 not read", 5, 4)}),
    "heads": ("Attention", {}, {"out.weight": HEAD}, {"qkv": ("1 not read", 3, 2)}),
    "a tied weight": ("Tied", {}, {"b.weight": [2], "a.weight": [2]}, {}),
    "and what else reads": ("Tied", {}, {"b.weight": [2], "a.weight": [2], "head.weight": [2]}, {
        "stem": ("1 not read", 8, 7)}),
    "one side of a head": ("Multihead", {}, {"attention.out_proj.weight": HEAD}, {}),
    "both sides of it": (
        "Multihead", {f"attention.in_proj_{n}": [*range(4, 8), *range(16, 20), *range(28, 32)]
                      for n in ("weight", "bias")},
        {"attention.out_proj.weight": HEAD}, {"attention": ("1 not read", 3, 2)}),
    "depthwise": ("Depthwise", {}, {"b.weight": [4, 5]}, {"stem": ("1 not read", 8, 7)}),
}  # fmt: skip


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", CASES)
def test_dead_in_one_way(name):
    kind, rows, columns, expected = CASES[name]
    model = net(kind)
    for path, index in rows.items():
        zero(model.state_dict()[path], index)
    for path, index in columns.items():
        zero(model.state_dict()[path], slice(None), index)
    _, decisions = removed(model, nets.image())
    units = {key: (why, f"{a} units", f"{b} units") for key, (why, a, b) in expected.items()}
    assert done(decisions) == units
    assert kind != "Tied" or model.c.weight is model.b.weight


def test_masked_channels_are_a_special_case():
    graph = masked(chain(nn.BatchNorm2d(6)), SHAPE, {"second": (1, 4)}, holes=("second",))
    before = outputs(graph)
    decisions = remove_dead_structure(graph)
    close(outputs(graph), before)
    assert done(decisions) == {"first": ("2 always zero", "6 units", "4 units")}
    assert graph.graph_module.get_buffer("input_masks.second").shape == (4, 8, 8)


def unread():
    model = chain(nn.ReLU())
    zero(model.second.weight, slice(None), [0, 5])
    return model


ALONE = (
    {"keep": ["first"]}, {"keep": ["second"]},
    {"rules": {"second": LayerRule(1.0)}}, {"rules": {"first": LayerRule(0.7)}},
)  # fmt: skip


@pytest.mark.parametrize("options", ALONE)
def test_layers_that_are_left_alone_lose_nothing(options):
    model = unread()
    _, decisions = removed(model, **options)
    assert model.first.out_channels == 6
    assert stays(decisions) == {"first": "its layers are to keep their weights"}


@pytest.mark.parametrize("rules", [{"first": LayerRule(4 / 6)}, {"second": LayerRule(0.9)}])
def test_layers_that_lose_zeros_alone_or_keep_enough(rules):
    assert done(removed(unread(), rules=rules)[1]) == {
        "first": ("2 not read", "6 units", "4 units")
    }


def test_keep_names_layers_that_are_there():
    with pytest.raises(ArgumentError, match=r"no layer 'third'.*first, second"):
        removed(chain(), keep=["third"])


def test_one_unit_stays_the_one_that_costs_least():
    model = filled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 2)))
    zero(model[2].weight)
    zero(model[0].weight, [2])
    assert done(removed(model, values(3, 4))[1])["0"] == ("5 not read", "6 units", "1 units")
    assert not model[0].weight.any()


def test_planning_changes_nothing():
    model = idle(nn.Sigmoid(), nn.Conv2d(6, 3, 1))
    graph = traced(model, values(*SHAPE))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plan = plan_dead(graph, channel_groups(graph))
    assert plan.state["first"].tolist() == [True, False, True, True, False, True]
    assert [(carry.path, carry.values.shape) for carry in plan.carries] == [("second", (3,))]
    assert plan.carries[0].values.dtype == torch.float64
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_that_cannot_be_traced_keeps_all():
    graph = traced(Branching(), torch.ones(1, 2, 6, 6))
    assert remove_dead_structure(graph) == []
    assert plan_dead(graph, channel_groups(graph)).state == {}


def kill(graph, groups, generator):
    """Zero some units of every group: their rows, biases, norms, or the columns that read them."""
    for group in groups.free:
        chosen = generator.random(group.units) < generator.choice([0.0, 0.3, 0.6])
        roles = generator.choice(["out", "in", "vector", "every"], 2)
        for member in group.members:
            tensor = getattr(graph.graph_module.get_submodule(member.path), member.attribute)
            spared = member.attribute == "bias" and generator.random() < 0.5
            if spared or "running" in member.attribute or not {member.role, "every"} & set(roles):
                continue
            mine = torch.from_numpy(np.flatnonzero((member.units >= 0) & chosen[member.units]))
            tensor.data.index_fill_(member.dim, mine, 0)


NETS = (
    "Residual Concat Chunk SplitBySize Halves Depthwise Shuffle SqueezeExcite Transposed Pad Flat "
    "Tied Functional Scaled Constant FrozenNorm Grouped PixelShuffle Attention Multihead Mixer "
    "Upsampled Gated"
)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", NETS.split())
def test_any_zeros_in_any_net(name):
    lost = 0
    for seed in range(4):
        model = net(name, seed)
        graph = traced(model, nets.image())
        kill(graph, channel_groups(graph), np.random.default_rng(seed))
        size = numbers(model)
        graph, _ = removed(model, nets.image())
        lost += size - numbers(graph.runnable)
        assert not done(remove_dead_structure(graph))
    assert lost > 0


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data())
def test_any_zeros_in_any_chain(data):
    widths = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    layers = []
    for a, b in zip([2, *widths], widths, strict=False):
        padding = data.draw(st.integers(0, 1))
        layers += [nn.Conv2d(a, b, 2, padding=padding, bias=data.draw(st.booleans()))]
        layers += [data.draw(st.sampled_from([nn.ReLU(), nn.Sigmoid(), nn.BatchNorm2d(b)]))]
    model = filled(nn.Sequential(*layers))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    for parameter in model.parameters():
        for dim in range(min(parameter.dim(), 2)):
            chosen = torch.rand(parameter.shape[dim], generator=generator) < 0.3
            parameter.data.index_fill_(dim, chosen.nonzero().flatten(), 0)
    graph, size, x = traced(model, values(2, 2, 8, 8)), numbers(model), values(3, 2, 8, 8, seed=1)
    with torch.no_grad():
        before = model(x)
        decisions = remove_dead_structure(graph)
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert numbers(model) < size or not done(decisions)
    assert not done(remove_dead_structure(graph))


def test_an_unstructured_result_becomes_a_smaller_model():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model, x = lenet_300_100(), torch.rand(4, 1, 28, 28)
        for weight in (p for p in model.parameters() if p.dim() > 1):
            weight[
                weight.abs() <= weight.abs().flatten().kthvalue(weight.numel() * 98 // 100)[0]
            ] = 0
        graph, size, before = traced(model, x), numbers(model), model(x)
        decisions = remove_dead_structure(graph)
        close(model(x), before, 1e-6)
    assert set(done(decisions)) == {"1", "3"}
    assert numbers(model) < size / 2


@pytest.mark.slow
def test_resnet_18():
    ensure_torchvision_importable()
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(models.resnet18(num_classes=10).double()).eval()
    inner = [name for name, _ in model.named_modules() if name.endswith(".conv1")]
    widths = {name: model.get_submodule(name).out_channels for name in inner}
    generator = np.random.default_rng(0)
    for number, name in enumerate(inner):
        rows = generator.permutation(widths[name])[: 3 * widths[name] // 10]
        zero(model.get_submodule(name).weight, rows)
        if number % 2:
            norm = model.get_submodule(name[:-5] + "bn1")
            zero(norm.weight, rows)
            zero(norm.bias, rows)
    _, decisions = removed(model, nets.image(side=64))
    assert set(done(decisions)) == set(inner)
    for number, name in enumerate(inner):
        left = model.get_submodule(name).out_channels
        assert left < widths[name]
        assert left == widths[name] - 3 * widths[name] // 10 or number % 2 == 0
    # Constants that the norm and the activation leave meet the border of the next layer.
    assert set(stays(decisions)) == set(inner[::2])
    assert all(why.endswith("conv2 pads with zeros") for why in stays(decisions).values())


def test_single_precision_agrees_to_rounding():
    model = idle(nn.Sequential(nn.BatchNorm2d(6), nn.Sigmoid()), nn.Conv2d(6, 3, 3)).float()
    x = values(4, 2, 9, 9).float()
    graph = traced(model, x)
    with torch.no_grad():
        before = model(x)
        assert done(remove_dead_structure(graph))
        close(model(x), before, 1e-6)
    assert model.second.bias.dtype == torch.float32


BROKEN = {
    "columns": (0, "_read", lambda self, given, state: np.zeros(len(given.zero), dtype=bool)),
    "constants": (0, "_carry", lambda self, given, gone, state: None),
    "borders": (1, "zero_padded", lambda layer: False),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_comparison_fails_where_a_rule_is_broken(what, monkeypatch):
    padding, name, broken = BROKEN[what]
    owner = dead_structure if padding else dead_structure._Analysis
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        removed(idle(nn.Sigmoid(), nn.Conv2d(6, 3, 3, padding=padding)))
