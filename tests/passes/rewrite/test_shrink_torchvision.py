"""Every family of torchvision's classification models: gated and shrunk agree."""

from __future__ import annotations

import pytest
import torch
from slicing import numbers, random_state, randomize, shrunk, traced, worst_error

from energy_model.hardware import load_hardware
from export.dense import write_dense
from passes.inputs import as_call
from passes.rewrite.gates import insert_gates
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

# Whole networks: `make test-slow` runs them.
pytestmark = pytest.mark.slow

ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")

# Of every family the smallest: the others are the same code, wider or deeper.
FAMILIES = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet_b": "efficientnet_b0",
    "efficientnet_v2": "efficientnet_v2_s",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "maxvit": "maxvit_t",
    "mnasnet": "mnasnet0_5",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3_small",
    "regnet_x": "regnet_x_400mf",
    "regnet_y": "regnet_y_400mf",
    "resnet1": "resnet18",  # resnet18 has basic blocks, resnet50 bottlenecks
    "resnet": "resnet50",
    "resnext": "resnext50_32x4d",
    "shufflenet": "shufflenet_v2_x0_5",
    "squeezenet": "squeezenet1_1",
    "swin_v2": "swin_v2_t",
    "swin": "swin_t",
    "vgg": "vgg11_bn",
    "vit": "vit_b_32",
    "wide_resnet": "wide_resnet50_2",
}
FAST = {"resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"}
SIDES = {"vit_b_32": 224, "maxvit_t": 224, "inception_v3": 96}


def marked(names):
    return [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in names]


def build(name):
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.get_model_builder(name)(weights=None, num_classes=10, **extra).eval()


def image(name, batch=1):
    side = SIDES.get(name, 64)
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64)


def test_every_model_belongs_to_a_family():
    listed = models.list_models(models)
    strangers = [name for name in listed if not any(map(name.startswith, FAMILIES))]
    assert strangers == []
    assert set(FAMILIES.values()) <= set(listed)


@pytest.mark.parametrize("name", marked(FAMILIES.values()))
def test_gated_and_shrunk_agree(name):
    x = image(name)
    graph, groups = traced(randomize(build(name)), x)
    assert groups.free, str(groups)
    assert worst_error(graph, groups, (x,), seeds=(0,)) < 1e-9


@pytest.mark.parametrize("name", marked(["resnet18", "shufflenet_v2_x0_5", "convnext_tiny"]))
def test_they_agree_in_single_precision(name):

    model, x = randomize(build(name)), image(name).float()
    graph = trace(model, as_call(model, x))
    groups = channel_groups(graph)
    state = random_state(groups, 0)
    with torch.no_grad():
        expected = insert_gates(graph, groups, state)(x)
        found = shrunk(graph, groups, state).module(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize("name", marked(["mobilenet_v2", "googlenet", "vit_b_32"]))
def test_a_shrunk_model_trains_on_with_its_optimizer(name):
    model = build(name).train()
    graph = trace(model, as_call(model, image(name).float()))
    groups = channel_groups(graph)
    optimizer = torch.optim.AdamW(model.parameters())
    targets = torch.tensor([0, 1])
    for seed in (0, 1):
        output = graph.runnable(image(name, 2).float())
        logits = output if isinstance(output, torch.Tensor) else output.logits
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if seed == 0:
            before = numbers(model)
            shrink(graph, groups, random_state(groups, 0), optimizer)
            means = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    assert numbers(model) < before
    after = dict(model.named_buffers())
    assert not any(torch.equal(mean, after[n]) for n, mean in means.items() if "aux" not in n)
    # The heads that are there in training alone are not in the graph.
    assert graph.rewritten is (name == "googlenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5"])
def test_the_file_is_smaller_by_what_was_removed(name, tmp_path):
    model = randomize(build(name))
    graph = trace(model, as_call(model, image(name).float()))
    eyeriss = load_hardware("eyeriss")
    files = [write_dense(graph, eyeriss, tmp_path / "dense.onnx")]
    weights = [sum(site.size for site in graph.sites)]
    groups = channel_groups(graph)
    shrink(graph, groups, random_state(groups, 0))
    files.append(write_dense(graph, eyeriss, tmp_path / "small.onnx"))
    weights.append(sum(site.size for site in graph.sites))
    assert files[0].bytes - files[1].bytes >= 4 * (weights[0] - weights[1]) > 0
    assert files[1].parity.max_abs_error < 1e-3 * files[1].parity.scale
