"""Predicted bytes of the exported file, against files that are written."""

from __future__ import annotations

import pytest
import structure_nets as nets
import torch
from slicing import random_state, randomize, shrunk
from torch import nn

from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from export.dense import write_dense
from passes.inputs import as_call
from passes.structure.costs import StructureCosts
from passes.structure.groups import channel_groups
from passes.structure.state import full_state
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

ensure_torchvision_importable()
torchvision = pytest.importorskip("torchvision")

HARDWARE = Hardware("small")


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def normed():
    """A norm that is folded into a layer with a bias, one after a linear layer, and one alone."""
    return nn.Sequential(
        nn.Conv2d(1, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.BatchNorm2d(40),
        nn.ConvTranspose2d(40, 24, 3, groups=4), nn.BatchNorm2d(24), nn.PReLU(24), nn.Flatten(),
        nn.Linear(24 * 784, 30), nn.BatchNorm1d(30), nn.Linear(30, 10),
    )  # fmt: skip


def torchvision_model(name):
    return lambda: torchvision.models.get_model_builder(name)(weights=None, num_classes=10)


FILES = {
    "lenet": (lenet, (1, 1, 28, 28)),
    "normed": (normed, (1, 1, 28, 28)),
    "squeezenet1_1": (torchvision_model("squeezenet1_1"), (1, 3, 64, 64)),
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), (1, 3, 64, 64)),
    "resnet18": (torchvision_model("resnet18"), (1, 3, 64, 64)),
}


QUICK = {("normed", True)}
CASES = [
    pytest.param(name, fresh, marks=() if (name, fresh) in QUICK else pytest.mark.slow)
    for name in FILES
    for fresh in (False, True)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fresh"), CASES)
def test_bytes_of_the_exported_file(name, fresh, tmp_path):
    build, shape = FILES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
        x = torch.randn(shape)
    if not fresh:
        # A fresh norm holds equal numbers, which the exporter stores once, or not at all.
        model = randomize(model.double()).float()
    graph = trace(model, as_call(model, x), train=False)
    groups = channel_groups(graph)
    base = write_dense(graph, HARDWARE, tmp_path / "base.onnx").bytes
    costs = StructureCosts(graph, groups, HARDWARE, ("size",), {"size": base})
    assert costs.values(full_state(groups)) == {"size": base}
    state = random_state(groups, 1)
    small = shrunk(graph, groups, state)
    real = write_dense(small, HARDWARE, tmp_path / "small.onnx").bytes
    predicted = costs.value("size", state)
    assert real < 0.8 * base
    assert real <= predicted <= 1.001 * real + 200


@pytest.mark.slow
@pytest.mark.parametrize("net", [nets.Multihead, nets.Functional], ids=lambda net: net.__name__)
def test_bytes_are_never_underestimated(net, tmp_path):
    """What is stored twice, or computed at export, is not counted as certain."""
    model = randomize(net().double()).float().eval()
    graph = trace(model, as_call(model, nets.image().float()), train=False)
    groups = channel_groups(graph)
    base = write_dense(graph, HARDWARE, tmp_path / "base.onnx").bytes
    costs = StructureCosts(graph, groups, HARDWARE, ("size",), {"size": base})
    state = random_state(groups, 2)
    real = write_dense(shrunk(graph, groups, state), HARDWARE, tmp_path / "small.onnx").bytes
    assert real <= costs.value("size", state) < base


def test_size_needs_a_base():
    model = lenet()
    graph = trace(model, as_call(model, torch.zeros(1, 1, 28, 28)), train=False)
    with pytest.raises(ArgumentError, match="without the bytes"):
        StructureCosts(graph, channel_groups(graph), HARDWARE, ("size",))
