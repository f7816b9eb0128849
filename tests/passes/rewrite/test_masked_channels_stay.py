"""Channels that are masked entirely and stay, because something else needs them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from channel_nets import (
    DEAD,
    SHAPE,
    Called,
    Chain,
    chain,
    close,
    filled,
    masked,
    outputs,
    targets,
    values,
)
from torch import nn
from torch.nn.utils import parametrizations

from passes.graph import LayerRule
from passes.inputs import as_call
from passes.rewrite.input_masks import update_supports
from passes.rewrite.masked_channels import remove_masked_channels
from passes.tracing.trace import trace


class Subclass(nn.Conv2d):
    """A user's own convolution, which cannot be traced."""

    def forward(self, x):
        return super().forward(x.flip(1) if x.mean() > 1e6 else x)


class Skipping(nn.Module):
    """The second convolution's input is read twice: input `(N, 2, 8, 8)`."""

    def __init__(self, join):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 1)
        self.join = join

    def forward(self, x):
        x = self.first(x)
        return self.join(x, self.second(x))


class Joined(nn.Module):
    """The second convolution reads the join of two: input `(N, 2, 8, 8)`."""

    def __init__(self, join):
        super().__init__()
        self.first, self.other, self.second = (nn.Conv2d(c, 6, 1) for c in (2, 2, 6))
        self.join = join

    def forward(self, x):
        return self.second(self.join(self.first(x), self.other(x)))


class Concatenated(Joined):
    """Of three channels each."""

    def __init__(self):
        super().__init__(lambda a, b: torch.cat([a, b], 1))
        self.first, self.other = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)


class Functional(nn.Module):
    """The second convolution is a call of a function: input `(N, 2, 8, 8)`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return F.conv2d(self.first(x), self.second.weight)


class Twice(nn.Module):
    """One convolution, called twice: input `(N, 6, 8, 8)`."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return self.second(self.second(x))


class Reading(Chain):
    """The weight of the first layer is read besides."""

    def forward(self, x):
        return super().forward(x) + self.first.weight.abs().mean()


def tied():
    model = chain(None, nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1))
    model.second.weight = model.first.weight
    return model


def hooked():
    model = chain()
    model.between.register_forward_hook(lambda layer, args, out: out.roll(1, 1))
    return model


def shared_norm():
    norm = nn.BatchNorm2d(6)
    model = chain(norm, second=nn.Sequential(nn.Conv2d(6, 6, 3), norm))
    return model


SIX = (3, 6, 8, 8)
STAYS = {
    "an input": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3)), "0", "input of the model", SHAPE),
    "a residual": (lambda: filled(Skipping(torch.add)), "second", "2 nodes read first", SHAPE),
    "a sum": (lambda: filled(Joined(torch.add)), "second", "add joins 2 tensors", SHAPE),
    "a product": (lambda: filled(Joined(torch.mul)), "second", "mul joins 2 tensors", SHAPE),
    "a concatenation": (lambda: filled(Concatenated()), "second", "cat may mix", SHAPE),
    "a grouped reader": (
        lambda: chain(second=nn.Conv2d(6, 6, 3, groups=6)),
        "second",
        "second has 6 groups",
        SHAPE,
    ),
    "a grouped producer": (
        lambda: chain(first=nn.Conv2d(2, 6, 3, groups=2)),
        "second",
        "first has 2 groups",
        SHAPE,
    ),
    "a norm over channels": (
        lambda: chain(nn.GroupNorm(3, 6)),
        "second",
        "between, a GroupNorm, may mix channels",
        SHAPE,
    ),
    "a softmax": (
        lambda: chain(Called(lambda x, train: x.softmax(1))),
        "second",
        "softmax may mix channels",
        SHAPE,
    ),
    "a shape": (
        lambda: chain(Called(lambda x, train: x.view(-1, 6, 8, 8))),
        "second",
        "view may mix channels",
        SHAPE,
    ),
    "a pool over channels": (
        lambda: chain(nn.AvgPool2d(3, 1, 1), nn.Conv1d(2, 6, 3), nn.Conv1d(6, 3, 3)),
        "second",
        "AvgPool2d, may mix channels",
        (3, 2, 12),
    ),
    "a hook": (hooked, "second", "between has hooks", SHAPE),
    "a function": (lambda: filled(Functional()), "second", "calls a function", SHAPE),
    "two calls": (lambda: filled(Twice()), "second", "second is used more than once", SIX),
    "a tie": (tied, "first", "first is used more than once", SIX),
    "a reader of the weight": (
        lambda: filled(Reading(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 3), nn.ReLU())),
        "second",
        "first shares its tensors",
        SHAPE,
    ),
    "a norm that is used twice": (shared_norm, "second.0", "used more than once", SHAPE),
    "a subclass": (
        lambda: chain(second=Subclass(6, 3, 3)),
        "second",
        "second is a Subclass",
        SHAPE,
    ),
    "a producer's subclass": (
        lambda: chain(first=Subclass(2, 6, 3)),
        "second",
        "first is a Subclass",
        SHAPE,
    ),
    "a computed weight": (
        lambda: chain(first=parametrizations.weight_norm(nn.Conv2d(2, 6, 3))),
        "second",
        "may mix channels",
        SHAPE,
    ),
}


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", STAYS)
def test_channels_that_others_need_stay(name):
    build, layer, why, shape = STAYS[name]
    model = filled(build())
    graph = masked(model, shape, {layer: (1,)})
    before, state = outputs(graph), copy.deepcopy(model.state_dict())
    sites = graph.sites
    decisions = remove_masked_channels(graph)
    told = [d for d in decisions if d.layer == layer]
    assert {d.what for d in told} == {"masked channels stay"}
    assert all(why in d.why for d in told), told
    assert torch.equal(outputs(graph), before)
    assert graph.sites == sites
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    assert any(target.startswith("input_masks.") for target in targets(graph))


def test_a_weight_that_two_modules_hold_is_not_cut():
    model = chain()
    model.spare = nn.Conv2d(2, 6, 3)
    model.spare.weight = model.first.weight
    graph = masked(model, SHAPE, DEAD)
    [decision, *_] = [d for d in remove_masked_channels(graph) if d.layer == "second"]
    assert decision.why == "first shares its tensors"
    assert model.first.weight is model.spare.weight


OWN = torch.ones(6, 8, 8, dtype=torch.float64)
OWN[2] = 0.0


class OwnMask(nn.Module):
    """Masks by itself, with a buffer or with a constant: input `(N, 2, 8, 8)`."""

    def __init__(self, *, constant):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)
        self.inner = nn.Module()
        self.inner.register_buffer("own", OWN.clone())
        self.constant = constant

    def forward(self, x):
        return self.second(torch.mul(self.first(x), OWN if self.constant else self.inner.own))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("rewritten", [False, True])
def test_a_mask_of_the_user_is_none_of_ours(constant, rewritten):
    model = OwnMask(constant=constant).double()
    if rewritten:
        graph = masked(model, SHAPE, {}, rules={"second": LayerRule(1.0)})
        graph.rules.clear()
    else:
        graph = trace(model, as_call(model, values(*SHAPE)))
    before = outputs(graph)
    remove_masked_channels(graph)
    assert model.inner.own.shape == (6, 8, 8)
    assert model.first.out_channels == 6
    assert torch.equal(outputs(graph), before)
    close(model(values(*SHAPE, seed=5)), before)


class Forked(nn.Module):
    """Two convolutions read a third: input `(N, 2, 8, 8)`."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 6, 1) for c in (2, 6, 6))

    def forward(self, x):
        x = self.first(x)
        return self.second(x) + self.third(x)


@pytest.mark.parametrize("shared", ["product", "mask", "node"])
def test_what_others_read_too_is_not_cut(shared):
    graph = masked(filled(Forked()), SHAPE, {"second": (1,), "third": (1,)})
    second, third = (
        next(n for n in graph.graph_module.graph.nodes if n.target == name)
        for name in ("second", "third")
    )
    ours, other = second.args[0], third.args[0]
    if shared == "product":
        third.replace_input_with(other, ours)
    elif shared == "mask":
        other.replace_input_with(other.args[1], ours.args[1])
    else:
        other.args[1].target = "input_masks.second"
    graph.graph_module.graph.eliminate_dead_code()
    graph.graph_module.recompile()
    before = outputs(graph)
    decisions = remove_masked_channels(graph)
    assert {d.layer for d in decisions} == {"first"}
    assert torch.equal(outputs(graph), before)


def test_a_mask_of_another_shape_is_left_alone():
    graph = masked(chain(), SHAPE, {})
    holder = graph.graph_module.get_submodule("input_masks")
    holder.second = holder.second.unsqueeze(0)
    update_supports(graph)
    before = outputs(graph)
    assert {d.layer for d in remove_masked_channels(graph)} == {"first"}
    assert torch.equal(outputs(graph), before)


def test_a_layer_that_is_left_alone_keeps_its_channels():
    graph = masked(chain(), SHAPE, DEAD, rules={"first": LayerRule(1.0)})
    told = {d.layer: d.why for d in remove_masked_channels(graph)}
    assert told["second"] == "first is left alone"
    assert graph.module.first.out_channels == 6


@pytest.mark.parametrize(("density", "cut"), [(0.6, True), (0.7, False)])
@pytest.mark.parametrize("layer", ["first", "second"])
def test_a_rule_for_the_least_density_holds(layer, density, cut):
    """4 of 6 channels are left: two thirds of the weights."""
    graph = masked(chain(), SHAPE, DEAD, rules={layer: LayerRule(density)})
    told = [d.what for d in remove_masked_channels(graph)]
    assert ("2 input channels removed" in told) == cut
    assert graph.module.first.out_channels == (4 if cut else 6)


@pytest.mark.parametrize(("least", "cut"), [(72, True), (73, False)])
def test_a_method_can_name_the_least_that_stays(least, cut):
    graph = masked(chain(), SHAPE, DEAD)
    decisions = remove_masked_channels(graph, {"first": least})
    assert graph.module.first.out_channels == (4 if cut else 6)
    why = [d.why for d in decisions if d.what == "masked channels stay"]
    assert why == ([] if cut else ["first would keep 72 weights, 73 is the least"])


def test_zeros_do_not_count_as_lost_weights():
    model = chain()
    with torch.no_grad():
        model.second.weight[:, [1, 4]] = 0.0
    graph = masked(model, SHAPE, DEAD, rules={"second": LayerRule(0.9)})
    remove_masked_channels(graph)
    assert model.second.in_channels == 4
