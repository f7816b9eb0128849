"""Sensitivity of single layers to rounding: which is worst, and that nothing is left changed."""

from __future__ import annotations

import math

import torch
from torch import nn

from bench.integer.sensitivity import sensitivity_table, weight_sensitivity


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def test_more_bits_harm_less_and_the_model_is_left_alone() -> None:
    model, images = net(), torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    before = [p.clone() for p in model.parameters()]
    found = weight_sensitivity(model, images)
    assert list(found) == ["0", "2", "4"]
    for row in found.values():
        assert row[8] > row[4] > row[2]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_it_is_the_error_of_that_layer_alone() -> None:
    model, images = net(), torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model[2].weight.mul_(0).add_(0.5)  # lies on any grid: nothing changes
    found = weight_sensitivity(model, images, widths=(2,))
    assert found["2"][2] == math.inf or found["2"][2] > 60
    assert found["0"][2] < 30


def test_the_most_sensitive_stands_first() -> None:
    lines = sensitivity_table({"a": {8: 50.0, 2: 20.0}, "b": {8: 40.0, 2: 5.0}}).splitlines()
    assert lines[0] == "| layer | 8 bits, dB | 2 bits, dB |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["b", "a"]
