"""Codebooks on the weights of a model: attached, trained under, copied, saved and baked."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from energy_model.errors import ArgumentError, PostconditionError, PreconditionError
from passes.inputs import as_call
from passes.joint.codebook import Codebook
from passes.joint.fit import fit_codebook
from passes.joint.quantizer import (
    CodebookQuantizer,
    attach_codebooks,
    bake_codebooks,
    quantizers_of,
    read_codebooks,
    set_codebooks,
    train_through,
)
from passes.rewrite.masks import attach_masks
from passes.tracing.trace import trace

BITS = 2


class Net(nn.Module):
    """A convolution, two layers with one weight, and attention whose parts are sites."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.conv(x).flatten(1, 2).unflatten(-1, (8,))
        x = self.second(torch.relu(self.first(x)))
        return self.attention(x, 2 * x, x)[0]


X = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(1))


def graph_of(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net().eval()
    return trace(model, as_call(model, X))


def fitted(graph, bits=BITS, **options):
    return {s.name: fit_codebook(graph.weight(s), bits, **options) for s in graph.sites}


def attached(bits=BITS, **options):
    graph = graph_of()
    attach_codebooks(graph, graph.sites, kind=options.get("kind", "free"))
    books = fitted(graph, bits, **options)
    set_codebooks(graph, books)
    return graph, books


def by_hand(graph, books):
    """A plain copy whose weights were rounded beforehand."""
    plain = graph_of()
    for site in plain.sites:
        plain.weight(site).copy_(books[site.name].nearest(graph.weight(site)))
    return plain


def same_levels(a, b):
    return all(
        torch.equal(a[name].levels, b[name].levels)
        and (a[name].bits, a[name].kind, a[name].reserved_zero, a[name].scale)
        == (b[name].bits, b[name].kind, b[name].reserved_zero, b[name].scale)
        for name in a.keys() | b.keys()
    )


OPTIONS = [
    {},
    {"kind": "uniform"},
    {"reserved_zero": False},
    {"kind": "uniform", "reserved_zero": False},
]


@pytest.mark.spread(1)
@pytest.mark.parametrize("options", OPTIONS)
def test_evaluation_sees_the_levels_and_baking_writes_them(options):
    graph, books = attached(**options)
    names = list(graph_of().module.state_dict())
    before = copy.deepcopy(graph.module.state_dict())
    expected = by_hand(graph, books)
    assert {s.name for s in graph.sites} >= {"conv", "first"}
    assert len([s for s in graph.sites if "in_proj" in s.name]) > 1
    output = graph.module(X)
    assert torch.equal(output, expected.module(X))
    assert not torch.equal(output, graph_of().module(X))
    raw = {k: v for k, v in graph.module.state_dict().items() if k.endswith("original")}
    assert all(torch.equal(v, before[k]) for k, v in raw.items())
    assert same_levels(graph.codebooks, books)
    found = bake_codebooks(graph)
    assert same_levels(found, books)
    assert list(graph.module.state_dict()) == names
    assert not any(parametrize.is_parametrized(m) for m in graph.module.modules())
    assert [type(m) for m in graph.module.modules()] == [type(m) for m in Net().modules()]
    assert torch.equal(graph.module(X), output)
    for site in graph.sites:
        assert torch.equal(graph.weight(site), expected.weight(expected.by_name[site.name]))
        assert len(torch.unique(graph.weight(site))) <= 2**BITS + books[site.name].reserved_zero


def test_training_sees_the_weights_until_it_is_told_otherwise():
    graph, books = attached()
    expected = by_hand(graph, books).module(X)
    graph.module.train()
    assert torch.equal(graph.module(X), graph_of().module.train()(X))
    train_through(graph, through=True)
    assert torch.equal(graph.module(X), expected)
    train_through(graph, through=False)
    assert not torch.equal(graph.module(X), expected)
    graph.module.eval()
    assert torch.equal(graph.module(X), expected)
    # What is baked is what evaluation sees, also in the middle of training.
    graph.module.train()
    bake_codebooks(graph)
    assert all(m.training for m in graph.module.modules())
    assert torch.equal(graph.module.eval()(X), expected)


def test_gradients_pass_straight_through():
    part = CodebookQuantizer(((0, 3), (3, 3))).train()
    part.through = True
    part.set_codebook(0, Codebook(torch.tensor([-1.0, 1.0]), 1))
    weight = torch.tensor([0.1, 0.9, -7.0, 0.5, 0.6, 0.7], requires_grad=True)
    seen = part(weight)
    assert seen.tolist() == [0.0, 1.0, -1.0, *weight[3:].tolist()]
    (seen * torch.arange(6)).sum().backward()
    assert weight.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_tied_weights_have_one_codebook_and_stay_tied():
    graph, books = attached()
    [tied] = [site for site in graph.sites if len(site.owners) == 2]
    assert {len(quantizers_of(graph, s)) for s in graph.sites if s is not tied} == {1}
    assert len(quantizers_of(graph, tied)) == 2
    changed = fit_codebook(graph.weight(tied), 1)
    set_codebooks(graph, {tied.name: changed})
    assert all(q.codebook(part).bits == 1 for q, part in quantizers_of(graph, tied))
    assert same_levels(read_codebooks(graph), books | {tied.name: changed})
    bake_codebooks(graph)
    model = graph.module
    assert model.first.weight is model.second.weight
    assert len(torch.unique(model.first.weight)) <= 3


def test_parts_of_one_parameter_have_their_own_codebooks():
    graph, _ = attached()
    parts = [site for site in graph.sites if "in_proj" in site.name]
    books = {s.name: fit_codebook(graph.weight(s), b) for s, b in zip(parts, (1, 4), strict=False)}
    set_codebooks(graph, books)
    found = read_codebooks(graph)
    assert [found[s.name].bits for s in parts] == [1, 4, *[BITS] * (len(parts) - 2)]
    bake_codebooks(graph)
    for site, bits in zip(parts, (1, 4), strict=False):
        assert len(torch.unique(graph.weight(site))) <= 2**bits + 1


def test_a_part_that_is_no_target_stays_as_it_is():
    graph = graph_of()
    parts = [site for site in graph.sites if "in_proj" in site.name]
    last = graph.weight(parts[-1]).clone()
    books = {s.name: fit_codebook(graph.weight(s), 1) for s in parts[:-1]}
    attach_codebooks(graph, tuple(parts[:-1]))
    set_codebooks(graph, books)
    assert set(read_codebooks(graph)) == set(books)
    assert not quantizers_of(graph, parts[-1])
    output = graph.module(X)
    bake_codebooks(graph)
    assert torch.equal(graph.module(X), output)
    assert torch.equal(graph.weight(parts[-1]), last)
    assert all(len(torch.unique(graph.weight(s))) <= 3 for s in parts[:-1])


@pytest.mark.spread(1)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_state_brings_other_bits_along(options):
    graph, books = attached(**options)
    other, _ = attached(5, **options)
    other.module.load_state_dict(graph.module.state_dict())
    assert same_levels(read_codebooks(other), books)
    assert torch.equal(other.module(X), graph.module(X))
    fresh = graph_of()
    attach_codebooks(fresh, fresh.sites, kind=options.get("kind", "free"))
    assert read_codebooks(fresh) == {}
    fresh.module.load_state_dict(graph.module.state_dict())
    assert torch.equal(fresh.module(X), graph.module(X))


def test_the_widest_codebook_and_one_without_levels_fit_the_state():
    part = CodebookQuantizer(((0, 400),))
    assert part.codebook(0) is None
    values = torch.linspace(-1, 1, 400)
    wide = fit_codebook(values, 8, reserved_zero=False)
    part.set_codebook(0, wide)
    assert torch.equal(part.codebook(0).levels, wide.levels)
    assert len(wide.levels) == 256
    empty = fit_codebook(torch.zeros(9), 3)
    part.set_codebook(0, empty)
    assert len(part.codebook(0).levels) == 0
    assert not part.eval()(values).any()
    assert repr(part) == "CodebookQuantizer(3 bits)"


def test_a_copy_is_not_disturbed():
    graph, books = attached()
    output, copied = graph.module(X), copy.deepcopy(graph)
    bake_codebooks(copied)
    assert torch.equal(copied.module(X), output)
    assert same_levels(read_codebooks(graph), books)
    assert torch.equal(graph.module(X), output)
    set_codebooks(graph, fitted(graph, 1))
    assert torch.equal(copied.module(X), output)
    assert not torch.equal(graph.module(X), output)


def test_masked_weights_are_baked_with_their_masks():
    graph = graph_of()
    masks = {s.name: torch.arange(s.size).view_as(graph.weight(s)) % 3 > 0 for s in graph.sites}
    attach_masks(graph, masks)
    attach_codebooks(graph, graph.sites)
    kept = {s.name: graph.weight(s).masked_fill(~masks[s.name], 0.0) for s in graph.sites}
    set_codebooks(graph, {name: fit_codebook(values, BITS) for name, values in kept.items()})
    output = graph.module(X)
    bake_codebooks(graph)
    assert torch.equal(graph.module(X), output)
    for site in graph.sites:
        assert not graph.weight(site)[~masks[site.name]].any()
        assert not any(parametrize.is_parametrized(m) for m in graph.module.modules())


def test_without_a_codebook_weights_stay():
    graph = graph_of()
    attach_codebooks(graph, graph.sites)
    assert torch.equal(graph.module(X), graph_of().module(X))
    assert bake_codebooks(graph) == {}
    assert torch.equal(graph.module(X), graph_of().module(X))
    assert bake_codebooks(graph) == {}


def test_two_codebooks_on_one_weight_and_foreign_parametrizations_are_refused():
    graph, _ = attached()
    with pytest.raises(PreconditionError, match="parametrized already"):
        attach_codebooks(graph, graph.sites)
    graph, _ = attached()
    parametrize.register_parametrization(graph.module.conv, "weight", nn.Identity())
    with pytest.raises(PreconditionError, match="conv: the layer has a parametrization"):
        bake_codebooks(graph)


def test_a_weight_off_its_levels_is_noticed(monkeypatch):
    graph, _ = attached()
    monkeypatch.setattr(CodebookQuantizer, "nearest", lambda self, weight: weight + 1)
    with pytest.raises(PostconditionError, match="not in its codebook of 2 bits"):
        bake_codebooks(graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_stay_what_they_are(dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).to(dtype).eval()
    graph = trace(model, as_call(model, torch.ones(2, 8, dtype=dtype)))
    attach_codebooks(graph, graph.sites)
    set_codebooks(graph, fitted(graph))
    seen = [layer.weight.detach().clone() for layer in model]
    bake_codebooks(graph)
    for layer, expected in zip(model, seen, strict=True):
        assert layer.weight.dtype == dtype
        assert torch.equal(layer.weight, expected)
        assert len(torch.unique(layer.weight)) <= 2**BITS + 1


def test_only_parts_of_the_same_parameter_share_a_quantizer():
    graph, _ = attached()
    found = [quantizers_of(graph, site) for site in graph.sites]
    for (a, b), (s, t) in zip(
        itertools.combinations(found, 2), itertools.combinations(graph.sites, 2), strict=True
    ):
        shared = {id(q) for q, _ in a} & {id(q) for q, _ in b}
        assert bool(shared) == (s.owners == t.owners)


def test_a_codebook_with_nothing_near_is_refused_where_it_has_no_level():
    empty = Codebook(torch.empty(0), 1, reserved_zero=False)
    with pytest.raises(ArgumentError, match="no level"):
        empty.nearest(torch.ones(3))
