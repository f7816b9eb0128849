"""torchvision's models: golden counts."""

from __future__ import annotations

import pytest
import torch

from passes.inputs import as_call
from passes.structure.groups import channel_groups
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")

# Free groups and units with 10 classes. The groups of the last three agree with Torch-Pruning's.
GOLDEN = {
    "resnet18": (12, 2880),
    "resnet34": (20, 4736),
    "resnet50": (37, 11456),
    "resnet101": (71, 20160),
    "squeezenet1_1": (25, 2944),
    "alexnet": (7, 9344),
    "vgg16_bn": (15, 12416),
    "mobilenet_v2": (25, 9128),
    "densenet121": (120, 10240),
    "mobilenet_v3_large": (30, 8696),
    "efficientnet_b0": (40, 11404),
}
SLOW = {"densenet121", "vgg16_bn", "resnet101", "resnet50", "efficientnet_b0"}
SIDES = {"vit_b_16": 224}


def marked(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


def build(name, classes=10):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.get_model_builder(name)(weights=None, num_classes=classes).eval()


def image(name, batch, dtype=torch.float32):
    side = SIDES.get(name, 64)
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, side, side, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", marked(GOLDEN))
def test_golden_counts(name):
    model = build(name)
    graph = trace(model, as_call(model, image(name, 1)), train=False)
    groups = channel_groups(graph)
    assert (len(groups.free), sum(group.units for group in groups.free)) == GOLDEN[name]
    frozen = [group for group in groups if group.frozen]
    assert [group.why for group in frozen] == ["is an output of the model"]
    assert [decision.layer for decision in groups.decisions] == [frozen[0].name]


def test_streams_and_inner_channels_of_resnet18():
    model = build("resnet18")
    groups = channel_groups(trace(model, as_call(model, image("resnet18", 1)), train=False))
    streams = [group for group in groups.free if len(group.producers) > 1]
    assert [(s.name, s.units) for s in streams] == [
        ("conv1", 64), ("layer2.0.conv2", 128), ("layer3.0.conv2", 256), ("layer4.0.conv2", 512),
    ]  # fmt: skip
    assert streams[1].producers == (
        "layer2.0.conv2.weight", "layer2.0.downsample.0.weight", "layer2.1.conv2.weight",
    )  # fmt: skip
    inner = sum(group.units for group in groups.free) - sum(s.units for s in streams)
    assert inner == 1920


@pytest.mark.slow
def test_the_hidden_width_of_a_vision_transformer_is_free():
    model = build("vit_b_16")
    graph = trace(model, as_call(model, image("vit_b_16", 1)), train=False)
    groups = channel_groups(graph)
    free = {group.name: group.units for group in groups.free}
    for layer in range(12):
        path = f"encoder.layers.encoder_layer_{layer}"
        assert free.pop(f"{path}.mlp.0") == 3072
        assert free.pop(f"{path}.self_attention") == 12
    assert not free
    stream = groups.by_name["conv_proj"]
    assert "LayerNorm" in stream.why
