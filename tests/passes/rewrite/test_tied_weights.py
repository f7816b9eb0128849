"""Layers with banks become nodes: the same function, and only the bank is left of the weight."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from energy_model.errors import PreconditionError, StorageError
from passes.dynamic.random_keys import key_of, normals
from passes.dynamic.tied_bank import TiedBank, attach_bank
from passes.inputs import as_call
from passes.rewrite.tied_weights import TiedWeight, why_not_tied, write_banks
from passes.storage.graph_json import graph_from_json, graph_state, graph_to_json
from passes.storage.tensors import load_tensors, save_tensors
from passes.tracing.trace import trace

FLAT, SIGNAL = (3, 8), (3, 4, 9)
IMAGE, VOLUME = (2, 4, 6, 6), (2, 2, 4, 4, 4)


class Functional(nn.Module):
    """A parameter of its own, and a layer whose weight it reads itself besides calling it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.fc(F.linear(x, self.w)), self.fc.weight, self.fc.bias) + self.fc.bias


class Shared(nn.Module):
    """Two layers with one weight, one of them called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.second(x)))


class Head(nn.Module):
    """The head of a language model is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 10)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), FLAT),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)), IMAGE),
    "reflect": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        IMAGE,
    ),
    "same": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, padding="same", dilation=2)), SIGNAL),
    "volume": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2, bias=False)), VOLUME),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2)
        ),
        IMAGE,
    ),
    "transposed signal": (lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3)), SIGNAL),
    "transposed volume": (lambda: nn.Sequential(nn.ConvTranspose3d(2, 3, 2)), VOLUME),
    "functional": (Functional, FLAT),
    "shared": (Shared, FLAT),
    "embedding": (Head, None),
}


def graph_of(name, **options):
    """The traced model, all its weights in banks."""
    make, shape = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    x = torch.arange(14).view(2, 7) % 10
    if shape is not None:
        x = normals(key_of(0, 0, "x"), torch.Size(shape).numel()).reshape(shape)
    graph = trace(model, as_call(model, x))
    for site in graph.sites:
        assert why_not_tied(graph, site) == ""
        whole = tuple(graph.parameter(site).shape)
        attach_bank(graph, site, TiedBank(whole, 5, key_of(1, 0, site.name), **options))
    return graph, x


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", CASES)
def test_the_function_stays_and_only_the_bank_is_left(name):
    graph, x = graph_of(name, sign_key=7)
    tied, before = len(graph.sites), graph.module(x)
    kept = sum(p.numel() for p in graph.module.parameters())
    sites = {site.name: site.size for site in graph.sites}
    write_banks(graph, graph.sites)
    assert torch.equal(graph.runnable(x), before)
    assert not any(parametrize.is_parametrized(part) for part in graph.runnable.modules())
    banks = [part for part in graph.runnable.modules() if isinstance(part, TiedWeight)]
    assert len(banks) == tied
    assert all(part.bank.shape == (5,) for part in banks)
    assert sum(p.numel() for p in graph.runnable.parameters()) == kept
    again = trace(graph.runnable, graph.call)
    assert {site.name: site.size for site in again.sites if site.computed} == sites
    assert again.compressible == ()


def test_one_weight_is_looked_up_once_for_all_that_share_it():
    graph, _ = graph_of("shared")
    write_banks(graph, graph.sites)
    assert [n.target for n in graph.graph_module.graph.nodes if n.op == "call_module"] == [
        "first.weight"
    ]
    [site] = trace(graph.runnable, graph.call).sites
    assert (site.name, sum(use.count for use in site.uses)) == ("first", 3)
    assert "from 5 parameters" in site.note


def test_gradients_reach_the_bank_and_the_bias():
    graph, x = graph_of("shared")
    copied = copy.deepcopy(graph.module)
    (copied(x) ** 2).sum().backward()
    write_banks(graph, graph.sites)
    (graph.runnable(x) ** 2).sum().backward()
    chain = copied.get_submodule("first.parametrizations.weight")
    for path, expected in (("weight.bank", chain.original), ("bias", copied.first.bias)):
        found = graph.runnable.get_parameter(f"first.{path}").grad
        torch.testing.assert_close(found, expected.grad)


def test_training_flags_are_kept():
    graph, _ = graph_of("linear")
    graph.module.eval()
    graph.graph_module.eval()
    write_banks(graph, graph.sites)
    assert not any(part.training for part in graph.runnable.modules())


@pytest.mark.parametrize("dealing", ["balanced", "hashed"])
def test_what_is_stored_is_the_bank_and_the_index_comes_back(dealing, tmp_path):
    graph, x = graph_of("linear", dealing=dealing, sign_key=3)
    write_banks(graph, graph.sites, stored_index=True)
    state = graph_state(graph.graph_module)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "0.weight.bank": (5,),
        "0.bias": (5,),
        "2.weight.bank": (5,),
        "2.bias": (3,),
    }
    assert list(graph.graph_module.state_dict()) == list(state)
    save_tensors(tmp_path / "w.safetensors", state)
    loaded = graph_from_json(
        graph_to_json(graph.graph_module), load_tensors(tmp_path / "w.safetensors")
    )
    assert torch.equal(loaded(x), graph.graph_module(x))
    weight = loaded.get_submodule("0.weight")
    assert weight.stored_index
    assert torch.equal(weight.tie.index, graph.graph_module.get_submodule("0.weight").tie.index)
    assert weight.tie.index.device.type == "cpu"


@pytest.mark.parametrize(
    ("field", "value"),
    [("buckets", 41), ("buckets", 4), ("dealing", "alphabetical"), ("leading", 9), ("key", "no")],
)
def test_a_damaged_description_is_refused(field, value):
    graph, _ = graph_of("linear")
    write_banks(graph, graph.sites)
    data = graph_to_json(graph.graph_module)
    [record] = [item for item in data["modules"] if item["path"] == "0.weight"]
    pairs = record["config"]["tie"]["dict"]
    [pair] = [pair for pair in pairs if pair[0] == field]
    pair[1] = value
    with pytest.raises(StorageError):
        graph_from_json(data, graph_state(graph.graph_module))


class Half(nn.Module):
    """Reads halves of a parameter."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 8))

    def forward(self, x):
        return F.linear(F.linear(x, self.w[:8]), self.w[8:])


class Transposed(nn.Module):
    """Two parameters in one storage."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Linear(8, 8, bias=False) for _ in "ab")
        self.b.weight = nn.Parameter(self.a.weight.t())

    def forward(self, x):
        return self.b(self.a(x))


def hooked():
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda *_: None)
    return nn.Sequential(layer, nn.ReLU())


def masked():
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "bias", nn.Identity())
    return nn.Sequential(layer, nn.ReLU())


def limited():
    model = Head()
    model.embedding.max_norm = 1.0
    return model


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


ALONE = {
    "a part of a parameter": (Half, FLAT),
    "shares its storage": (Transposed, FLAT),
    "does more than multiply": (hooked, FLAT),
    "is parametrized already": (masked, FLAT),
    "changes its weight": (limited, None),
    "cannot be traced as a whole": (Branching, FLAT),
    "what the graph calls as a whole": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)),
        FLAT,
    ),
    "no rule for GRU": (lambda: nn.Sequential(nn.GRU(8, 8)), FLAT),
    "no rule for Bilinear": (lambda: Doubled(), FLAT),
    "computed in every forward": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8))),
        FLAT,
    ),
}


class Doubled(nn.Module):
    """A layer that is given the same input twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(8, 8, 4)

    def forward(self, x):
        return self.layer(x, x)


@pytest.mark.parametrize("why", ALONE)
def test_what_cannot_be_tied_says_why(why):
    make, shape = ALONE[why]
    model = make()
    x = torch.arange(14).view(2, 7) % 10 if shape is None else torch.randn(shape)
    graph = trace(model, as_call(model, x))
    assert any(why in why_not_tied(graph, site) for site in graph.sites)


def test_a_weight_without_a_bank_is_refused():
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU())
    graph = trace(model, as_call(model, torch.randn(FLAT)))
    with pytest.raises(PreconditionError, match="not looked up in a bank"):
        write_banks(graph, graph.sites)
    graph.graph_module = None
    with pytest.raises(PreconditionError, match="cannot be traced"):
        write_banks(graph, graph.sites)
