"""Peaks of live activations, against sums by hand; 4 bytes per element, one sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from energy_model.errors import UnsupportedLayer
from passes.analysis.memory import peak_activation_bytes
from passes.inputs import as_call
from passes.tracing.trace import trace


class Residual(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.a = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.b = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.a(x))


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(8, 2)

    def forward(self, x):
        return self.a(x), self.b(x)


class Weighted(nn.Module):
    """Parameters and buffers in the graph do not count."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(1000, 8))
        self.register_buffer("shift", torch.randn(5000))

    def forward(self, x):
        return nn.functional.linear(x, self.w) + self.shift[:1000]


class Control(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) if x.abs().sum() > 0 else x


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(16, 4)

    def forward(self, a, b):
        return self.left(a) + self.right(b)


def peak(model, inputs):
    return peak_activation_bytes(trace(model, as_call(model, inputs)))


def sequential(*, inplace):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


@pytest.mark.parametrize("batch", [1, 5])
def test_sequential(batch):
    x = torch.randn(batch, 3, 8, 8)
    # In place: input 192 and feature map 512 together. Otherwise two feature maps.
    assert peak(sequential(inplace=True), x) == 4 * (192 + 512)
    assert peak(sequential(inplace=False), x) == 4 * (512 + 512)


def test_residual():
    # The input waits for the addition: x, a(x) and b(a(x)) are alive at once.
    assert peak(Residual(), torch.randn(3, 4, 6, 6)) == 4 * 36 * (4 + 8 + 4)


def test_what_is_returned_stays_alive():
    assert peak(Doubled(), torch.randn(3, 8)) == 4 * (8 + 32 + 2)


def test_parameters_and_buffers_are_no_activations():
    assert peak(Weighted(), torch.randn(3, 8)) == 4 * (1000 + 1000)


def test_views_share_their_storage():
    model = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (8, 8)), nn.Flatten())
    assert peak(model, torch.randn(3, 8)) == 4 * (8 + 64)


def test_all_inputs_count():
    inputs = {"b": torch.randn(3, 16), "a": torch.randn(3, 8)}
    # left(a) is made while a and b are alive; then a is gone.
    assert peak(TwoInputs(), inputs) == 4 * (8 + 16 + 4)
    assert peak(TwoInputs(), (inputs["a"], inputs["b"])) == 4 * (8 + 16 + 4)


def test_halves_take_half():
    x = torch.randn(3, 3, 8, 8)
    half = peak(sequential(inplace=True).bfloat16(), x.bfloat16())
    assert 2 * half == peak(sequential(inplace=True), x)


def test_nothing_is_changed():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()).train()
    graph = trace(model, as_call(model, torch.randn(4, 8)))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    peak_activation_bytes(graph)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_opaque_model_is_refused():
    with pytest.raises(UnsupportedLayer, match="needs a traced graph") as caught:
        peak(Control(), torch.randn(3, 8))
    assert "ram" in caught.value.remedy
    assert "control flow" in caught.value.where
