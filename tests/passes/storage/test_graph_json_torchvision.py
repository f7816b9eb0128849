from __future__ import annotations

import json

import pytest
import torch
from torch import fx

from passes.storage.atomic import json_bytes, read_json, write_folder
from passes.storage.graph_json import graph_from_json, graph_state, graph_to_json
from passes.storage.tensors import load_tensors, save_tensors
from passes.torchvision_shim import ensure_torchvision_importable

ensure_torchvision_importable()
models = pytest.importorskip("torchvision.models")

CLASSIFICATION = models.list_models(models)
SEGMENTATION = models.list_models(models.segmentation)
# One of every family: the others run the same code, only wider or deeper, as slow tests.
RUN = {
    "resnet18": 64, "mobilenet_v2": 64, "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64,
    "efficientnet_b0": 64, "lraspp_mobilenet_v3_large": 64, "mnasnet0_5": 64, "regnet_x_400mf": 64,
}  # fmt: skip
RUN_SLOW = {"vit_b_16": 224, "swin_t": 64, "swin_v2_t": 64, "convnext_tiny": 64, "maxvit_t": 224}


def build(name: str, device: str) -> torch.nn.Module:
    arguments = {"weights": None}
    if name in SEGMENTATION:
        arguments["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    with torch.device(device):
        return models.get_model_builder(name)(**arguments)


def assert_same_graph(a: fx.GraphModule, b: fx.GraphModule) -> None:
    assert len(a.graph.nodes) == len(b.graph.nodes)
    for ours, theirs in zip(a.graph.nodes, b.graph.nodes, strict=True):
        assert (ours.op, ours.name, ours.target) == (theirs.op, theirs.name, theirs.target)
        assert repr((ours.args, ours.kwargs)) == repr((theirs.args, theirs.kwargs))
        assert ours.meta.get("is_wrapped") == theirs.meta.get("is_wrapped")
    left, right = a.state_dict(keep_vars=True), b.state_dict(keep_vars=True)
    assert list(left) == list(right)
    for name, tensor in left.items():
        other = right[name]
        assert (type(tensor), tensor.shape, tensor.dtype) == (type(other), other.shape, other.dtype)
        assert tensor.requires_grad == other.requires_grad
    flags = [(path, module.training, repr(module)) for path, module in a.named_modules()]
    assert flags == [(path, module.training, repr(module)) for path, module in b.named_modules()]


def marked(names):
    return [n if n in RUN else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", marked(CLASSIFICATION + SEGMENTATION))
def test_every_model_comes_back_node_by_node(name):
    model = build(name, "cpu" if name.startswith("regnet") else "meta")
    for training in (False, True):
        graph = fx.symbolic_trace(model.train(training))
        text = json_bytes(graph_to_json(graph))
        assert_same_graph(graph, graph_from_json(json.loads(text), graph_state(graph)))
        assert b'"custom"' not in text


def marked_slow(names):
    return [pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", [*RUN, *marked_slow(RUN_SLOW)])
def test_outputs_are_bit_identical_after_a_trip_over_the_disk(name, tmp_path):
    size = (RUN | RUN_SLOW)[name]
    graph = fx.symbolic_trace(build(name, "cpu").eval())
    state = graph_state(graph)
    files = {
        "graph.json": json_bytes(graph_to_json(graph)),
        "tensors.safetensors": lambda path: save_tensors(path, state),
    }
    write_folder(tmp_path / "saved", files)
    stored = read_json(tmp_path / "saved" / "graph.json")
    rebuilt = graph_from_json(stored, load_tensors(tmp_path / "saved" / "tensors.safetensors"))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = graph(x), rebuilt(x)
    if not isinstance(expected, dict):
        expected, found = {"out": expected}, {"out": found}
    assert list(expected) == list(found)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_list_of_siblings_names_real_models():
    assert set(CLASSIFICATION + SEGMENTATION) >= set(RUN) | set(RUN_SLOW)
