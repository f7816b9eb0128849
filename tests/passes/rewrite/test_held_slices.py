"""What an optimizer may not move."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passes.inputs import as_call
from passes.rewrite.held_slices import HeldSlices
from passes.structure.groups import channel_groups
from passes.structure.state import cuts, random_state
from passes.tracing.trace import trace

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-1),
}


def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 4),
    )


def traced():
    model = net()
    graph = trace(model, as_call(model, torch.randn(2, 2, 8, 8)))
    groups = channel_groups(graph)
    return graph, groups, random_state(groups, 1)


def dropped(graph, groups, state):
    """Every parameter with whether each element is dropped, written anew."""
    found = {}
    for cut in cuts(groups, state):
        parameter = dict(graph.module.named_parameters()).get(f"{cut.path}.{cut.attribute}")
        if parameter is not None:
            mask = found.setdefault(
                cut.path + cut.attribute, (parameter, torch.zeros_like(parameter))
            )
            mask[1].transpose(0, cut.dim)[torch.from_numpy(~cut.keep)] = 1
    return list(found.values())


def train(graph, optimizer, held, steps):
    for _ in range(steps):
        x, y = torch.randn(4, 2, 8, 8), torch.randint(4, (4,))
        nn.functional.cross_entropy(graph.module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if held is not None:
            held.restore()


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("holds", [True, False])
def test_dropped_slices_stay_bit_for_bit_only_while_they_are_held(name, holds):
    graph, groups, state = traced()
    optimizer = OPTIMIZERS[name](graph.module.parameters())
    train(graph, optimizer, None, 3)  # so that the optimizer has momentum
    held = HeldSlices(graph, groups)
    held.hold(state)
    before = copy.deepcopy([p.detach() for p, _ in dropped(graph, groups, state)])
    train(graph, optimizer, held if holds else None, 20)
    parts = dropped(graph, groups, state)
    assert len(parts) == 7  # weight and bias of two layers and a norm, weight of the last layer
    for old, (new, mask) in zip(before, parts, strict=True):
        assert torch.equal(old[mask > 0], new.detach()[mask > 0]) is holds
        assert not torch.equal(old[mask == 0], new.detach()[mask == 0])


def test_what_returns_is_free_and_what_goes_is_held_as_it_is_now():
    graph, groups, state = traced()
    held = HeldSlices(graph, groups)
    held.hold(state)
    first = graph.module[0].weight
    gone = torch.from_numpy(~state["0"])
    with torch.no_grad():
        first.fill_(5.0)
    held.hold({"0": ~state["0"]})
    with torch.no_grad():
        first.fill_(7.0)
    held.restore()
    assert (first[gone] == 7).all()
    assert (first[~gone] == 5).all()
    held.release()
    with torch.no_grad():
        first.fill_(9.0)
    held.restore()
    assert (first == 9).all()


def test_tied_weights_are_held_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    graph = trace(model, as_call(model, torch.randn(2, 6)))
    groups = channel_groups(graph)
    held = HeldSlices(graph, groups)
    held.hold(random_state(groups, 0))
    parameters = [id(part.parameter) for part in held._slices]
    assert len(parameters) == len(set(parameters))
