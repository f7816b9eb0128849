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
