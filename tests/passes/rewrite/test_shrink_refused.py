"""What cannot shrink is refused before anything has changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from slicing import random_state, randomize, traced
from structure_nets import Multihead, Residual, image
from torch import nn
from torch.nn.utils import parametrize

from energy_model.errors import (
    ArgumentError,
    PostconditionError,
    PreconditionError,
    UnsupportedLayer,
)
from passes.rewrite.shrink import shrink


def seeded(build):
    torch.manual_seed(0)
    return randomize(build())


def tampered(change, message, error=PreconditionError):
    """A shrink that is refused, and leaves everything as it was."""
    graph, groups = traced(seeded(Multihead), image())
    groups = change(graph, groups) or groups
    layers, sites = list(graph.module.modules()), graph.sites
    before = [(p, p.detach().clone()) for p in graph.module.parameters()]
    state = {group.name: np.arange(group.units) < 1 for group in groups.free}
    with pytest.raises(error, match=message):
        shrink(graph, groups, state)
    assert all(a is b for a, b in zip(layers, graph.module.modules(), strict=True))
    for (old, value), new in zip(before, graph.module.parameters(), strict=True):
        assert old is new
        assert torch.equal(new, value)
    assert graph.sites is sites


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def shadowed(layer):
    layer.forward = lambda x: x


REFUSED = [
    (lambda m: m.up.register_forward_hook(lambda *a: None), "up: the layer has hooks"),
    (lambda m: m.down.register_forward_pre_hook(lambda *a: None), "down: .*Remove its hooks"),
    (lambda m: m.attention.register_forward_hook(lambda *a: None), "attention: the layer has"),
    (lambda m: m.attention.register_full_backward_hook(lambda *a: None), "is to be replaced"),
    (lambda m: m.attention.out_proj.register_forward_hook(lambda *a: None), "attention.out_proj"),
    (lambda m: shadowed(m.up), "forward of its own"),
    (lambda m: m.up.weight.register_hook(lambda g: g), "up.weight: the parameter has hooks"),
    (
        lambda m: m.up.weight.register_post_accumulate_grad_hook(lambda g: None),
        "up.weight: the parameter has hooks",
    ),
    (
        lambda m: setattr(m, "down", nn.Linear(9, 12).double()),
        r"down.weight: is 9 wide along 1, its group 10. Find the groups",
    ),
    (lambda m: setattr(m.up, "bias", None), "up.bias: there is no such parameter"),
]


@pytest.mark.spread(3)
@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_was_changed_after_the_analysis_is_refused(change, message):
    def on_both(graph, groups):
        change(graph.module)
        graph.graph_module.down = graph.module.down

    tampered(on_both, message)


def test_a_parametrized_layer_is_refused():
    graph, groups = traced(seeded(Residual), image())
    parametrize.register_parametrization(graph.module.a, "weight", Doubled())
    before = [id(p) for p in graph.module.parameters()]
    with pytest.raises(PreconditionError, match=r"a: the layer is parametrized.*merge"):
        shrink(graph, groups, random_state(groups, 0))
    assert [id(p) for p in graph.module.parameters()] == before


def test_groups_of_another_model_are_refused():
    def other(graph, groups):
        group = groups.by_name["up"]
        moved = tuple(dataclasses.replace(m, path=f"{m.path}.gone") for m in group.members)
        return dataclasses.replace(groups, groups=(dataclasses.replace(group, members=moved),))

    tampered(other, "up.gone: there is no such layer")


def test_a_wrong_state_is_refused():
    graph, groups = traced(seeded(Residual), image())
    with pytest.raises(ArgumentError, match="no channel group 'stam'"):
        shrink(graph, groups, {"stam": np.ones(8, dtype=bool)})


def test_a_model_that_does_not_run_afterwards_is_our_error():
    graph, groups = traced(seeded(Residual), image())
    group = groups.by_name["a"]
    lost = tuple(member for member in group.members if member.role == "out")
    wrong = dataclasses.replace(groups, groups=(dataclasses.replace(group, members=lost),))
    with pytest.raises(PostconditionError, match="without channels of a the model fails: Runtime"):
        shrink(graph, wrong, {"a": np.arange(6) < 3})


def test_attention_that_attends_to_zeros_keeps_its_heads():
    def zeros(graph, groups):
        graph.module.attention.add_zero_attn = True

    tampered(zeros, r"attention: .*add_zero_attn", UnsupportedLayer)
