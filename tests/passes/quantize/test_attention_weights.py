"""Quantizers on the weights of attention: packed, in parts, on fused kernels, and in training."""

from __future__ import annotations

import copy

import pytest
import torch
from quantize_nets import seeded, traced
from torch import nn
from torch.nn.utils import parametrize

from energy_model.errors import ArgumentError
from passes.quantize.eligible import eligible
from passes.quantize.fit import fit_encoding
from passes.quantize.prediction import predicted_file_bytes
from passes.quantize.weights import (
    attach_weight_quantizers,
    bake_weight_quantizers,
    encodings_of,
    masked_weight,
    refit,
    set_encodings,
)
from passes.rewrite.head_attention import HeadAttention
from passes.rewrite.masks import attach_masks

BITS = 3
X = torch.randn(2, 5, 16, generator=seeded())


class Encoder(nn.Module):
    """A layer of torch that has a fused kernel, and attention from other keys than queries."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x, keys = self.layer(x), x * 2
        return self.cross(x, keys, keys)[0]


def quantized(model=None, *, block=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Encoder() if model is None else model()
    graph = traced(model.eval(), X)
    sites = eligible(graph, static=False).sites
    assert sites == graph.sites
    encodings = {s.name: fit_encoding(masked_weight(graph, s), BITS, block=block) for s in sites}
    attach_weight_quantizers(graph, encodings)
    return graph, encodings


def by_hand(graph, encodings):
    """The same model with weights that were rounded beforehand."""
    plain = copy.deepcopy(graph)
    bake_weight_quantizers(plain)
    for name, encoding in encodings.items():
        weight = graph.weight(graph.by_name[name])
        assert torch.equal(plain.weight(graph.by_name[name]), encoding.nearest(weight))
    return plain.module


@pytest.mark.parametrize("block", [None, 4])
def test_attention_computes_with_exact_levels_on_every_path(block, monkeypatch):
    graph, encodings = quantized(block=block)
    plain, model = by_hand(graph, encodings), graph.module
    given, fused = [], torch._transformer_encoder_layer_fwd

    def watched(*arguments):
        given.append([x for x in arguments if isinstance(x, torch.Tensor) and x.dim() == 2])
        return fused(*arguments)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", watched)
    with torch.no_grad():
        expected = plain(X)
        for other in (model, copy.deepcopy(model)):
            assert torch.allclose(other(X), expected, atol=1e-6)
    # The fused kernel takes the weights themselves: each time the same ones.
    assert [len(weights) for weights in given] == [4, 4, 4]
    for weights in given[1:]:
        assert all(torch.equal(a, b) for a, b in zip(given[0], weights, strict=True))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            assert torch.allclose(model(X), expected, atol=1e-6)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert len(given) == 3


def test_training_changes_the_raw_weights_and_computes_with_levels():
    graph, _ = quantized()
    model = graph.module.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    raw = {s.name: graph.weight(s).clone() for s in graph.sites}
    before = {n: id(p) for n, p in graph.module.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(raw[s.name], graph.weight(s)) for s in graph.sites)
    refit(graph)
    model.eval()
    expected, encodings = model(X), encodings_of(graph)
    found = bake_weight_quantizers(graph)
    assert torch.allclose(model(X), expected, atol=1e-6)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert {id(p) for p in model.parameters()} == set(before.values())
    for site in graph.sites:
        assert torch.equal(found[site.name].scale, encodings[site.name].scale)
        assert found[site.name].holds(graph.weight(site))


def test_parts_of_a_parameter_have_their_own_grids():
    graph, encodings = quantized()
    names = ["cross.in_proj_weight[0:16]", "cross.in_proj_weight[16:48]"]
    assert [len(encodings[name].scale) for name in names] == [16, 32]
    whole = graph.module.cross.parametrizations.in_proj_weight[0].encoding
    assert torch.equal(whole.scale, torch.cat([encodings[name].scale for name in names]))
    wider = fit_encoding(2 * masked_weight(graph, graph.by_name[names[1]]), BITS)
    set_encodings(graph, {names[1]: wider})
    now = encodings_of(graph)
    assert torch.equal(now[names[0]].scale, encodings[names[0]].scale)
    assert torch.equal(now[names[1]].scale, wider.scale)
    refit(graph)
    assert torch.equal(encodings_of(graph)[names[1]].scale, encodings[names[1]].scale)
    with pytest.raises(ArgumentError, match="another form"):
        set_encodings(graph, {names[0]: wider})


def test_parts_that_cannot_share_a_quantizer_are_refused():
    graph, encodings = quantized()
    bake_weight_quantizers(graph)
    first, second = "cross.in_proj_weight[0:16]", "cross.in_proj_weight[16:48]"
    with pytest.raises(ArgumentError, match="another part is not quantized"):
        attach_weight_quantizers(graph, {first: encodings[first]})
    other = fit_encoding(masked_weight(graph, graph.by_name[second]), BITS + 1)
    with pytest.raises(ArgumentError, match="different forms"):
        attach_weight_quantizers(graph, {first: encodings[first], second: other})
    with pytest.raises(ArgumentError, match=r"scales of shape \(16, 1\)"):
        attach_weight_quantizers(graph, {second: encodings[first]})


def test_masked_projections_stay_masked():
    graph, _ = quantized()
    masks = {s.name: torch.arange(s.size) % 2 == 0 for s in graph.sites}
    attach_masks(graph, masks)
    for site in graph.sites:
        flat = masked_weight(graph, site).reshape(-1)
        assert torch.equal(flat, graph.weight(site).reshape(-1) * masks[site.name])
    bake_weight_quantizers(graph)
    for site in graph.sites:
        assert not bool(graph.weight(site).reshape(-1)[~masks[site.name]].any())


def test_attention_with_any_number_of_heads():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = HeadAttention(16, 3, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    graph, encodings = quantized(Narrow)
    plain = by_hand(graph, encodings)
    assert torch.allclose(graph.module(X), plain(X), atol=1e-6)
    assert graph.module.attention.num_heads == 3


def test_scales_of_parts_are_predicted_for_their_own_rows():
    graph, _ = quantized()
    name = "cross.in_proj_weight[16:48]"
    sizes = [predicted_file_bytes(graph, 0, {name: 4}, blocks=b) for b in ({}, {name: 4})]
    assert sizes[1] - sizes[0] == 5 * 32 * (16 // 4 - 1)
