"""Attention with any number of heads: equal to torch's with all of them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from structure_nets import Multihead, image
from torch import nn

from energy_model.errors import ArgumentError, UnsupportedLayer
from energy_model.hardware import load_hardware
from export.dense import write_dense
from passes.inputs import as_call
from passes.rewrite.head_attention import HeadAttention
from passes.rewrite.shrink import shrink
from passes.storage.graph_json import graph_from_json, graph_state, graph_to_json
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace

N, LENGTH, POSITIONS, WIDTH, HEADS = 2, 5, 7, 12, 3


def tensor(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(**options):
    """torch's layer, with biases that are not zero, and ours with copies of its parameters."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.copy_(tensor(*parameter.shape, seed=1))
    ours = HeadAttention.of(layer)
    return layer, ours


def example(layer, batched=True, shared=""):
    widths = {"q": WIDTH, "k": layer.kdim, "v": layer.vdim}
    lengths = {"q": LENGTH, "k": POSITIONS, "v": POSITIONS}
    made = {}
    for seed, name in enumerate("qkv"):
        shape = [lengths[name], N] if batched else [lengths[name]]
        shape = shape[::-1] if layer.batch_first else shape
        made[name] = tensor(*shape, widths[name], seed=seed)
    if "v" in shared:
        made["v"] = made["k"]
    if "q" in shared:
        made["q"] = made["k"]
    return tuple(made.values())


def assert_same(ours, theirs, inputs, **options):
    found, expected = ours(*inputs, **options), theirs(*inputs, **options)
    assert isinstance(found, tuple)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


LAYERS = [
    {"batch_first": first, "bias": bias, **widths}
    for first, bias, widths in itertools.product(
        (True, False), (True, False), ({}, {"kdim": 10}, {"kdim": 9, "vdim": 8})
    )
]
RETURNS = [
    {"need_weights": False},
    {"need_weights": True},
    {"need_weights": True, "average_attn_weights": False},
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("returns", RETURNS, ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_it_is_what_torch_computes(options, returns, batched):
    theirs, ours = pair(**options)
    assert_same(ours, theirs, example(theirs, batched), **returns)


@pytest.mark.parametrize("shared", ["v", "qv"])
@pytest.mark.parametrize("first", [True, False])
def test_inputs_may_be_one_tensor(shared, first):
    theirs, ours = pair(batch_first=first)
    inputs = example(theirs, shared=shared)
    assert_same(ours, theirs, inputs)
    with torch.no_grad():
        assert_same(ours, theirs, inputs, need_weights=False)


def padding(kind, batched):
    mask = torch.zeros(N, POSITIONS, dtype=torch.bool)
    mask[0, -2:] = mask[1, :1] = True
    mask = mask if batched else mask[0]
    return {
        "none": None,
        "bool": mask,
        "float": torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf),
    }[kind]


def attention_mask(kind, batched):
    samples = N if batched else 1
    return {
        "none": None,
        "bool": torch.ones(LENGTH, POSITIONS).triu(2).bool(),
        "float": tensor(LENGTH, POSITIONS, seed=7),
        "heads": tensor(samples * HEADS, LENGTH, POSITIONS, seed=8),
        "bool heads": tensor(samples * HEADS, LENGTH, POSITIONS, seed=8) > 0.7,
    }[kind]


@pytest.mark.parametrize("padded", ["none", "bool", "float"])
@pytest.mark.parametrize("masked", ["none", "bool", "float", "heads", "bool heads"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("returns", RETURNS, ids=str)
def test_masks(padded, masked, batched, returns):
    theirs, ours = pair(batch_first=True)
    masks = {
        "key_padding_mask": padding(padded, batched),
        "attn_mask": attention_mask(masked, batched),
    }
    assert_same(ours, theirs, example(theirs, batched), **masks, **returns)


@pytest.mark.parametrize("padded", ["none", "bool"])
@pytest.mark.parametrize("returns", RETURNS, ids=str)
def test_causal_hint(padded, returns):
    theirs, ours = pair(batch_first=True)
    x = example(theirs)[1]
    mask = torch.ones(POSITIONS, POSITIONS).triu(1).bool()
    pad = None if padded == "none" else torch.zeros(N, POSITIONS).bool()
    given = {"attn_mask": mask, "is_causal": True, "key_padding_mask": pad}
    assert_same(ours, theirs, (x, x, x), **given, **returns)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_in_training_only(need_weights):
    theirs, ours = pair(batch_first=True, dropout=0.4)
    inputs = example(theirs)
    assert_same(ours, theirs, inputs, need_weights=need_weights)
    found = []
    for layer in (theirs.train(), ours.train()):
        torch.manual_seed(3)
        found.append(layer(*inputs, need_weights=need_weights)[0].detach())
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert not torch.allclose(found[0], ours.eval()(*inputs)[0], atol=1e-3)


def test_gradients():
    theirs, ours = pair()
    inputs = example(theirs)
    found = []
    for layer in (theirs, ours):
        layer.zero_grad()
        layer(*inputs)[0].square().sum().backward()
        found.append({name: p.grad.clone() for name, p in layer.named_parameters()})
    assert list(found[0]) == list(found[1])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("options", [{}, {"kdim": 10}, {"bias": False}], ids=str)
def test_the_state_dict_is_that_of_torch(options):
    theirs, ours = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    fresh = HeadAttention(WIDTH, HEADS, WIDTH // HEADS, **options).double()
    fresh.load_state_dict(theirs.state_dict())
    assert_same(fresh.eval(), theirs, example(theirs))
    assert ours.out_proj.weight is theirs.out_proj.weight


@pytest.mark.parametrize("dims", [{}, {"kdim": 10, "vdim": 9}], ids=str)
def test_fewer_heads_are_the_others_without_their_columns(dims):
    """To leave out a head is to set its columns of the output projection to zero."""
    theirs, _ = pair(**dims)
    small = HeadAttention(WIDTH, 2, 4, **dims).double()
    kept = torch.tensor([True, False, True]).repeat_interleave(4)
    state = theirs.state_dict()
    for name, value in state.items():
        if name.startswith("in_proj"):
            state[name] = value[kept.repeat(3)]
        elif name.endswith("proj_weight"):
            state[name] = value[kept]
        elif name == "out_proj.weight":
            state[name] = value[:, kept]
    small.load_state_dict(state)
    with torch.no_grad():
        theirs.out_proj.weight[:, ~kept] = 0
    assert small.num_heads == 2
    assert_same(small, theirs, example(theirs), need_weights=False)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_cannot_lose_heads_is_refused(option):
    layer = nn.MultiheadAttention(WIDTH, HEADS, **{option: True})
    with pytest.raises(UnsupportedLayer, match=r"encoder.attention: .*cannot lose heads. Keep"):
        HeadAttention.of(layer, "encoder.attention")


WRONG = [
    ({"is_causal": True}, "is_causal is only a hint"),
    ({"attn_mask": torch.zeros(LENGTH, POSITIONS, dtype=torch.int64)}, "int64 values"),
    ({"attn_mask": torch.zeros(LENGTH, 1)}, r"attn_mask: has the shape \(5, 1\).*\(5, 7\) or"),
    ({"key_padding_mask": torch.zeros(N, 1)}, r"\(2, 1\). It is to be \(2, 7\)"),
    ({"key_padding_mask": torch.zeros(POSITIONS)}, r"has the shape \(7,\)"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_masks(options, message):
    theirs, ours = pair()
    with pytest.raises(ArgumentError, match=message):
        ours(*example(theirs), **options)


def test_nested_tensors_are_refused():
    _, ours = pair(batch_first=True)
    x = torch.nested.nested_tensor([tensor(3, WIDTH), tensor(5, WIDTH)], layout=torch.jagged)
    with pytest.raises(UnsupportedLayer, match="nested"):
        ours(x, x, x)


class Crossed(nn.Module):
    """A learned query attends to the input, then the input to itself, then to the query."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.a, self.b, self.c = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        query = self.query.expand(x.size(0), -1, -1)
        y = x + self.a(x, x, x, need_weights=False)[0]
        y = self.b(query, y, y, need_weights=False)[0]
        return self.head(self.c(y, query, y, need_weights=False)[0].mean(1))


def crossed():
    torch.manual_seed(0)
    return Crossed().double().eval(), tensor(2, 6, WIDTH)


def replaced(model):
    for name in "abc":
        setattr(model, name, HeadAttention.of(getattr(model, name)))
    return model


def test_the_tracer_and_the_groups_treat_it_as_they_treat_torchs():
    model, x = crossed()
    expected = trace(model, as_call(model, x))
    groups = channel_groups(expected)
    found = trace(replaced(model), as_call(model, x))
    assert found.leaves == () == expected.leaves
    assert [site.name for site in found.sites] == [
        "a.in_proj_weight", "a.out_proj", "b.in_proj_weight[0:12]", "b.in_proj_weight[12:36]",
        "b.out_proj", "c.in_proj_weight[0:12]", "c.in_proj_weight[12:24]",
        "c.in_proj_weight[24:36]", "c.out_proj", "head",
    ]  # fmt: skip
    assert found.sites == expected.sites
    for ours, theirs in zip(channel_groups(found), groups, strict=True):
        assert (ours.name, ours.units, ours.why) == (theirs.name, theirs.units, theirs.why)
        places = [(m.name, m.dim, m.role, m.units.tolist()) for m in ours.members]
        assert places == [(m.name, m.dim, m.role, m.units.tolist()) for m in theirs.members]
    assert [(group.name, group.units) for group in groups.free] == [("a", 3), ("b", 3), ("c", 3)]


def thinned(graph, left=2):
    """The graph with so many heads in every layer."""
    groups = channel_groups(graph)
    shrink(graph, groups, {group.name: np.arange(group.units) < left for group in groups.free})
    return graph


@pytest.mark.parametrize("build", [crossed, lambda: (Multihead().double().eval(), image())])
def test_a_shrunk_model_is_saved_and_loaded(build):
    model, x = build()
    module = thinned(trace(model, as_call(model, x))).graph_module
    text = json.dumps(graph_to_json(module))
    assert "HeadAttention" in text
    assert '"custom"' not in text
    loaded = graph_from_json(json.loads(text), graph_state(module))
    assert torch.equal(loaded(x), module(x))
    again = trace(loaded, as_call(loaded, x))
    counts = {g.name: g.units for g in channel_groups(again) if "out_proj" in g.members[-1].name}
    assert set(counts.values()) == {2}


@pytest.mark.slow
def test_a_shrunk_model_is_exported(tmp_path):
    torch.manual_seed(0)
    model, x = Crossed().eval(), tensor(2, 6, WIDTH).float()
    hardware = load_hardware("eyeriss")
    graph = trace(model, as_call(model, x))
    before = write_dense(graph, hardware, tmp_path / "dense.onnx")
    parameters = sum(p.numel() for p in model.parameters())
    thinned(graph)
    after = write_dense(graph, hardware, tmp_path / "small.onnx")
    removed = parameters - sum(p.numel() for p in model.parameters())
    assert removed == 3 * (4 * 4 * WIDTH + 3 * 4)
    assert before.bytes - after.bytes >= 4 * removed
    assert after.parity.max_abs_error < 1e-5
    assert set(after.recount.stored) == {site.name for site in graph.sites}
