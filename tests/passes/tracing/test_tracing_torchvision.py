"""torchvision's classification and segmentation models: same bits, every layer, both modes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import seeded

from passes.inputs import as_call
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import equal_outputs, trace

ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")

SEGMENTATION = models.list_models(models.segmentation)
EVERY = [*models.list_models(models), *SEGMENTATION]
QUICK = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5",
    "squeezenet1_1", "googlenet", "densenet121", "mnasnet0_5", "regnet_y_400mf", "swin_t",
    "convnext_tiny", "lraspp_mobilenet_v3_large",
)  # fmt: skip
SIDES = {"inception_v3": 96}
FIXED = ("vit_", "maxvit")  # only at the size they were made for
# Another graph in training: an auxiliary classifier.
EVALUATION_ONLY = {"googlenet", "inception_v3"}


def build(name):
    arguments = {"weights": None}
    if name in SEGMENTATION:
        arguments["weights_backbone"] = None
    if name in EVALUATION_ONLY:
        arguments["init_weights"] = False
    # The global generator initialises the weights; dropout is compared under equal states below.
    return models.get_model_builder(name)(**arguments)


def side(name):
    return 224 if name.startswith(FIXED) else SIDES.get(name, 64)


def image(name, batch):
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, side(name), side(name), generator=generator)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY],
)
def test_model(name):
    model = build(name)
    graph = trace(model, as_call(model, image(name, 2)))
    assert graph.leaves == ()
    assert_every_layer_has_a_row(model, graph)
    x = image(name, 3)
    model.eval()
    graph.graph_module.eval()
    with torch.no_grad():
        assert equal_outputs(graph.graph_module(x), model(x))
    if name in EVALUATION_ONLY:
        assert [d.what for d in graph.decisions] == ["traced in evaluation mode only"]
        return
    assert graph.decisions == []
    model.train()
    graph.graph_module.train()
    with torch.no_grad():
        expected = seeded(1, model, x)
        assert equal_outputs(seeded(1, graph.graph_module, x), expected)
        if is_random(model):
            assert not equal_outputs(seeded(2, graph.graph_module, x), expected)


def is_random(model):
    """Whether dropout or stochastic depth is on in training."""
    return any(
        getattr(m, "p", 0) > 0
        for m in model.modules()
        if type(m).__name__ in ("Dropout", "StochasticDepth")
    )


def assert_every_layer_has_a_row(model, graph):
    auxiliary = ("aux1.", "aux2.", "AuxLogits.")
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not path.startswith(auxiliary):
            owners = [s for s in graph.sites if (path, "weight") in s.owners]
            assert [site.size for site in owners] == [module.weight.numel()], path
            assert not owners[0].computed
            assert not owners[0].opaque
