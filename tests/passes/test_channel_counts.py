"""Nonzeros of weights by input channel, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from energy_model.shapes import LayerShape
from passes.graph import channel_counts, offset_counts

LAYERS = [
    (nn.Conv1d(4, 6, 3), (9,)),
    (nn.Conv2d(4, 6, (3, 2)), (7, 7)),
    (nn.Conv2d(4, 6, 3, groups=2), (7, 7)),
    (nn.Conv2d(4, 8, 3, groups=4), (7, 7)),
    (nn.Conv3d(2, 3, (1, 2, 3)), (5, 5, 5)),
    (nn.ConvTranspose2d(4, 6, (3, 2)), (5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), (5, 5)),
    (nn.Conv2d(4, 6, 3, groups=2).to(memory_format=torch.channels_last), (7, 7)),
]


def shape_of(layer, size):
    make = LayerShape.conv_transpose if layer.transposed else LayerShape.conv
    channels = layer.in_channels, layer.out_channels
    return make(*channels, layer.kernel_size, size, groups=layer.groups)


@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=lambda x: str(x)[:60])
def test_against_a_loop(layer, size):
    weight = layer.weight.detach().clone()
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
    shape = shape_of(layer, size)
    expected = np.zeros((layer.in_channels, *layer.kernel_size), dtype=np.int64)
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    for index in np.ndindex(*weight.shape):
        if weight[index] == 0:
            continue
        first, second, *offset = index
        channel = first if layer.transposed else first // outputs * inputs + second
        expected[(channel, *offset)] += 1
    counts = channel_counts(weight, shape)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(counts.sum(axis=0), offset_counts(weight, shape))


@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=lambda x: str(x)[:60])
def test_on_the_meta_device_every_weight_counts(layer, size):
    shape = shape_of(layer, size)
    counts = channel_counts(torch.empty(layer.weight.shape, device="meta"), shape)
    np.testing.assert_array_equal(counts, channel_counts(torch.ones(layer.weight.shape), shape))
