"""Calls of quantizers are replaced one by one."""

from __future__ import annotations

import torch
from torch import nn

from passes.quantize.activations import ActivationQuantizer
from passes.rewrite.quantizer_calls import quantizers, replace_quantizers


class Doubling(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return x * 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.rounding = ActivationQuantizer()
        self.rounding.set_range(-1.0, 1.0)
        self.alias = self.rounding
        self.unset = ActivationQuantizer()

    def forward(self, x):
        return self.alias(self.unset(self.layer(self.rounding(x))))


class Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, ActivationQuantizer) or super().is_leaf_module(m, name)


def traced(model):
    return torch.fx.GraphModule(model, Tracer().trace(model))


def test_each_call_is_replaced_and_those_without_a_range_go():
    module = traced(Net())
    replaced, paths = replace_quantizers(module, Doubling)
    assert paths == ("rounding", "rounding")
    assert [m.index for m in replaced.modules() if isinstance(m, Doubling)] == [0, 1]
    assert quantizers(replaced) == {}
    x = torch.randn(2, 3)
    assert torch.equal(replaced(x), module.layer(2 * x) * 2)


def test_the_original_keeps_its_quantizers():
    module = traced(Net())
    x = torch.randn(2, 3)
    before = module(x)
    replace_quantizers(module, Doubling)
    assert torch.equal(module(x), before)
    assert set(quantizers(module)) == {"rounding", "unset"}


def test_other_models_are_returned_as_they_are():
    plain, untraced = traced(nn.Sequential(nn.Linear(3, 3))), Net()
    assert replace_quantizers(plain, Doubling) == (plain, ())
    assert replace_quantizers(untraced, Doubling) == (untraced, ())
