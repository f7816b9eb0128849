"""Tied weights on a model: gradient, storage, training, copies and the way back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.dynamic.hashed import bucket_count, bucket_sizes
from passes.dynamic.random_keys import key_of, normals
from passes.dynamic.tied_bank import (
    TiedBank,
    attach_bank,
    bake_banks,
    bank_of,
    rescale_gradient,
)
from passes.inputs import as_call
from passes.joint.quantizer import attach_codebooks
from passes.rewrite.masks import attach_masks
from passes.rewrite.parametrizations import chains_of
from passes.tracing.trace import trace

X = normals(key_of(0, 0, "x"), 2 * 2 * 6 * 8).reshape(2, 2, 6, 8)
FORMS = [
    {"dealing": "balanced"},
    {"dealing": "hashed"},
    {"dealing": "balanced", "sign_key": 11},
    {"dealing": "hashed", "sign_key": 11},
]


class Net(nn.Module):
    """A convolution, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(torch.relu(self.conv(x)))))


def graph_of():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    return trace(model, as_call(model, X))


def key(name):
    return key_of(3, 0, name)


def tied(**options):
    """All weights of the net in banks of a quarter of their size."""
    graph = graph_of()
    for site in graph.sites:
        shape = tuple(graph.parameter(site).shape)
        cells = math.prod(shape[: options.get("leading")])
        bank = TiedBank(shape, bucket_count(cells, 0.25), key(site.name), **options)
        attach_bank(graph, site, bank)
    return graph


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("leading", [None, 2, 1])
def test_the_gradient_is_the_sum_over_virtual_weights(options, leading):
    shape, buckets = (6, 5, 3, 3), 3
    bank = TiedBank(shape, buckets, key("w"), leading=leading, **options)
    values = normals(key("bank"), buckets * math.prod(bank.entry)).reshape(buckets, *bank.entry)
    values.requires_grad_()
    outer = normals(key("outer"), 270).reshape(shape)
    weight = bank(values)
    (weight**2 * outer).sum().backward()
    virtual = (2 * weight * outer).detach().reshape(len(bank.index), -1)
    expected, looked_up = torch.zeros(buckets, virtual.shape[1]), torch.zeros_like(virtual)
    for cell, entry in enumerate(bank.index.tolist()):
        xi = 1 if bank.sign is None else int(bank.sign[cell])
        expected[entry] += xi * virtual[cell]
        looked_up[cell] = xi * values[entry].detach().reshape(-1)
    assert torch.equal(weight.detach().reshape(len(bank.index), -1), looked_up)
    assert torch.allclose(values.grad.reshape(buckets, -1), expected, atol=1e-5)


@pytest.mark.parametrize("options", FORMS)
def test_the_first_bank_is_the_nearest(options):
    weight = normals(key("w"), 120).reshape(12, 10)
    bank = TiedBank((12, 10), 30, key("i"), **options)
    nearest = bank.right_inverse(weight)
    lookup = torch.stack([bank(row) for row in torch.eye(30)], dim=-1).reshape(120, 30)
    taken = bucket_sizes(bank.index, 30) > 0
    solved = torch.linalg.lstsq(lookup[:, taken], weight.reshape(-1, 1)).solution.reshape(-1)
    assert torch.allclose(nearest[taken], solved, atol=1e-5)
    assert not bool(nearest[~taken].any())
    assert torch.allclose(bank.right_inverse(bank(nearest)), nearest, atol=1e-6)


def test_the_state_holds_the_bank_once():
    graph = tied()
    state = graph.module.state_dict()
    weights = {name: tuple(value.shape) for name, value in state.items() if "bias" not in name}
    assert weights == {
        "conv.parametrizations.weight.original": (18,),
        "first.parametrizations.weight.original": (16,),
        "second.parametrizations.weight.original": (16,),
    }
    first, second = graph.module.first, graph.module.second
    assert first.weight.shape == (8, 8)
    assert torch.equal(first.weight, second.weight)
    originals = [chains_of(layer)["weight"].original for layer in (first, second)]
    assert originals[0] is originals[1]
    assert originals[0].data_ptr() == originals[1].data_ptr()
    assert sum(p.numel() for p in graph.module.parameters()) == 18 + 16 + 4 + 8 + 8


def test_unique_parameters_are_entries_in_use():
    balanced = TiedBank((40, 50), 500, key("w"))
    assert balanced.unique_parameters == 500
    assert balanced.repeats == 4
    hashed = TiedBank((40, 50), 500, key("w"), dealing="hashed")
    assert hashed.unique_parameters == len(set(hashed.index.tolist())) < 500
    kernels = TiedBank((8, 4, 3, 3), 8, key("w"), leading=2)
    assert kernels.unique_parameters == 8 * 9
    assert kernels.repeats == 4


def train(graph, *, rescale=False, steps=5):
    # Momentum and Nesterov as published; the parameters are the banks themselves.
    optimizer = torch.optim.SGD(graph.module.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    target = normals(key("t"), X[:, :1].numel() * 4).reshape(2, 4, 6, 8)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (graph.module(X) - target).square().mean()
        loss.backward()
        for layer in (graph.module.conv, graph.module.first):
            if rescale:
                original = chains_of(layer)["weight"].original
                original.grad = rescale_gradient(original.grad, bank_of(layer))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_tied_weights_stay_tied_in_training():
    graph = tied()
    losses = train(graph, steps=30)
    assert losses[-1] < losses[0]
    bank = bank_of(graph.module.conv)
    weight = graph.module.conv.weight.detach().reshape(-1)
    for entry in range(bank.buckets):
        assert len(set(weight[bank.index == entry].tolist())) == 1


def test_rescaling_changes_the_next_weights():
    plain, rescaled = tied(), tied()
    before = chains_of(plain.module.conv)["weight"].original.detach().clone()
    train(plain, steps=1)
    train(rescaled, rescale=True, steps=1)
    moves = [chains_of(g.module.conv)["weight"].original - before for g in (plain, rescaled)]
    assert bool((moves[0] != 0).any())
    assert torch.allclose(moves[0], 4 * moves[1], atol=1e-7)
    bias = [g.module.conv.bias for g in (plain, rescaled)]
    assert torch.equal(*bias)


@pytest.mark.spread(2)
@pytest.mark.parametrize("options", [*FORMS, {"leading": 2}])
def test_baking_writes_the_same_weights_out(options):
    graph = tied(**options)
    original = chains_of(graph.module.first)["weight"].original
    train(graph)
    expected, weight = graph.module(X), graph.module.first.weight.detach().clone()
    bake_banks(graph)
    assert type(graph.module.conv) is nn.Conv2d
    assert type(graph.module.first) is nn.Linear
    assert graph.module.first.weight is graph.module.second.weight is original
    assert torch.equal(graph.module.first.weight, weight)
    assert torch.equal(graph.module(X), expected)
    assert set(graph.module.state_dict()) == set(graph_of().module.state_dict())
    graph.module(X).sum().backward()
    assert graph.module.conv.weight.grad.shape == (4, 2, 3, 3)
    bake_banks(graph)
    assert torch.equal(graph.module(X), expected)


def test_copies_and_loaded_states_compute_the_same():
    graph = tied(sign_key=4)
    train(graph)
    twin = copy.deepcopy(graph.module)
    assert torch.equal(twin(X), graph.module(X))
    fresh = tied(sign_key=4)
    assert not torch.equal(fresh.module(X), graph.module(X))
    fresh.module.load_state_dict(graph.module.state_dict())
    assert torch.equal(fresh.module(X), graph.module(X))
    bake_banks(graph)
    assert torch.equal(twin(X), graph.module(X))
    assert bank_of(twin.conv) is not None


def he_fan_out(bank):
    """Standard deviation `sqrt(2 / (outputs * kernel))`, as the authors have it."""
    fan_out = bank.shape[0] * math.prod(bank.shape[2:])
    return normals(key("init"), bank.buckets) * math.sqrt(2 / fan_out)


def test_initial_values_are_a_function_of_the_bank():
    graph = graph_of()
    site = graph.by_name["conv"]
    bank = TiedBank((4, 2, 3, 3), 18, key("conv"))
    attach_bank(graph, site, bank, he_fan_out)
    assert torch.equal(graph.parameter(site).detach(), he_fan_out(bank))
    assert torch.equal(graph.module.conv.weight, bank(he_fan_out(bank)))


def test_gradients_of_the_weight_do_not_outlive_it():
    graph = graph_of()
    graph.module(X).sum().backward()
    attach_bank(graph, graph.by_name["conv"], TiedBank((4, 2, 3, 3), 18, key("conv")))
    assert graph.parameter(graph.by_name["conv"]).grad is None


def test_a_bank_as_large_as_its_weight_is_shared_as_well():
    graph = graph_of()
    site = graph.by_name["first"]
    before = graph.module.first.weight.detach().clone()
    attach_bank(graph, site, TiedBank((8, 8), 8, key("first"), leading=1))
    assert torch.equal(graph.module.first.weight, before)
    assert torch.equal(graph.module.second.weight, before)


def test_what_cannot_be_tied():
    graph = graph_of()
    site = graph.by_name["conv"]
    with pytest.raises(PreconditionError, match="conv"):
        attach_bank(graph, site, TiedBank((4, 2, 3), 8, 0))
    with pytest.raises(ArgumentError, match="initial values"):
        attach_bank(graph, site, TiedBank((4, 2, 3, 3), 8, 0), lambda bank: torch.zeros(9))
    assert chains_of(graph.module.conv) == {}
    attach_masks(graph, {"conv": torch.ones(4, 2, 3, 3, dtype=torch.bool)})
    with pytest.raises(PreconditionError, match="before anything else"):
        attach_bank(graph, site, TiedBank((4, 2, 3, 3), 8, 0))


def test_a_quantizer_comes_after_the_bank():
    graph = tied()
    expected = graph.module(X)
    attach_codebooks(graph, (graph.by_name["conv"],))
    assert torch.equal(graph.module(X), expected)
    bake_banks(graph)
    assert bank_of(graph.module.conv) is None
    assert graph.parameter(graph.by_name["conv"]).shape == (4, 2, 3, 3)
    assert torch.equal(graph.module(X), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"buckets": 0},
        {"buckets": 65},
        {"dealing": "sorted"},
        {"leading": 0},
        {"leading": 3},
        {"leading": 1, "buckets": 9},
    ],
)
def test_banks_that_cannot_be(options):
    with pytest.raises(ArgumentError):
        TiedBank(**{"shape": (8, 8), "buckets": 8, "key": 0, **options})
