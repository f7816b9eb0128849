"""Torch-Pruning as an oracle: the same groups, as far as both mean the same by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passes.inputs import as_call
from passes.structure.groups import channel_groups
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

# The other library's groups of whole networks: `make test-slow` runs them.
pytestmark = pytest.mark.slow

pruning = pytest.importorskip("torch_pruning")
ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")


def theirs(model, x):
    """The layers whose outputs go together, of every group."""
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    dependencies = pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    names = {layer: name for name, layer in model.named_modules()}
    outputs = (pruning.prune_conv_out_channels, pruning.prune_linear_out_channels)
    return {
        frozenset(names[item.dep.target.module] for item in group if item.dep.handler in outputs)
        for group in dependencies.get_all_groups(ignored_layers=[last])
    }


def ours(model, x):
    graph = trace(model, as_call(model, x), train=False)
    owners = (group.producers for group in channel_groups(graph).free)
    return {frozenset(name.rpartition(".")[0] for name in group) for group in owners}


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vgg11_bn",
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_the_same_layers_go_together(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.get_model_builder(name)(weights=None, num_classes=10).eval()
    x = torch.zeros(1, 3, 64, 64)
    found, expected = ours(model, x), theirs(model, x)
    # Biases are parameters of their own here, members of their layer there.
    found = {frozenset(filter(None, group)) for group in found}
    assert found == expected
