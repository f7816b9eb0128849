"""Quantizers of weights: exact levels, gradients, masks, ties, and plain modules at the end."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_nets import Encoder, randomized, seeded, traced
from torch import nn
from torch.nn.utils import parametrize

from energy_model.errors import ArgumentError, PostconditionError, PreconditionError
from passes.graph import ModelGraph
from passes.quantize.encoding import Encoding
from passes.quantize.fit import fit_encoding
from passes.quantize.weights import (
    WeightQuantizer,
    attach_weight_quantizers,
    bake_weight_quantizers,
    encodings_of,
    masked_weight,
    quantized_sites,
    refit,
    set_encodings,
    weight_quantizers,
)
from passes.rewrite.masks import attach_masks, bake_masks

X = torch.randn(3, 2, 6, 6, generator=seeded())


def net():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2),
        nn.Flatten(), nn.Linear(75, 5),
    )  # fmt: skip
    return randomized(model).eval()


def fitted(graph, bits=4):
    axes = {"3": 1}
    return {
        s.name: fit_encoding(graph.weight(s), bits, axis=axes.get(s.name, 0)) for s in graph.sites
    }


def odd_masks(graph):
    masks = {}
    for site in graph.sites:
        weight = graph.weight(site)
        masks[site.name] = (torch.arange(site.size) % 2 == 0).view(weight.shape)
    return masks


def by_hand(graph, encodings, masks=None):
    model = copy.deepcopy(graph.module)
    copied = ModelGraph(model, None, graph.call, graph.sites)
    with torch.no_grad():
        for name, encoding in encodings.items():
            weight = copied.weight(graph.by_name[name])
            if masks is not None:
                weight[~masks[name]] = 0.0
            weight.copy_(encoding.nearest(weight))
    return model


def test_the_model_computes_with_exact_levels_before_and_after_baking():
    model = net()
    graph = traced(model, X)
    encodings = fitted(graph)
    expected = by_hand(graph, encodings)(X)
    before = {n: id(p) for n, p in model.named_parameters()}
    keys, raw = list(model.state_dict()), [graph.weight(s).clone() for s in graph.sites]
    attach_weight_quantizers(graph, encodings)
    assert torch.equal(model(X), expected)
    assert torch.equal(graph.graph_module(X), expected)
    assert all(torch.equal(a, graph.weight(s)) for a, s in zip(raw, graph.sites, strict=True))
    found = bake_weight_quantizers(graph)
    assert torch.equal(model(X), expected)
    assert list(found) == list(encodings)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    for site in graph.sites:
        found[site.name].check(graph.weight(site), site.name)
        assert torch.equal(found[site.name].scale, encodings[site.name].scale)


@settings(max_examples=25)
@given(bits=st.integers(2, 8), seed=st.integers(0, 99), block=st.sampled_from([None, 4, 16]))
def test_baking_twice_changes_no_bit(bits, seed, block):
    model = nn.Sequential(nn.Linear(10, 6))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(6, 10, generator=seeded(seed)))
    graph = traced(model, torch.randn(2, 10))
    encoding = fit_encoding(model[0].weight, bits, block=block)
    attach_weight_quantizers(graph, {"0": encoding})
    first = bake_weight_quantizers(graph)
    once = model[0].weight.detach().clone()
    attach_weight_quantizers(graph, first)
    bake_weight_quantizers(graph)
    assert torch.equal(model[0].weight, once)


def test_gradients_pass_straight_through_also_where_levels_end():
    encoding = Encoding(3, torch.ones(1, 1))
    weight = torch.tensor([[0.4, -1.6, 9.0]], requires_grad=True)
    levels = WeightQuantizer(encoding)(weight)
    assert levels.tolist() == [[0.0, -2.0, 3.0]]
    (levels * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_scales_are_in_the_state():
    graph = traced(net(), X)
    attach_weight_quantizers(graph, fitted(graph))
    state = graph.module.state_dict()
    other = traced(net(), X)
    attach_weight_quantizers(other, fitted(other, bits=4))
    with torch.no_grad():
        for value in other.module.state_dict().values():
            if value.is_floating_point():
                value.mul_(3.0)
    other.module.load_state_dict(state)
    assert torch.equal(other.module(X), graph.module(X))


@pytest.mark.parametrize("first", ["mask", "quantizer"])
@pytest.mark.parametrize("baked", ["together", "mask first"])
def test_masks_come_before_quantizers_whichever_was_attached_first(first, baked):
    model = net()
    graph = traced(model, X)
    encodings, masks = fitted(graph), odd_masks(graph)
    expected = by_hand(graph, encodings, masks)(X)
    keys = list(model.state_dict())
    actions = [
        lambda: attach_masks(graph, masks),
        lambda: attach_weight_quantizers(graph, encodings),
    ]
    for action in actions if first == "mask" else reversed(actions):
        action()
    assert torch.equal(model(X), expected)
    if baked == "mask first":
        bake_masks(graph)
        assert torch.equal(model(X), expected)
        assert [s.name for s in quantized_sites(graph)] == list(encodings)
        assert not any(key.endswith("keep") for key in model.state_dict())
    bake_weight_quantizers(graph)
    assert torch.equal(model(X), expected)
    assert list(model.state_dict()) == keys
    for site in graph.sites:
        assert not bool(graph.weight(site)[~masks[site.name]].any())
        assert not bool(torch.signbit(graph.weight(site)[~masks[site.name]]).any())


def test_refitting_sees_what_the_mask_leaves():
    graph = traced(net(), X)
    masks = odd_masks(graph)
    with torch.no_grad():
        for site in graph.sites:
            graph.weight(site)[~masks[site.name]] = 100.0
    attach_weight_quantizers(graph, fitted(graph))
    attach_masks(graph, masks)
    refit(graph)
    for name, encoding in encodings_of(graph).items():
        site = graph.by_name[name]
        masked = torch.where(masks[name], graph.weight(site), 0.0)
        assert torch.equal(masked_weight(graph, site), masked)
        axis = encoding.axis
        assert torch.equal(encoding.scale, fit_encoding(masked, 4, axis=axis).scale)


def test_tied_weights_stay_tied_and_have_one_encoding():
    model = randomized(Encoder()).eval()
    tokens = torch.randint(11, (2, 5), generator=seeded())
    graph = traced(model, tokens)
    site = next(s for s in graph.sites if len(s.owners) == 2)
    encoding = fit_encoding(graph.weight(site), 4)
    attach_weight_quantizers(graph, {site.name: encoding})
    assert len(weight_quantizers(graph, site)) == 2
    assert torch.equal(model.embed.weight, model.head.weight)
    with torch.no_grad():
        graph.parameter(site).mul_(2.0)
    refit(graph)
    scales = [q.scale for q in weight_quantizers(graph, site)]
    assert torch.equal(*scales)
    assert torch.allclose(scales[0], 2 * encoding.scale)
    before = model(tokens)
    [found] = bake_weight_quantizers(graph).values()
    assert model.embed.weight is model.head.weight
    assert found.holds(model.head.weight)
    assert torch.equal(model(tokens), before)


def test_the_raw_parameter_is_what_others_change():
    graph = traced(net(), X)
    attach_weight_quantizers(graph, fitted(graph))
    site = graph.by_name["5"]
    raw = graph.parameter(site)
    assert isinstance(raw, nn.Parameter)
    assert raw is graph.module[5].parametrizations.weight.original
    with torch.no_grad():
        graph.weight(site).zero_()
    assert not bool(graph.module[5].weight.any())


def test_a_copy_is_not_disturbed():
    graph = traced(net(), X)
    attach_weight_quantizers(graph, fitted(graph))
    other = copy.deepcopy(graph.module)
    expected = other(X)
    bake_weight_quantizers(graph)
    assert parametrize.is_parametrized(other[5])
    assert torch.equal(other(X), expected)


def test_encodings_of_another_form_are_refused():
    graph = traced(net(), X)
    wrong = fit_encoding(torch.randn(6, 75), 4)
    with pytest.raises(ArgumentError, match=r"5: the grid has scales of shape \(6, 1\)"):
        attach_weight_quantizers(graph, {"5": wrong})
    attach_weight_quantizers(graph, fitted(graph))
    with pytest.raises(ArgumentError, match="another form"):
        set_encodings(graph, {"5": fit_encoding(graph.weight(graph.by_name["5"]), 5)})


def test_two_quantizers_on_one_weight_are_refused():
    graph = traced(net(), X)
    attach_weight_quantizers(graph, fitted(graph))
    with pytest.raises(PreconditionError, match="parametrized already"):
        attach_weight_quantizers(graph, fitted(graph))


def test_a_foreign_parametrization_is_refused_before_and_after():
    graph = traced(net(), X)
    encodings = fitted(graph)
    parametrize.register_parametrization(graph.module[5], "bias", nn.Identity())
    with pytest.raises(PreconditionError, match="5: the layer is parametrized already"):
        attach_weight_quantizers(graph, {"5": encodings["5"]})
    attach_weight_quantizers(graph, {"0": encodings["0"]})
    parametrize.register_parametrization(graph.module[0], "weight", nn.Identity())
    with pytest.raises(PreconditionError, match="0: the layer has a parametrization"):
        bake_weight_quantizers(graph)


def test_a_weight_off_its_grid_is_noticed(monkeypatch):
    graph = traced(net(), X)
    attach_weight_quantizers(graph, fitted(graph))
    monkeypatch.setattr("passes.quantize.weights.bake", lambda module, kinds: _drop(module))
    with pytest.raises(PostconditionError, match="not on its grid"):
        bake_weight_quantizers(graph)


def _drop(module):
    """Remove the quantizers, and forget to write the levels."""
    for name in list(getattr(module, "parametrizations", {})):
        original = module.parametrizations[name].original.detach().clone()
        parametrize.remove_parametrizations(module, name)
        with torch.no_grad():
            getattr(module, name).copy_(original)
