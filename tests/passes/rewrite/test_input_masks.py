"""Input masks in the graph: the paper's numbers, gradients, and where masks go and where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from masked_nets import NETS, Branching, Called, net, seeded, set_mask, traced
from torch import nn

from bench.zoo import lenet5, resnet20
from energy_model.errors import PreconditionError
from energy_model.hardware import Hardware, load_hardware
from energy_model.input_support import InputSupport
from passes.analysis.costs import cost_table
from passes.graph import LayerRule
from passes.rewrite.input_masks import (
    attach_input_masks,
    mask_of,
    maskable_inputs,
    update_supports,
)

EYERISS = load_hardware("eyeriss")


def alternating(shape):
    """Every other entry, row-major: the mask of the paper's oracle."""
    return (torch.arange(int(np.prod(shape))) % 2 == 0).view(shape)


def dense_lenet():
    model = lenet5().eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.fill_(0.1)
    graph = traced(model, torch.zeros(3, 1, 32, 32))
    masks = attach_input_masks(graph)
    for mask in masks:
        set_mask(graph, mask, alternating(mask_of(graph, mask).shape))
    update_supports(graph)
    return graph


def test_half_masked_lenet_costs_what_the_authors_code_says():
    graph = dense_lenet()
    costs = cost_table(graph, EYERISS)
    total = costs.total.energy
    assert (total.weights, total.compute, total.compute_relaxed) == (13253040, 713160, 1249560)
    assert (total.activations, total.exact, total.relaxed) == (2057344, 16023544, 16559944)
    rows = {s.name: costs[s.name].energy for s in graph.sites}
    assert rows["features.0"].activations == 1160800
    assert rows["features.0"].compute == 176400
    assert rows["features.3"].activations == 647600
    assert rows["features.3"].compute == 360000
    fixed = sum(site.activation_energy(EYERISS) for site in graph.sites)
    assert fixed == total.activations
    linear = [rows[name].activations for name in rows if name.startswith("classifier")]
    assert linear == [173600, 55200, 20144]


def test_half_masked_and_half_pruned_lenet():
    graph = dense_lenet()
    with torch.no_grad():
        for site in graph.sites:
            weight = graph.weight(site)
            weight.masked_fill_(~alternating(weight.shape), 0.0)
    total = cost_table(graph, EYERISS).total.energy
    assert (total.weights, total.compute, total.compute_relaxed) == (6626520, 356580, 624780)
    assert (total.activations, total.exact, total.relaxed) == (2057344, 9040444, 9308644)


def test_without_the_update_the_masks_cost_nothing_less():
    graph = traced(lenet5().eval(), torch.zeros(1, 1, 32, 32))
    masks = attach_input_masks(graph)
    dense = sum(site.activation_energy(EYERISS) for site in graph.sites)
    assert dense == 2604944
    set_mask(graph, masks[0], alternating((1, 32, 32)))
    assert sum(site.activation_energy(EYERISS) for site in graph.sites) == dense
    update_supports(graph)
    assert sum(site.activation_energy(EYERISS) for site in graph.sites) == dense - 220000
    set_mask(graph, masks[0], torch.ones(1, 32, 32))
    update_supports(graph)
    assert sum(site.activation_energy(EYERISS) for site in graph.sites) == dense
    assert graph.by_name["features.0"].uses[0].inputs is None


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", NETS)
def test_masks_of_ones_change_no_bit(name):
    model, x = net(name)
    expected, graph = model(x), traced(model, x)
    assert graph.runnable is model
    masks = attach_input_masks(graph)
    assert [mask.site for mask in masks] == NETS[name][2]
    assert len({mask.path for mask in masks}) == len(masks)
    assert graph.runnable is graph.graph_module
    assert torch.equal(graph.runnable(x), expected)
    assert torch.equal(model(x), expected)
    assert {m.path for m in masks} <= set(graph.runnable.state_dict())
    update_supports(graph)
    assert all(use.inputs is None for site in graph.sites for use in site.uses)


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", NETS)
def test_each_mask_is_found_again_where_it_is(name):
    model, x = net(name)
    graph = traced(model, x)
    before = {site.name: [u.shape for u in site.uses] for site in graph.sites}
    masks, generator = attach_input_masks(graph), torch.Generator().manual_seed(1)
    expected: dict[str, list[InputSupport]] = {}
    for mask in masks:
        values = torch.rand(mask_of(graph, mask).shape, generator=generator) < 0.6
        set_mask(graph, mask, values)
        expected.setdefault(mask.site, []).append(InputSupport.of(values.numpy()))
    update_supports(graph)
    for site in graph.sites:
        found = [use.inputs for use in site.uses for _ in range(use.count)]
        assert found == expected.get(site.name, [None] * len(found))
        assert {use.shape for use in site.uses} == set(before[site.name])
    # A new trace of what runs now finds the same: nothing is taken from the rewrite's own books.
    again = traced(graph.runnable, x)
    assert [s.uses for s in again.sites] == [s.uses for s in graph.sites]
    assert cost_table(again, EYERISS).total == cost_table(graph, EYERISS).total


def test_a_masked_input_is_an_input_of_zero():
    model, x = net("called twice")
    graph = traced(model, x)
    first, second = attach_input_masks(graph)
    keep = [alternating((2, 6, 6)), torch.rand(2, 6, 6) < 0.5]
    set_mask(graph, first, keep[0])
    set_mask(graph, second, keep[1])
    expected = model.conv(torch.relu(model.conv(x * keep[0])) * keep[1])
    assert torch.equal(graph.runnable(x), expected)


@pytest.mark.parametrize("name", ["module", "grouped", "called twice", "1d", "3d", "shared input"])
def test_gradient_of_a_mask_is_the_batch_sum(name):
    """dL/dM = sum over the batch of x * dL/d(x M), with both as the graph itself computes them."""
    model, x = net(name)
    graph = traced(model, x)
    masks, seen = attach_input_masks(graph), []
    for mask in masks:
        set_mask(graph, mask, 0.25 + 0.5 * torch.rand(mask_of(graph, mask).shape))
        mask_of(graph, mask).requires_grad_(True)

    class Watched(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            output = super().call_function(target, args, kwargs)
            if target is torch.mul:
                output.retain_grad()
                seen.append((args[0].detach(), output))
            return output

    Watched(graph.graph_module).run(x).pow(3).sum().backward()
    assert len(seen) == len(masks)
    for mask, (plain, masked) in zip(masks, seen, strict=True):
        expected = (plain * masked.grad).sum(0)
        gradient = mask_of(graph, mask).grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_mask_against_differences():
    model, x = net("called twice")
    graph = traced(model.double(), x.double())
    masks = attach_input_masks(graph)
    tensor = mask_of(graph, masks[1])
    tensor.requires_grad_(True)
    torch.sin(graph.runnable(x.double())).sum().backward()
    for index in ((0, 0, 0), (1, 3, 2), (0, 5, 5)):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                tensor[index] += step
                ends.append(float(torch.sin(graph.runnable(x.double())).sum()))
                tensor[index] -= step
        assert float(tensor.grad[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def padded(function):
    return Called(lambda m, x: m.b(m.a(function(x))), a=nn.Conv2d(2, 3, 3), b=nn.Conv2d(3, 3, 3))


REFUSED = {
    "F.pad": (lambda: padded(lambda x: F.pad(x, (1, 1, 0, 2))), "a", "padded by a node of its own"),
    "ZeroPad2d": (
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3)),
        "1",
        "padded by a node of its own",
    ),
    "circular": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(3, 3, 3)
        ),
        "0",
        "something else than zeros",
    ),
    "no batch": (
        lambda: Called(
            lambda m, x: m.a(x.reshape(-1, 1, 6, 6)).sum(0, keepdim=True) + m.b(x),
            a=nn.Conv2d(1, 3, 3),
            b=nn.Conv2d(2, 3, 3),
        ),
        "a",
        "not the batch",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Conv2d(3, 3, 3)),
        "0",
        "no plain convolution",
    ),
    "opaque leaf": (
        lambda: nn.Sequential(Branching(), nn.Conv2d(2, 3, 3)),
        "0.conv",
        "opaque leaf",
    ),
    "computed weight": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.Conv2d(3, 3, 3)
        ),
        "0",
        "no plain convolution",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gets_no_mask_is_said(name):
    make, site, why = REFUSED[name]
    model, x = seeded(lambda: (make().eval(), torch.randn(2, 2, 6, 6)))
    expected, graph = model(x), traced(model, x)
    masks = attach_input_masks(graph)
    assert site not in [mask.site for mask in masks]
    assert len(masks) == 1
    told = [d for d in graph.decisions if d.what == "input not masked"]
    assert [d.layer for d in told] == [site]
    assert why in told[0].why
    assert torch.equal(graph.runnable(x), expected)


def test_layers_left_alone_get_no_mask():
    graph = traced(lenet5().eval(), torch.zeros(1, 1, 32, 32))
    graph.rules = {"features.0": LayerRule(1.0), "features.3": LayerRule(0.5)}
    assert [mask.site for mask in attach_input_masks(graph)] == ["features.3"]
    told = [d for d in graph.decisions if d.what == "input not masked"]
    assert [(d.layer, d.why) for d in told] == [("features.0", "the layer is left alone")]


NONE = {
    "linear": (lambda: nn.Linear(3, 2), (2, 3), "no convolution is there"),
    "left opaque": (
        lambda: nn.Sequential(Branching(), nn.Flatten(), nn.Linear(72, 2)),
        (2, 2, 6, 6),
        "no convolution is there",
    ),
    "untraceable": (Branching, (2, 2, 6, 6), "cannot be traced as a whole"),
}


@pytest.mark.parametrize("name", NONE)
def test_nothing_to_mask_is_an_error_that_changes_nothing(name):
    make, shape, message = NONE[name]
    model, x = seeded(lambda: (make().eval(), torch.randn(shape)))
    expected, graph = model(x), traced(model, x)
    decisions, code = list(graph.decisions), getattr(graph.graph_module, "code", None)
    for work in (attach_input_masks, maskable_inputs):
        with pytest.raises(PreconditionError, match=message) as caught:
            work(graph)
        assert "Leave input_mask out" in caught.value.remedy
    assert graph.decisions == decisions
    assert getattr(graph.graph_module, "code", None) == code
    assert not graph.rewritten
    assert torch.equal(graph.runnable(x), expected)


def test_what_can_be_masked_is_known_before():
    model, x = net("called twice")
    graph = traced(model, x)
    code = graph.graph_module.code
    found = [(site.name, size) for site, size in maskable_inputs(graph)]
    assert found == [("conv", (2, 6, 6)), ("conv", (2, 6, 6))]
    assert graph.graph_module.code == code
    masks = attach_input_masks(graph)
    assert found == [(m.site, tuple(mask_of(graph, m).shape)) for m in masks]


def test_a_model_with_a_member_of_the_same_name_keeps_it():
    model = Called(lambda m, x: m.conv(x) * m.input_masks, conv=nn.Conv2d(2, 2, 3))
    model.register_buffer("input_masks", torch.full((1,), 3.0))
    x = torch.randn(2, 2, 6, 6)
    expected, graph = model.eval()(x), traced(model.eval(), x)
    masks = attach_input_masks(graph)
    assert masks[0].path == "input_masks_2.conv"
    assert torch.equal(graph.runnable(x), expected)


def test_masks_have_the_type_of_their_weights():
    model, x = net("module")
    graph = traced(model.double(), x.double())
    mask = attach_input_masks(graph)[0]
    assert mask_of(graph, mask).dtype == torch.float64
    assert graph.runnable(x.double()).dtype == torch.float64


def torchvision_mobilenet():
    from passes.torchvision_shim import ensure_torchvision_importable

    ensure_torchvision_importable()
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layers"), [(resnet20, 19), (torchvision_mobilenet, 52)], ids=["resnet20", "mobilenet"]
)
def test_real_networks_take_masks_and_a_step(make, layers):
    model, x = seeded(lambda: (make().eval(), torch.randn(2, 3, 32, 32)))
    expected, graph = model(x), traced(model, x)
    convolutions = [s.name for s in graph.sites if len(s.uses[0].shape.kernel) == 2]
    masks = attach_input_masks(graph)
    assert [mask.site for mask in masks] == convolutions
    assert len(masks) == layers
    assert torch.equal(graph.runnable(x), expected)
    tensors = [mask_of(graph, mask).requires_grad_(True) for mask in masks]
    graph.module.train()
    graph.graph_module.train()
    means = {k: b.clone() for k, b in graph.module.named_buffers() if "running_mean" in k}
    outputs = seeded(lambda: graph.runnable(x))
    assert not torch.equal(outputs, expected), "norms and dropout are in training mode"
    assert torch.equal(outputs, seeded(lambda: model(x)))
    outputs.logsumexp(1).sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in tensors)
    with torch.no_grad():
        for tensor in tensors:
            tensor -= tensor.grad.sign()
    assert any(not torch.equal(graph.module.get_buffer(k), m) for k, m in means.items())
    update_supports(graph)
    assert all(use.inputs is not None for n in convolutions for use in graph.by_name[n].uses)
    small = Hardware("small", input_cache_bytes=4096)
    again = traced(graph.runnable, x)
    assert cost_table(again, small).total == cost_table(graph, small).total
