"""What cannot be shown stays whole, and the reason is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from slicing import random_state, randomize, shrunk, traced, worst_error
from structure_nets import Attention, Net, Tied, image
from torch import nn

from passes.structure.groups import channel_groups


class Body(Net):
    """`body` is given as a function of the net and the features."""

    def __init__(self, function, width=8, **layers):
        super().__init__(width, **layers)
        self.function = function

    def body(self, x):
        return self.function(self, x)


def asserted(net, x):
    torch._assert(x.size(1) == 8, "eight channels")
    return x


def frozen(function, width=8, **layers):
    """Why the stem's channels stay."""
    torch.manual_seed(0)
    _, groups = traced(Body(function, width, **layers), image())
    why = [g.why for g in groups.groups if any(m.path == "stem" for m in g.members)]
    told = {decision.layer: decision.why for decision in groups.decisions}
    assert all(told[group.name] == group.why for group in groups if group.frozen)
    return why[0]


def shuffled_by_number(net, x):
    return x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)


REASONS = [
    (lambda net, x: x.view(x.size(0), 8, -1).view(x.shape), 8, "one number of channels"),
    (shuffled_by_number, 8, "fixed sizes"),
    (asserted, 8, "one number of channels"),
    (lambda net, x: x[:, :4], 4, "one number of channels"),
    (lambda net, x: x[:, 7:], 1, "one number of channels"),
    (lambda net, x: torch.split(x, 4, dim=1)[0], 4, "one number of channels"),
    (lambda net, x: x.expand(-1, 8, -1, -1), 8, "one number of channels"),
    (lambda net, x: x / x.shape[1], 8, "computes with a number of channels"),
    (lambda net, x: x * x.size(1) ** -0.5, 8, "computes with a number of channels"),
    (lambda net, x: torch.softmax(x, dim=1), 8, "mixes channels"),
    (lambda net, x: x.mean(1, keepdim=True), 1, "mixes channels"),
    (lambda net, x: F.normalize(x, dim=1), 8, "mixes channels"),
    (lambda net, x: x / x.norm(2, 1, keepdim=True), 8, "mixes channels"),
    (lambda net, x: x.cumsum(1), 8, "mixes channels"),
    (lambda net, x: torch.fft.fft(x).real, 8, "no rule"),
    (lambda net, x: x.sort(dim=1)[0], 8, "no rule"),
    (lambda net, x: F.group_norm(x, 2), 8, "no rule"),
    (lambda net, x: x + F.pad(x[:, :4], (0, 0, 0, 0, 2, 2)), 8, "always stay"),
    (lambda net, x: x + torch.ones(8, 1, 1), 8, ""),
]


@pytest.mark.spread(5)
@pytest.mark.parametrize(("function", "width", "reason"), REASONS)
def test_reason(function, width, reason):
    why = frozen(function, width)
    assert reason in why
    assert bool(why) == bool(reason)


LAYERS = [
    (nn.LayerNorm([8, 8, 8]), "LayerNorm) normalises over all channels"),
    (nn.GroupNorm(1, 8), "GroupNorm) normalises over all channels"),
    (nn.LocalResponseNorm(2), "LocalResponseNorm), for which there is no rule"),
    (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), "no rule"),
    (nn.Softmax(dim=1), "mixes channels"),
    (nn.Softmax2d(), "no rule"),
    (nn.ChannelShuffle(2), "no rule"),
]


@pytest.mark.parametrize(("layer", "reason"), LAYERS)
def test_layer(layer, reason):
    assert reason in frozen(lambda net, x: net.layer(x), layer=layer)


def test_a_weight_with_a_use_that_no_rule_covers():
    """The head's weight is also read in a way that mixes its channels."""

    def body(net, x):
        return net.again(F.conv2d(x, net.head.weight / net.head.weight.std()))

    assert "no rule" in frozen(body, again=nn.Conv2d(5, 8, 1))


def test_a_layer_with_a_hook_is_not_understood():
    layer = nn.Conv2d(8, 8, 1)
    layer.register_forward_hook(lambda module, args, output: output.flip(1))
    assert "no rule" in frozen(lambda net, x: net.layer(x), layer=layer)


def test_a_single_channel_that_is_broadcast_stays():
    torch.manual_seed(0)
    body = Body(lambda net, x: x * torch.sigmoid(net.a(x)), a=nn.Conv2d(8, 1, 1))
    graph, groups = traced(randomize(body), image())
    assert [(g.name, g.frozen) for g in groups] == [("stem", False), ("a", True), ("head", True)]
    assert "broadcast over channels" in groups.by_name["a"].why
    assert worst_error(graph, groups, (image(),)) < 1e-12


def test_heads_counted_by_a_number_stay():
    class ByNumber(Attention):
        def heads(self, x):
            n, t, _ = x.shape
            return self.qkv(x).reshape(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)

    _, groups = traced(ByNumber(), image())
    assert [group.name for group in groups.free] == ["embed"]
    assert "fixed sizes" in groups.by_name["qkv"].why


def test_read_attention_weights_keep_all_heads():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            y, weights = self.attention(x, x, x)
            return self.head(weights @ y)

    _, groups = traced(Read(), torch.randn(2, 7, 12, dtype=torch.float64))
    assert groups.free == ()
    assert "attention weights" in groups.by_name["attention"].why


def test_parameters_in_shared_memory_stay():
    body = Body(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1))
    body.double()
    body.b.weight = nn.Parameter(body.a.weight.data[:])
    _, groups = traced(body, image())
    assert "shares its memory" in groups.by_name["a"].why


def test_an_opaque_leaf_keeps_its_inputs_whole():
    class Leaf(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    graph, groups = traced(Body(lambda net, x: net.a(net.leaf(x)), leaf=Leaf(),
                                a=nn.Conv2d(8, 8, 1)), image())  # fmt: skip
    assert [leaf.path for leaf in graph.leaves] == ["leaf"]
    assert "leaf (Leaf), for which there is no rule" in groups.by_name["stem"].why
    assert [group.name for group in groups.free] == ["a"]


def test_a_recurrent_layer_stays_and_says_so():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 4)
            self.lstm = nn.LSTM(4, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.lstm(self.embed(x))[0])

    _, groups = traced(Recurrent(), torch.randn(2, 5, 3, dtype=torch.float64))
    assert groups.free == ()
    assert "lstm (LSTM), for which there is no rule" in groups.by_name["embed"].why
    assert ("lstm", "there is no rule for LSTM") in [(d.layer, d.why) for d in groups.decisions]


def test_a_model_without_a_graph_has_no_groups():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(x) if float(x.sum()) > 0 else self.head(-x)

    _, groups = traced(Opaque(), torch.randn(2, 3, dtype=torch.float64))
    assert len(groups) == 0
    assert "cannot be traced" in groups.decisions[0].why


def test_zeros_that_pad_have_no_channel():
    """The shortcut's zeros meet channels that stay; those between them are free."""
    body = Body(lambda net, x: net.a(x) + F.pad(x, (0, 0, 0, 0, 4, 4)), 16,
                a=nn.Conv2d(8, 16, 1))  # fmt: skip
    graph, groups = traced(randomize(body), image())
    assert [(g.name, g.units, g.frozen) for g in groups][:2] == [("stem", 8, False), ("a", 8, True)]
    member = next(m for m in groups.by_name["stem"].members if m.name == "a.weight")
    assert member.units.tolist() == [-1] * 4 + list(range(8)) + [-1] * 4
    assert worst_error(graph, groups, (image(),)) < 1e-12


def test_the_analysis_leaves_the_model_as_it_was():
    model = Tied().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph, groups = traced(model, image())
    shrunk(graph, groups, random_state(groups, 0))
    model.train()
    channel_groups(graph)
    assert model.training
    assert all(part.training for part in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_table_can_be_read():
    _, groups = traced(Tied(), image())
    rows = str(groups).splitlines()
    assert rows[0].split() == ["group", "units", "size", "members", "state"]
    units = sum(group.units for group in groups.free)
    assert rows[-1] == f"{len(groups.free)} of {len(groups)} groups are free: {units} units"
    assert "frozen: is an output of the model" in rows[-2]
    assert len(rows) == len(groups) + 2


def test_tied_parameters_are_members_of_every_owner():
    _, groups = traced(Tied(), image())
    names = [member.name for member in groups.by_name["stem"].members]
    assert {"b.weight", "c.weight"} <= set(names)
