"""Moments against those of the unfolded data; every kind of convolution as a product."""

from __future__ import annotations

import pytest
import torch
from reconstruct_nets import filled, values
from torch import nn

from passes.reconstruct import moments
from passes.reconstruct.moments import as_columns, gather_moments, groups_of, unfolded

LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "tokens": (nn.Linear(5, 4), (2, 3, 7, 5)),
    "one vector": (nn.Linear(5, 4), (5,)),
    "conv": (nn.Conv2d(4, 6, 3, 2, 1), (2, 4, 7, 6)),
    "grouped": (nn.Conv2d(4, 6, (3, 1), (1, 2), (2, 0), (2, 1), groups=2), (2, 4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding="same", groups=4), (2, 4, 5, 5)),
    "circular": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 5, 6)),
    "1-d": (nn.Conv1d(4, 6, 3, 2, 1, dilation=2, groups=2), (2, 4, 11)),
    "one image": (nn.Conv2d(4, 6, 3), (4, 7, 6)),
    "one signal": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_weight_times_its_unfolded_input(name: str) -> None:
    layer, shape = LAYERS[name]
    layer, x = filled(layer), values(*shape)
    groups = groups_of(layer)
    weight = layer.weight.detach().reshape(groups, layer.weight.shape[0] // groups, -1)
    bias = layer.bias.detach().reshape(groups, -1, 1)
    expected = as_columns(layer, layer(x).detach())
    torch.testing.assert_close(weight @ unfolded(layer, x) + bias, expected)


@pytest.mark.parametrize("name", ["linear", "tokens", "grouped", "1-d"])
@pytest.mark.parametrize("chunk", [moments.CHUNK, 100])
def test_moments_are_those_of_all_rows(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "CHUNK", chunk)
    layer, shape = LAYERS[name]
    layer = filled(layer)
    xs = [values(*shape, seed=n) * 3 + 100 for n in range(3)]
    ys = [layer(x).detach() ** 2 for x in xs]
    found = gather_moments(layer, zip(xs, ys, strict=True))
    x = torch.cat([unfolded(layer, part) for part in xs], 2)
    y = torch.cat([as_columns(layer, part) for part in ys], 2)
    assert found.count == x.shape[2]
    for group in range(len(x)):
        both = torch.cat([x[group], y[group]])
        joint = torch.cov(both, correction=0)
        size = len(x[group])
        torch.testing.assert_close(found.xx[group], joint[:size, :size], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.yx[group], joint[size:, :size], rtol=1e-8, atol=1e-6)
        variances = joint.diagonal()[size:]
        torch.testing.assert_close(found.yy[group], variances, rtol=1e-8, atol=1e-6)
        plain = found.about_zero()
        torch.testing.assert_close(plain.xx[group], x[group] @ x[group].T / found.count)
        torch.testing.assert_close(plain.yx[group], y[group] @ x[group].T / found.count)
        torch.testing.assert_close(plain.yy[group], y[group].square().mean(1))
        assert not bool(plain.mean_x.any() or plain.mean_y.any())


def test_half_precision_is_summed_in_single() -> None:
    layer = nn.Linear(3, 2).half()
    x = torch.full((64, 3), 200.0, dtype=torch.float16)
    x[0] = 0
    found = gather_moments(layer, [(x, x[:, :2])])
    share = 1 / 64
    torch.testing.assert_close(
        found.xx, torch.full((1, 3, 3), 200.0**2 * share * (1 - share), dtype=torch.float64)
    )
