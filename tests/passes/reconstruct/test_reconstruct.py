"""Whole models refitted: errors fall, promises hold, and what cannot be refitted is told."""

from __future__ import annotations

import copy

import pytest
import torch
from reconstruct_nets import (
    batches,
    filled,
    graph_of,
    gridded,
    masked,
    outputs,
    residual,
    values,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from energy_model.errors import PreconditionError
from passes.graph import Decision, LayerRule
from passes.inputs import Call
from passes.quantize.activations import ActivationQuantizer
from passes.reconstruct.config import Reconstruction
from passes.reconstruct.layers import reconstruct
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.structure.state import random_state

SHAPE = (16, 2, 8, 8)
GIVEN = batches(*SHAPE, count=4)
FRESH = batches(*SHAPE, count=4, seed=900)
PLAIN = Reconstruction(damping=0.0)


def distance(model, original, given=FRESH):
    expected = outputs(original, given)
    off = (outputs(model, given) - expected).square().mean()
    return float(off / expected.var())


def by_layer(decisions, what="reconstructed"):
    return {d.layer: d for d in decisions if d.what == what}


def share(text):
    return float(text.removeprefix("error "))


@pytest.mark.parametrize("norms", [True, False])
def test_a_masked_model_comes_nearer_to_the_original(norms):
    original = residual()
    model = masked(original)
    zeros = {n: p == 0 for n, p in model.named_parameters() if p.dim() > 1}
    before = distance(model, original)
    config = Reconstruction(damping=0.1, batch_norm=norms)
    decisions = reconstruct(original, graph_of(model, *SHAPE), GIVEN, config)
    assert distance(model, original) < 0.6 * before
    told = by_layer(decisions)
    assert set(told) == {"stem", "deep", "pair", "down", "head"}
    assert all(share(d.after) <= share(d.before) for d in told.values())
    assert bool([d for d in decisions if "batch norms" in d.what]) == norms
    for name, parameter in model.named_parameters():
        if name in zeros:
            assert not bool(parameter[zeros[name]].any())


@pytest.mark.parametrize("bits", [3, 4])
def test_levels_stay_on_their_grids_and_come_nearer(bits):
    original = residual()
    graph = gridded(original, bits, *SHAPE)
    zeros = {s.name: graph.weight(s) == 0 for s in graph.sites}
    before = distance(graph.module, original)
    reconstruct(original, graph, GIVEN, PLAIN)
    assert distance(graph.module, original) < 0.7 * before
    for site in graph.sites:
        graph.encodings[site.name].check(graph.weight(site), site.name)
        assert graph.encodings[site.name].bits == bits
        assert not bool(graph.weight(site)[zeros[site.name]].any())


@pytest.mark.spread(1)
@pytest.mark.parametrize("seed", range(3))
def test_a_model_with_fewer_channels_comes_nearer(seed):
    original = residual()
    graph = graph_of(copy.deepcopy(original), *SHAPE)
    groups = channel_groups(graph)
    shrink(graph, groups, random_state(groups, seed))
    before = distance(graph.runnable, original)
    decisions = reconstruct(original, graph, GIVEN, PLAIN)
    assert not by_layer(decisions, "not reconstructed")
    assert distance(graph.runnable, original) < before
    assert distance(graph.runnable, original, GIVEN) < before


@pytest.mark.slow
def test_a_layer_is_what_least_squares_finds_on_all_rows():
    original = filled(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    model = masked(original)
    first = copy.deepcopy(model[0])
    reconstruct(original, graph_of(model, 8, 6), batches(8, 6, count=4), PLAIN)
    x = torch.cat([call.args[0] for call in batches(8, 6, count=4)(4)])
    with torch.no_grad():
        for given, wanted, layer in (
            (x, original[0](x), model[0]),
            (torch.relu(model[0](x)), original(x), model[2]),
        ):
            for row in range(layer.out_features):
                kept = layer.weight[row] != 0
                ones = torch.ones(len(x), 1, dtype=torch.float64)
                system = torch.cat([given[:, kept], ones], 1)
                best = torch.linalg.lstsq(system, wanted[:, row, None]).solution[:, 0]
                found = torch.cat([layer.weight[row, kept], layer.bias[row, None]])
                torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)
    assert not torch.equal(first.weight, model[0].weight)


def test_without_a_bias_and_a_norm_the_fit_is_about_zero():
    original = filled(nn.Sequential(nn.Linear(4, 3, bias=False)))
    model = masked(original, 0.3)
    given = batches(30, 4, count=1)
    reconstruct(original, graph_of(model, 30, 4), given, PLAIN)
    x = next(given(1)).args[0]
    for row in range(3):
        kept = model[0].weight[row] != 0
        wanted = x @ original[0].weight[row]
        best = torch.linalg.lstsq(x[:, kept], wanted[:, None]).solution[:, 0]
        torch.testing.assert_close(model[0].weight[row, kept], best, rtol=1e-6, atol=1e-8)


def test_a_norm_after_a_layer_without_bias_absorbs_the_mean_once():
    original = filled(nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)))
    model, given = masked(original, 0.3), batches(50, 4, count=2)
    with torch.no_grad():
        for call in given(2):
            call.args[0].add_(2)
    config = Reconstruction(damping=0.0, batch_norm=False)
    for _ in range(2):  # the second time there is nothing left to absorb
        reconstruct(original, graph_of(model, 50, 4), given, config)
        means = outputs(model, given).mean(0), outputs(original, given).mean(0)
        torch.testing.assert_close(*means)
    assert torch.equal(model[1].running_var, original[1].running_var)


def test_an_unchanged_model_stays_bit_for_bit():
    original = residual()
    model = copy.deepcopy(original)
    decisions = reconstruct(original, graph_of(model, *SHAPE), GIVEN, Reconstruction())
    assert not by_layer(decisions)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(tensor, original.state_dict()[name])
        else:
            assert torch.equal(tensor, original.state_dict()[name])


def test_what_need_not_change_does_not():
    original = residual()
    model = masked(original)
    model.bn.train()
    graph = graph_of(model, *SHAPE)
    before, state = copy.deepcopy(original.state_dict()), copy.deepcopy(model.state_dict())
    calls = [call.args[0].clone() for call in GIVEN(4)]
    random = torch.get_rng_state()
    reconstruct(original, graph, GIVEN, Reconstruction())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(c.args[0], x) for c, x in zip(GIVEN(4), calls, strict=True))
    assert all(torch.equal(t, before[n]) for n, t in original.state_dict().items())
    assert model.bn.training
    assert not model.bn2.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    same = {n for n, t in model.state_dict().items() if torch.equal(t, state[n])}
    assert same == {"bn.weight", "bn.bias", "bn2.weight", "bn2.bias"} | {
        f"{n}.num_batches_tracked" for n in ("bn", "bn2")
    }


def test_the_same_inputs_give_the_same_bits():
    states = []
    for _ in range(2):
        model = masked(residual())
        reconstruct(residual(), graph_of(model, *SHAPE), GIVEN, Reconstruction())
        states.append(model.state_dict())
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())


def test_each_part_can_be_left_out():
    original = residual()
    for config, changed in (
        (Reconstruction(weights=False), ("running",)),
        (Reconstruction(batch_norm=False), ("weight", "bias", "running_mean")),
    ):
        model = masked(original)
        before = copy.deepcopy(model.state_dict())
        reconstruct(original, graph_of(model, *SHAPE), GIVEN, config)
        names = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
        assert names
        assert all(any(part in name for part in changed) for name in names)


@pytest.mark.spread(1)
@pytest.mark.parametrize("damping", [0.0, 16.0])
@pytest.mark.parametrize("bits", [None, 3])
def test_one_sample_does_not_explode(damping, bits):
    original = residual()
    graph = gridded(original, bits, *SHAPE) if bits else graph_of(masked(original), *SHAPE)
    one = batches(1, *SHAPE[1:], count=1)
    decisions = reconstruct(original, graph, one, Reconstruction(damping=damping))
    assert "fewer than its 4 columns" in by_layer(decisions)["head"].why
    size = float(outputs(original, FRESH).abs().max())
    assert float(outputs(graph.module, FRESH).abs().max()) < (10 if damping else 100) * size


def test_constant_inputs_change_only_means():
    original = filled(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    model = masked(original)
    before = copy.deepcopy(model.state_dict())
    constant = [Call((torch.ones(8, 5, dtype=torch.float64),))]
    reconstruct(original, graph_of(model, 8, 5), lambda _: iter(constant), PLAIN)
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(model.state_dict()[name], before[name])
    x = constant[0].args[0]
    torch.testing.assert_close(model(x), original(x))


def test_values_that_are_not_finite_are_refused_by_name():
    original = residual()
    bad = [Call((values(*SHAPE) * torch.nan,))]
    with pytest.raises(PreconditionError, match="stem"):
        reconstruct(original, graph_of(masked(original), *SHAPE), lambda _: iter(bad), PLAIN)
    model = masked(original)
    with torch.no_grad():
        model.deep.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(PreconditionError, match=r"bn2|pair|deep"):
        reconstruct(original, graph_of(model, *SHAPE), GIVEN, Reconstruction(weights=False))


def test_no_batch_is_refused():
    original = residual()
    with pytest.raises(PreconditionError, match="no batch"):
        reconstruct(original, graph_of(masked(original), *SHAPE), lambda _: iter(()), PLAIN)


class Mixed(nn.Module):
    """What can be refitted, and much that cannot: `(N, 4)`."""

    def __init__(self):
        super().__init__()
        self.ruled, self.plain, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.up = nn.ConvTranspose1d(1, 1, 3, padding=1)
        self.computed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.read = nn.Linear(4, 4)
        self.hooked = nn.Linear(4, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        x = self.twice(self.twice(self.plain(self.ruled(x))))
        x = self.other(self.tied(x))
        x = self.computed(self.up(x[:, None])[:, 0])
        x = self.read(x) + F.linear(x, self.read.weight)
        return self.rnn(self.hooked(x)[:, None])[0][:, 0]


def test_what_cannot_be_refitted_is_left_alone_and_told():
    original = filled(Mixed())
    model = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.flatten()[::2].zero_()
    model.hooked.register_forward_hook(lambda *_: None)
    graph = graph_of(model, 8, 4)
    graph.rules = {"ruled": LayerRule(1.0)}
    before = copy.deepcopy(model.state_dict())
    decisions = reconstruct(original, graph, batches(8, 4), PLAIN)
    assert set(by_layer(decisions)) == {"plain"}
    why = {d.layer: d.why for d in decisions if d.what == "not reconstructed"}
    assert "rule" in why["ruled"]
    assert "exactly one call" in why["twice"]
    assert "tied" in why["tied"]
    assert "ConvTranspose1d" in why["up"]
    assert "computed" in why["computed"]
    assert "exactly one call" in why["read"]
    assert "more than multiply" in why["hooked"]
    assert {name for name in why if name.startswith("rnn")}
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed <= {"plain.weight", "plain.bias"}


def test_a_smaller_layer_without_a_map_is_left_alone():
    original = residual()
    graph = graph_of(copy.deepcopy(original), *SHAPE)
    groups = channel_groups(graph)
    shrink(graph, groups, random_state(groups, 0))
    graph.kept = {}
    decisions = reconstruct(original, graph, GIVEN, PLAIN)
    told = by_layer(decisions, "not reconstructed")
    assert told
    assert all("which channels are left is not known" in d.why for d in told.values())


def test_a_layer_that_the_original_lacks_is_left_alone():
    original = filled(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    model = masked(filled(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))))
    decisions = reconstruct(original, graph_of(model, 8, 4), batches(8, 4), PLAIN)
    assert by_layer(decisions, "not reconstructed")["2"].why == "the original has no such layer"


def test_an_opaque_model_is_left_alone():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    model = filled(Branches())
    decisions = reconstruct(copy.deepcopy(model), graph_of(model, 4, 3), batches(4, 3), PLAIN)
    why = "the model could not be traced"
    assert decisions == [Decision("", "layers are not reconstructed", why)]


def test_layers_make_up_for_rounded_activations():
    original = filled(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    graph = graph_of(copy.deepcopy(original), 32, 6)
    module = graph.graph_module
    quantizer = ActivationQuantizer(2)
    quantizer.set_range(0.0, 2.0)
    module.add_submodule("quantizer", quantizer.double())
    (relu,) = module.graph.find_nodes(op="call_module", target="1")
    with module.graph.inserting_after(relu):
        node = module.graph.call_module("quantizer", (relu,))
    relu.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    module.recompile()
    graph.rewritten = True
    given = batches(32, 6, count=8)
    before = distance(module, original, given)
    told = by_layer(reconstruct(original, graph, given, PLAIN))
    assert set(told) == {"2"}
    assert distance(module, original, given) < 0.9 * before
