"""Weights that are computed when the model runs: costed, and never compressed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from toy_models import Apply, traced, uses

from energy_model.shapes import LayerShape

conv, linear = LayerShape.conv, LayerShape.linear


def image():
    return torch.randn(3, 2, 6, 6)


def tokens():
    return torch.randn(3, 5, 8)


def flat():
    return torch.randn(3, 8)


COMPUTED = {
    "weight norm": (parametrizations.weight_norm(nn.Linear(8, 4)), flat(), linear(8, 4)),
    "weight norm of a convolution": (
        parametrizations.weight_norm(nn.Conv2d(2, 4, 3)),
        image(),
        conv(2, 4, 3, (6, 6)),
    ),
    "spectral norm": (parametrizations.spectral_norm(nn.Linear(8, 4)), flat(), linear(8, 4)),
    "orthogonal": (parametrizations.orthogonal(nn.Linear(8, 4)), tokens(), linear(8, 4, 5)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_costed_and_not_compressible(name):
    layer, inputs, shape = COMPUTED[name]
    graph = traced(nn.Sequential(layer, nn.Identity()), inputs)
    assert uses(graph) == {"0": [(shape, 1)]}
    [site] = graph.sites
    assert site.computed
    assert "computed in forward" in site.note
    assert graph.compressible == ()


def test_a_weight_that_forward_computes_itself_is_costed():
    model = Apply(
        lambda m, x: F.linear(m.fc(x), m.w * 0.5), fc=nn.Linear(8, 8), w=torch.randn(4, 8)
    )
    own, computed = traced(model, flat()).sites
    assert [use.shape for use in own.uses] == [linear(8, 8)]
    assert [use.shape for use in computed.uses] == [linear(8, 4)]
    assert (own.computed, computed.computed) == (False, True)


def test_a_weight_from_one_parameter_has_its_name_wherever_it_is_used():
    def forward(m, x):
        a, b = m.a * 0.5, torch.where(m.keep, m.b, -m.b)
        return F.linear(F.linear(F.linear(x, a), b), a)

    model = Apply(forward, a=torch.randn(8, 8), b=torch.randn(8, 8))
    model.register_buffer("keep", torch.rand(8, 8) > 0.5)
    first, second = traced(model, flat()).sites
    assert (first.name, second.name) == ("a", "b")
    assert [use.count for use in first.uses] == [2]
    assert [use.count for use in second.uses] == [1]
    assert "from 64 parameters" in first.note


def test_a_weight_from_two_parameters_has_no_name_of_its_own():
    model = Apply(lambda m, x: F.linear(x, m.a * m.b), a=torch.randn(8, 8), b=torch.randn(8, 1))
    [site] = traced(model, flat()).sites
    assert site.name == "(computed weight)"
