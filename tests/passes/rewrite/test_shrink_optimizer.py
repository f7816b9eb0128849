"""An optimizer goes on with the smaller model as if the channels had never been there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from slicing import random_state, randomize, traced
from structure_nets import Concat, Depthwise, Flat, Multihead, Tied, Transposed, image
from torch import nn

from energy_model.errors import PreconditionError
from passes.rewrite.gates import insert_gates
from passes.rewrite.shrink import shrink
from passes.structure.state import cuts

OPTIMIZERS = {
    "momentum": lambda p, **k: torch.optim.SGD(p, lr=0.01, momentum=0.9, **k),
    "nesterov": lambda p, **k: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, **k),
    "plain sgd": lambda p, **k: torch.optim.SGD(p, lr=0.01, **k),
    "adam": lambda p, **k: torch.optim.Adam(p, lr=0.01, amsgrad=True, **k),
    "adamw": lambda p, **k: torch.optim.AdamW(p, lr=0.01, **k),
    "rmsprop": lambda p, **k: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True, **k),
    "adadelta": lambda p, **k: torch.optim.Adadelta(p, **k),
    # A bias before a norm has the gradient zero, of which a small eps would magnify the noise.
    "adagrad": lambda p, **k: torch.optim.Adagrad(p, eps=1e-6, **k),
    "nadam": lambda p, **k: torch.optim.NAdam(p, **k),
}


def train(model, optimizer, steps=1, seed=0):
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        x = image(3 + seed + step)
        (model(x) - 0.3).square().mean().backward()
        optimizer.step()


def gated_twin(graph, groups, state, optimizer, make):
    """The gated model, with an optimizer in the same state."""
    gated = insert_gates(graph, groups, state)
    mine = dict(graph.module.named_parameters())
    theirs = dict(gated.named_parameters())
    twin = make([theirs[name] for name in mine if name in theirs])
    for name in theirs:
        twin.state[theirs[name]] = copy.deepcopy(optimizer.state[mine[name]])
    return gated, twin


def left_of(groups, state, model):
    """What the state keeps of every parameter, by path."""
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for cut in cuts(groups, state):
        name = f"{cut.path}.{cut.attribute}" if cut.path else cut.attribute
        if name in found:
            found[name] = found[name].index_select(
                cut.dim, torch.from_numpy(np.flatnonzero(cut.keep))
            )
    return found


def check_continues(model, make):
    """Train, remove channels, train on: as the gated model does, for what it keeps."""
    torch.manual_seed(0)
    graph, groups = traced(randomize(model), image())
    optimizer = make(list(graph.module.parameters()))
    train(graph.module, optimizer, steps=3)
    state = random_state(groups, 0)
    gated, twin = gated_twin(graph, groups, state, optimizer, make)
    shrink(graph, groups, state, optimizer)
    train(gated, twin, steps=2, seed=5)
    train(graph.module, optimizer, steps=2, seed=5)
    expected = left_of(groups, state, gated)
    found = dict(graph.module.named_parameters())
    assert set(expected) == set(found)
    for name, value in expected.items():
        assert value.shape == found[name].shape
        scale = max(1.0, float(value.abs().max()))
        assert float((found[name] - value).detach().abs().max()) < 1e-10 * scale, name
    return graph, optimizer


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("foreach", [True, False])
def test_it_goes_on_as_with_gates(name, decay, foreach):
    check_continues(Concat(), lambda p: OPTIMIZERS[name](p, weight_decay=decay, foreach=foreach))


@pytest.mark.spread(2)
@pytest.mark.parametrize("build", [Depthwise, Flat, Multihead, Tied, Transposed])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_it_does_so_for_every_kind_of_layer(build, name):
    graph, optimizer = check_continues(build(), lambda p: OPTIMIZERS[name](p, weight_decay=0.1))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(trained, graph.module.parameters(), strict=True))
    assert {id(p) for p in optimizer.state} == {id(p) for p in trained}


def prepared(make=OPTIMIZERS["adam"], model=None, steps=1):
    torch.manual_seed(0)
    graph, groups = traced(randomize(model or Concat()), image())
    optimizer = make([p for p in graph.module.parameters() if p.requires_grad])
    train(graph.module, optimizer, steps)
    return graph, groups, optimizer


def test_state_is_sliced_and_numbers_stay():
    graph, groups, optimizer = prepared(steps=3)
    weight = graph.module.a.weight
    moment, step = (optimizer.state[weight][key].clone() for key in ("exp_avg", "step"))
    shrink(graph, groups, {"stem": np.arange(8) >= 2, "a": np.arange(7) < 4}, optimizer)
    state = optimizer.state[graph.module.a.weight]
    assert torch.equal(state["exp_avg"], moment[:4, 2:])
    assert torch.equal(state["step"], step)
    assert weight not in optimizer.state


def test_groups_of_parameters_keep_their_place_and_options():
    torch.manual_seed(0)
    graph, groups = traced(randomize(Concat()), image())
    model = graph.module
    optimizer = torch.optim.SGD(
        [
            {"params": [model.a.weight, model.head.bias], "lr": 0.5},
            {"params": [model.stem.weight, model.bn.weight]},
        ],
        lr=0.1,
        momentum=0.9,
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer)
    shrink(graph, groups, random_state(groups, 0), optimizer)
    first, second = optimizer.param_groups
    assert all(
        a is b for a, b in zip(first["params"], (model.a.weight, model.head.bias), strict=True)
    )
    assert all(
        a is b for a, b in zip(second["params"], (model.stem.weight, model.bn.weight), strict=True)
    )
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])
    train(model, optimizer)


def test_frozen_parameters_are_cut_and_stay_out():
    model = Concat()
    model.a.weight.requires_grad_(False)
    graph, groups, optimizer = prepared(model=model)
    frozen = model.a.weight
    before = frozen.clone()
    keep = {"a": np.arange(7) < 4}
    shrink(graph, groups, keep, optimizer)
    train(model, optimizer)
    assert torch.equal(model.a.weight, before[:4])
    assert not model.a.weight.requires_grad
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.a.weight) not in trained


def test_an_optimizer_that_has_taken_no_step():
    graph, groups, optimizer = prepared(steps=0)
    shrink(graph, groups, random_state(groups, 0), optimizer)
    assert not optimizer.state
    train(graph.module, optimizer)
    assert len(optimizer.state) == len(list(graph.module.parameters()))


def test_the_state_dict_can_be_loaded_again():
    graph, groups, optimizer = prepared(steps=2)
    shrink(graph, groups, random_state(groups, 0), optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    fresh = OPTIMIZERS["adam"](list(graph.module.parameters()))
    fresh.load_state_dict(saved)
    for parameter in graph.module.parameters():
        mine, theirs = optimizer.state[parameter], fresh.state[parameter]
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_an_optimizer_that_accelerate_wraps():
    accelerator = Accelerator(cpu=True)

    def make(parameters):
        return accelerator.prepare(OPTIMIZERS["adamw"](parameters, weight_decay=0.1))

    graph, optimizer = check_continues(Concat(), make)
    inner = optimizer.optimizer
    assert {id(p) for p in inner.state} == {id(p) for p in graph.module.parameters()}


def refused(graph, groups, optimizer, message):
    """The removal is refused, and nothing has changed."""
    before = [(p, p.detach().clone()) for p in graph.module.parameters()]
    held = [list(group["params"]) for group in optimizer.param_groups]
    keys = [id(key) for key in optimizer.state]
    with pytest.raises(PreconditionError, match=message):
        shrink(graph, groups, random_state(groups, 0), optimizer)
    for (old, value), new in zip(before, graph.module.parameters(), strict=True):
        assert old is new
        assert torch.equal(value, new)
    for group, params in zip(optimizer.param_groups, held, strict=True):
        assert all(a is b for a, b in zip(group["params"], params, strict=True))
    assert [id(key) for key in optimizer.state] == keys


def test_factored_moments_are_refused():
    graph, groups, optimizer = prepared(torch.optim.Adafactor)
    refused(graph, groups, optimizer, r"weight: the optimizer's state\['row_var'\] has the shape")


def test_an_optimizer_with_a_list_of_its_own_is_refused():
    graph, groups = traced(randomize(Concat()), image())
    optimizer = torch.optim.LBFGS(graph.module.parameters())
    refused(graph, groups, optimizer, "LBFGS holds the parameter in '_params', too. Make a new")


def test_without_its_optimizer_the_old_parameters_would_be_trained():
    """Why the optimizer must be handed over."""
    graph, groups, optimizer = prepared()
    shrink(graph, groups, random_state(groups, 0))
    before = [p.detach().clone() for p in graph.module.parameters()]
    weight = graph.module.a.weight
    train(graph.module, optimizer)
    changed = [
        not torch.equal(a, b) for a, b in zip(before, graph.module.parameters(), strict=True)
    ]
    assert not changed[[p is weight for p in graph.module.parameters()].index(True)]
    assert isinstance(weight, nn.Parameter)
