"""Files of one model at many widths: each is the network, however it was made."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bench.network_files as subject
from bench.network_files import NetworkFiles
from export.parity import check_parity
from passes.inputs import as_call
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.structure.state import random_state
from passes.tracing.trace import trace

pytestmark = pytest.mark.slow


class Pooled(nn.Module):
    """Its reshape holds a width, its head is a product with a transposed weight."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = self.two(torch.relu(self.norm(self.one(x))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


@pytest.fixture(scope="module")
def known():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Pooled().eval()
    graph = trace(model, as_call(model, torch.zeros(1, 2, 8, 8)))
    groups = channel_groups(graph)
    return graph, groups, NetworkFiles(graph, groups)


def weights(path):
    return {
        item.name: tuple(item.dims)
        for item in onnx.load(path).graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_files_hold_the_cut_network_though_nothing_was_exported_again(known, tmp_path, seed):
    graph, groups, files = known
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    state = random_state(groups, seed)
    if seed:
        state = {name: np.arange(len(keep)) < 1 for name, keep in state.items()}
    file = files.write(state, tmp_path / "model.onnx")
    assert not file.exported
    one, two = (int(state[name].sum()) for name in ("one", "two"))
    shapes = weights(file.path)
    assert shapes["one.weight"] == (one, 2, 3, 3)
    assert shapes["two.weight"] == (two, one, 3, 3)
    assert {shapes[name] for name, site in file.names.items() if site == "head"} <= {
        (5, 4 * two),
        (4 * two, 5),
    }
    assert set(file.names.values()) == {"one", "two", "head"}
    after = graph.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_file_that_is_not_the_network_is_found_and_exported_anew(known, tmp_path, monkeypatch):
    graph, groups, _ = known
    monkeypatch.setattr(subject, "_sizes", lambda *arguments: None)
    files = NetworkFiles(graph, groups)
    state = random_state(groups, 0)
    file = files.write(state, tmp_path / "model.onnx")
    assert file.exported
    cut, frozen = files._shrunk(state)
    assert check_parity(file.path, cut.runnable, cut.call).max_abs_error < 1e-4
    assert weights(file.path)["one.weight"] == (int(state["one"].sum()), 2, 3, 3)
    assert frozen.weights["one"].shape[0] == int(state["one"].sum())


def test_a_wrong_number_in_a_shape_is_not_written(known, tmp_path):
    _, groups, good = known
    state = random_state(groups, 0)
    files = NetworkFiles.__new__(NetworkFiles)
    for name in ("_groups", "_graph", "_model"):
        setattr(files, name, getattr(good, name))
    files._sources = {n: s for n, s in good._sources.items() if not n.startswith("head")}
    assert files.write(state, tmp_path / "model.onnx").exported
    assert files._sources is None


@pytest.mark.slow
def test_a_model_without_free_channels_has_one_file(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    graph = trace(model, as_call(model, torch.zeros(1, 4)))
    groups = channel_groups(graph)
    assert groups.free == ()
    file = NetworkFiles(graph, groups).write({}, tmp_path / "model.onnx")
    assert set(file.names.values()) == {"0"}
    assert shrink(graph, groups, {}) == []
