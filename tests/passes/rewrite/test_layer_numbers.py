"""Layers tell the numbers that their parameters have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slicing import outputs, randomize, relative_error, traced
from structure_nets import Net, image
from torch import nn

from passes.rewrite.gates import insert_gates
from passes.rewrite.layer_numbers import match_channels, match_parameters, matching_inputs
from passes.rewrite.shrink import shrink

# A layer, the dimensions of its weight that are cut to so many, and the layer that it then is.
LAYERS = [
    (nn.Linear(8, 6), {0: 4, 1: 3}, nn.Linear(3, 4)),
    (nn.Conv1d(8, 6, 3), {0: 4, 1: 5}, nn.Conv1d(5, 4, 3)),
    (nn.Conv2d(8, 6, 3, groups=2), {0: 4, 1: 3}, nn.Conv2d(6, 4, 3, groups=2)),
    (nn.Conv2d(8, 8, 3, groups=8), {0: 5}, nn.Conv2d(5, 5, 3, groups=5)),
    (nn.Conv2d(8, 16, 3, groups=8), {0: 6}, nn.Conv2d(3, 6, 3, groups=3)),
    (nn.Conv3d(4, 2, 1), {0: 1, 1: 2}, nn.Conv3d(2, 1, 1)),
    (nn.ConvTranspose1d(8, 6, 2), {0: 3, 1: 2}, nn.ConvTranspose1d(3, 2, 2)),
    (nn.ConvTranspose2d(8, 6, 2, groups=2), {0: 4, 1: 1}, nn.ConvTranspose2d(4, 2, 2, groups=2)),
    (nn.ConvTranspose2d(6, 6, 2, groups=6), {0: 4}, nn.ConvTranspose2d(4, 4, 2, groups=4)),
    (nn.Embedding(11, 8), {1: 3}, nn.Embedding(11, 3)),
    (nn.PReLU(8), {0: 3}, nn.PReLU(3)),
    (nn.BatchNorm1d(8), {0: 3}, nn.BatchNorm1d(3)),
    (nn.BatchNorm3d(8), {0: 3}, nn.BatchNorm3d(3)),
    (nn.InstanceNorm2d(8, affine=True), {0: 3}, nn.InstanceNorm2d(3, affine=True)),
    (nn.GroupNorm(4, 8), {0: 6}, nn.GroupNorm(3, 6)),
    (nn.LayerNorm(8), {0: 8}, nn.LayerNorm(8)),
]


@pytest.mark.parametrize(("layer", "sizes", "expected"), LAYERS, ids=lambda x: repr(x)[:60])
def test_numbers_follow_the_weight(layer, sizes, expected):
    for dim, size in sizes.items():
        layer.weight.data = layer.weight.data.narrow(dim, 0, size)
    for _ in range(2):  # also when they agree already
        match_parameters(layer)
        plain = (int, str, tuple, type(None))
        mine, theirs = (
            {name: value for name, value in vars(part).items() if isinstance(value, plain)}
            for part in (layer, expected)
        )
        assert mine == theirs
        assert repr(layer) == repr(expected)


def test_a_norm_with_statistics_alone():
    layer = nn.BatchNorm2d(8, affine=False)
    layer.running_mean = layer.running_mean[:3]
    match_parameters(layer)
    assert layer.num_features == 3


def test_norms_without_parameters_learn_their_width_from_a_run():
    model = nn.Sequential(nn.GroupNorm(4, 8, affine=False), nn.InstanceNorm1d(8), nn.ReLU())
    with matching_inputs(model) as given:
        model(torch.randn(2, 6, 5))
    assert given == {model[0]: 6, model[1]: 6}
    assert (model[0].num_groups, model[0].num_channels, model[1].num_features) == (3, 6, 6)
    match_channels(model[0], 6)
    assert (model[0].num_groups, model[0].num_channels) == (3, 6)
    assert not any(part._forward_pre_hooks for part in model)


NORMS = [
    (lambda: nn.GroupNorm(4, 8, affine=False), ("num_groups", 2), ("num_channels", 4)),
    (lambda: nn.InstanceNorm2d(8), ("num_features", 4)),
    (lambda: nn.BatchNorm2d(8, affine=False), ("num_features", 4)),
    (lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False), ("num_features", 4)),
]


@pytest.mark.parametrize(("build", "expected"), [(b, e) for b, *e in NORMS])
def test_norms_without_parameters_tell_their_width(build, expected):
    class Normed(Net):
        def body(self, x):
            return self.norm(input=x)

    torch.manual_seed(0)
    graph, groups = traced(randomize(Normed(norm=build())), image())
    units = groups.by_name["stem"].units
    state = {"stem": np.arange(units) < units // 2}
    gated = outputs(insert_gates(graph, groups, state), [image()])
    shrink(graph, groups, state)
    assert {name: getattr(graph.module.norm, name) for name, _ in expected} == dict(expected)
    assert relative_error(outputs(graph.module, [image()]), gated) < 1e-12
    assert not graph.module.norm._forward_pre_hooks


def test_a_single_sample_through_an_instance_norm():
    class Unbatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv1d(3, 8, 3), nn.InstanceNorm1d(8)
            self.head = nn.Conv1d(8, 4, 1)

        def forward(self, x):
            return self.head(self.norm(self.stem(x)))

    graph, groups = traced(Unbatched(), torch.randn(3, 16, dtype=torch.float64))
    shrink(graph, groups, {"stem": np.arange(8) < 3})
    assert graph.module.norm.num_features == 3
