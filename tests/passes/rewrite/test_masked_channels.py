"""Channels that are masked entirely go, with what computes them; the function stays."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from channel_nets import DEAD, SHAPE, Called, chain, close, filled, masked, outputs, targets, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from energy_model.hardware import load_hardware
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.rewrite.input_masks import attach_input_masks, mask_of, update_supports
from passes.rewrite.masked_channels import remove_masked_channels
from passes.tracing.trace import trace

BETWEEN = {
    "nothing": nn.Identity(),
    "norm": nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()),
    "norm without values": nn.BatchNorm2d(6, affine=False, track_running_stats=False),
    "instance norm": nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "one slope": nn.PReLU(),
    "slopes": nn.PReLU(6),
    "pools": nn.Sequential(nn.MaxPool2d(2), nn.GELU(), nn.Dropout2d(), nn.AdaptiveAvgPool2d(5)),
    "functions": Called(lambda x, train: F.avg_pool2d(F.relu(F.max_pool2d(x, 2), inplace=True), 2)),
    "dropout that follows the mode": Called(lambda x, train: F.dropout(x, 0.5, train)),
    "methods": Called(lambda x, train: x.tanh().clamp(-0.5, 0.7).contiguous()),
    "numbers": Called(lambda x, train: -(1 - x * 2) / 3 + 1),
}


@pytest.mark.spread(4)
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("holes", [(), ("second",)], ids=["channels", "and holes"])
def test_the_function_stays_and_both_layers_are_smaller(between, holes):
    graph = masked(chain(copy.deepcopy(BETWEEN[between])), SHAPE, DEAD, holes)
    before = outputs(graph)
    decisions = remove_masked_channels(graph)
    close(outputs(graph), before)
    first, second = graph.module.first, graph.module.second
    assert (first.weight.shape, first.out_channels) == ((4, 2, 3, 3), 4)
    assert (second.weight.shape, second.in_channels) == ((3, 4, 3, 3), 4)
    assert first.bias.shape == (4,)
    told = {(d.layer, d.what): (d.before, d.after) for d in decisions}
    assert told["second", "2 input channels removed"] == ("6 channels", "4 channels")
    assert told["first", "2 output channels removed"] == ("6 channels", "4 channels")
    assert ("input_masks.second" in targets(graph)) == bool(holes)
    assert (("second", "input mask removed") in told) != bool(holes)
    assert "input_masks.first" not in targets(graph)


def test_what_is_kept_are_the_right_channels():
    graph = masked(chain(nn.BatchNorm2d(6)), SHAPE, DEAD)
    model = graph.module
    keep = [0, 2, 3, 5]
    expected = {
        "first.weight": model.first.weight[keep],
        "first.bias": model.first.bias[keep],
        "between.running_var": model.between.running_var[keep],
        "between.bias": model.between.bias[keep],
        "second.weight": model.second.weight[:, keep],
        "second.bias": model.second.bias,
    }
    remove_masked_channels(graph)
    state = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert model.between.num_features == 4


def test_single_precision_agrees_to_rounding():
    model = chain(nn.BatchNorm2d(6)).float()
    graph = trace(model, as_call(model, torch.zeros(2, 2, 8, 8)))
    for mask in attach_input_masks(graph):
        mask_of(graph, mask)[1] = 0.0
    x = values(4, 2, 8, 8).float()
    with torch.no_grad():
        before = graph.graph_module(x)
        remove_masked_channels(graph)
        error = (graph.graph_module(x) - before).abs().max() / before.abs().max()
    assert error <= 1e-6
    assert model.second.in_channels == 5


def test_one_and_three_dimensions_and_transposed_producers():
    cases = [
        (nn.Conv1d(2, 6, 3), nn.Conv1d(6, 3, 3), nn.AvgPool1d(2), (3, 2, 12)),
        (nn.Conv3d(2, 6, 2), nn.Conv3d(6, 3, 2), nn.MaxPool3d(2), (3, 2, 6, 6, 6)),
        (nn.ConvTranspose2d(2, 6, 3, 2), nn.Conv2d(6, 3, 3), nn.BatchNorm2d(6), SHAPE),
    ]
    for first, second, between, shape in cases:
        graph = masked(chain(between, first, second), shape, DEAD)
        before = outputs(graph)
        remove_masked_channels(graph)
        close(outputs(graph), before)
        assert graph.module.first.out_channels == graph.module.second.in_channels == 4


def test_a_layer_loses_inputs_and_outputs():
    model = filled(
        nn.Sequential(
            *(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU()),
            *(nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)),
        )
    )
    graph = masked(model, SHAPE, {"2": (0, 2), "4": (5,)}, holes=("2",))
    before = outputs(graph)
    remove_masked_channels(graph)
    close(outputs(graph), before)
    assert [tuple(model[i].weight.shape[:2]) for i in (0, 2, 4)] == [(3, 2), (5, 3), (4, 5)]
    assert [tuple(site.uses[0].shape.input_size) for site in graph.sites][:3] == [
        (8, 8),
        (6, 6),
        (4, 4),
    ]


def test_the_plain_model_shares_the_smaller_layers():
    graph = masked(chain(), SHAPE, DEAD)
    before = outputs(graph)
    remove_masked_channels(graph)
    assert graph.graph_module.get_submodule("first") is graph.module.first
    assert graph.graph_module.get_submodule("second") is graph.module.second
    assert not any("mask" in name for name, _ in graph.graph_module.named_modules())
    close(graph.module(values(*SHAPE, seed=5)), before)


def test_the_smaller_model_can_be_trained():
    graph = masked(chain(nn.BatchNorm2d(6)), SHAPE, DEAD, holes=("second",))
    remove_masked_channels(graph)
    graph.graph_module.train()
    graph.graph_module(values(*SHAPE)).square().sum().backward()
    for name, parameter in graph.graph_module.named_parameters():
        assert parameter.grad is not None, name
    assert graph.module.first.weight.grad.any()


def test_what_is_frozen_stays_frozen():
    model = chain()
    model.first.weight.requires_grad_(False)
    remove_masked_channels(masked(model, SHAPE, DEAD))
    assert not model.first.weight.requires_grad
    assert model.second.weight.requires_grad


def test_the_sites_are_those_of_a_new_trace():
    graph = masked(chain(nn.MaxPool2d(2)), SHAPE, DEAD, holes=("second",))
    hardware = load_hardware("eyeriss")
    before = cost_table(graph, hardware)
    remove_masked_channels(graph)
    after = cost_table(graph, hardware)
    again = trace(graph.runnable, graph.call)
    assert graph.sites == again.sites
    assert after == cost_table(again, hardware)
    # The dead inputs cost nothing before either; computing them did.
    assert after["second"].energy.activations == before["second"].energy.activations
    assert after["first"].energy.relaxed < before["first"].energy.relaxed
    assert after.total.macs < before.total.macs


def test_a_second_removal_changes_nothing():
    graph = masked(chain(), SHAPE, DEAD, holes=("second",))
    remove_masked_channels(graph)
    code, before = graph.graph_module.code, outputs(graph)
    assert remove_masked_channels(graph) == []
    assert graph.graph_module.code == code
    assert torch.equal(outputs(graph), before)


def test_a_graph_without_masks_is_left_alone():
    model = chain()
    graph = trace(model, as_call(model, values(*SHAPE)))
    assert remove_masked_channels(graph) == []
    assert graph.module.first.out_channels == 6


def test_one_channel_stays_with_its_mask():
    graph = masked(chain(), SHAPE, {"second": range(6)})
    before = outputs(graph)
    remove_masked_channels(graph)
    assert (graph.module.first.out_channels, graph.module.second.in_channels) == (1, 1)
    mask = graph.graph_module.get_buffer("input_masks.second")
    assert mask.shape == (1, 8, 8)
    assert not mask.any()
    close(outputs(graph), before)
    assert remove_masked_channels(graph) == []


PARTS = st.sampled_from(["relu", "norm", "prelu", "pool", "dropout", "none"])


def part(name, channels):
    return {
        "relu": nn.ReLU(),
        "norm": nn.BatchNorm2d(channels),
        "prelu": nn.PReLU(channels),
        "pool": nn.MaxPool2d(3, 1, 1),
        "dropout": nn.Dropout(),
        "none": nn.Identity(),
    }[name]


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_any_chain_with_any_masks_stays_the_same_function(data):
    widths = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    layers = []
    for a, b in zip([2, *widths], widths, strict=False):
        layers += [nn.Conv2d(a, b, 3, padding=1), part(data.draw(PARTS), b)]
    model = filled(nn.Sequential(*layers))
    graph = trace(model, as_call(model, values(2, 2, 4, 4)))
    attached = attach_input_masks(graph)
    for number, mask in enumerate(attached):
        tensor = mask_of(graph, mask)
        tensor.copy_(values(*tensor.shape, seed=data.draw(st.integers(0, 99))) > -1)
        for channel in data.draw(st.sets(st.integers(0, [2, *widths][number] - 1))):
            tensor[channel] = 0.0
    update_supports(graph)
    hardware = load_hardware("eyeriss")
    before, energy = outputs(graph), cost_table(graph, hardware).total.energy
    remove_masked_channels(graph)
    torch.testing.assert_close(outputs(graph), before, rtol=1e-12, atol=1e-9)
    after = cost_table(graph, hardware).total.energy
    assert after.relaxed <= energy.relaxed
    assert after.exact <= energy.exact
    for mask in attached[1:]:
        if mask.path in targets(graph):
            tensor = mask_of(graph, mask)
            assert len(tensor) == 1 or bool(tensor.flatten(1).any(1).all())
            assert not bool((tensor == 1).all())
