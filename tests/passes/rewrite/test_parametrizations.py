"""Chains of our parametrizations: their order, and what is left when some are baked."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from passes.rewrite.masks import Mask
from passes.rewrite.parametrizations import Removable, attach, bake, chains_of


class Double(Removable):
    def forward(self, weight):
        return 2 * weight


class Shift(Removable):
    def forward(self, weight):
        return weight + 1


def layer():
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    return linear


def test_the_first_comes_first():
    module = layer()
    attach(module, "m", "weight", Shift())
    attach(module, "m", "weight", Double(), first=True)
    assert module.weight.tolist() == [[3.0, 5.0], [7.0, 9.0]]
    module = layer()
    attach(module, "m", "weight", Shift())
    attach(module, "m", "weight", Double())
    assert module.weight.tolist() == [[4.0, 6.0], [8.0, 10.0]]


def test_baking_some_leaves_the_others():
    module = layer()
    original = module.weight
    attach(module, "m", "weight", Double())
    attach(module, "m", "weight", Shift())
    before = module.weight.detach().clone()
    bake(module, (Double,))
    assert [type(p) for p in chains_of(module)["weight"]] == [Shift]
    assert torch.equal(module.weight, before)
    bake(module, (Double,))
    assert torch.equal(module.weight, before)
    bake(module, (Shift,))
    assert type(module) is nn.Linear
    assert module.weight is original
    assert list(module._parameters) == ["weight", "bias"]
    assert torch.equal(module.weight, before)


def test_what_comes_later_is_not_baked_before_its_time():
    module = layer()
    attach(module, "m", "weight", Double())
    attach(module, "m", "weight", Shift())
    before = module.weight.detach().clone()
    bake(module, (Shift,))
    assert [type(p) for p in chains_of(module)["weight"]] == [Double, Shift]
    assert torch.equal(module.weight, before)


def test_a_finished_tensor_waits_for_the_others_of_its_layer():
    module = layer()
    attach(module, "m", "bias", Mask(torch.tensor([True, False])))
    attach(module, "m", "weight", Mask(torch.eye(2, dtype=torch.bool)))
    attach(module, "m", "weight", Shift())
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    bake(module, (Mask,))
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.bias, bias)
    assert [type(p) for p in chains_of(module)["weight"]] == [Shift]
    bake(module, (Mask, Shift))
    assert type(module) is nn.Linear
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.bias, bias)


def test_modules_with_other_parametrizations_are_left_alone():
    module = layer()
    attach(module, "m", "weight", Shift())
    parametrize.register_parametrization(module, "bias", nn.Identity())
    bake(module, (Shift,))
    assert [type(p) for p in chains_of(module)["weight"]] == [Shift]
