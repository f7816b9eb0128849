"""The form `sparse` of a whole model: smaller, equal to dense bit for bit, counted the same."""

from __future__ import annotations

import errno

import numpy as np
import onnx
import pytest
import torch
from export_nets import CASES, thinned_graph
from torch import nn

from energy_model.errors import ExportError, ParityError, StorageError
from energy_model.hardware import load_hardware
from export import sparse
from export.dense import write_dense
from export.onnx_file import at_batch
from export.parity import open_session
from export.recount import sha256
from export.sparse import FORM, INITIALIZERS_FORM, require_sparse, write_sparse
from export.sparse_weights import plan_sparse
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.storage import atomic
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
SLOW = pytest.mark.slow


class Wide(nn.Sequential):
    """Large enough for sparse weights to pay: convolutions, one with a norm, and a head."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2),
            nn.Flatten(),
            nn.Linear(32 * 9, 10),
        )
        nn.init.uniform_(self[1].running_var, 0.5, 2)
        nn.init.normal_(self[1].weight)


class TiedTokens(nn.Module):
    """Two layers with one weight, on tokens: the exporter lays it out transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


NETS = {"wide": (Wide, (2, 3, 8, 8)), "tied tokens": (TiedTokens, (2, 5, 48))}
NAMES = ["wide", pytest.param("tied tokens", marks=SLOW)]
BOTH = [False, pytest.param(True, marks=SLOW)]


def graph_of(name, zeros=0.85) -> ModelGraph:
    make, shape = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = make().eval(), torch.randn(*shape)
        graph = trace(model, as_call(model, inputs))
        with torch.no_grad():
            for site in graph.compressible:
                weight = graph.weight(site)
                weight.masked_fill_(torch.rand(weight.shape) < zeros, 0.0)
    return trace(model, as_call(model, inputs))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The graph of a net, its dense file and both sparse ones; exported once."""
    folder, done = tmp_path_factory.mktemp("sparse"), {}

    def get(name):
        if name not in done:
            graph = graph_of(name)
            done[name] = (
                graph,
                write_dense(graph, EYERISS, folder / f"{name}.onnx"),
                write_sparse(graph, EYERISS, folder / f"{name}-sparse.onnx"),
                write_sparse(graph, EYERISS, folder / f"{name}-init.onnx", initializers=True),
            )
        return done[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_smaller_by_what_was_planned(exported, name):
    _, dense, written, initializers = exported(name)
    assert (written.form, initializers.form) == (FORM, INITIALIZERS_FORM)
    for file, flag in ((written, False), (initializers, True)):
        plan = plan_sparse(onnx.load(dense.path), initializers=flag)
        assert plan.bytes_before == dense.bytes
        assert plan.bytes == file.bytes == file.path.stat().st_size == file.recount.size
        assert file.recount.sha256 == sha256(file.path)
        assert file.bytes_zstd < file.bytes
        assert "no faster than dense" in file.notes[-1]
    assert "OpenVINO" in initializers.notes[-1]
    assert written.bytes < initializers.bytes < dense.bytes
    assert written.bytes < 0.4 * dense.bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 7])
def test_outputs_are_those_of_the_dense_file_bit_for_bit(exported, name, batch):
    graph, *files = exported(name)
    inputs = at_batch(graph.call, batch).tensors()[0].numpy()
    outputs = []
    for file in files:
        session = open_session(file.path)
        outputs.append(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    for other in outputs[1:]:
        assert other.tobytes() == outputs[0].tobytes()
    assert np.abs(outputs[0]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_recount_is_that_of_the_model(exported, name):
    graph, dense, *files = exported(name)
    for file in files:
        assert file.recount.costs.total == dense.recount.costs.total
        assert file.recount.costs.total == cost_table(graph, EYERISS).total
        for site in graph.compressible:
            stored, expected = (x.recount.stored[site.name] for x in (file, dense))
            np.testing.assert_array_equal(stored.values, expected.values)


def test_both_files_pass_the_check_that_is_promised(exported):
    _, _, written, initializers = exported("wide")
    onnx.checker.check_model(str(written.path), full_check=True)
    onnx.checker.check_model(str(initializers.path))
    assert not onnx.load(written.path).graph.sparse_initializer
    assert onnx.load(initializers.path).graph.sparse_initializer


@pytest.mark.slow
@pytest.mark.parametrize("initializers", BOTH)
def test_a_model_that_gets_no_smaller_is_refused_and_nothing_is_written(tmp_path, initializers):
    graph = graph_of("tied tokens", zeros=0.0)
    with pytest.raises(ExportError, match="no layer has enough zeros") as caught:
        write_sparse(graph, EYERISS, tmp_path / "x.onnx", initializers=initializers)
    assert "form='auto'" in str(caught.value)
    assert "x.onnx" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_small_weights_are_not_worth_it():
    graph = thinned_graph(*CASES["tokens"])
    model = onnx.helper.make_model(onnx.GraphProto(name="g"))
    for site in graph.compressible:
        tensor = onnx.numpy_helper.from_array(graph.weight(site).numpy(), site.name)
        model.graph.initializer.append(tensor)
    with pytest.raises(ExportError, match="where: no layer"):
        require_sparse(model, "where")


@pytest.mark.slow
@pytest.mark.parametrize("initializers", BOTH)
def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch, initializers):
    rewrite = sparse.require_sparse

    def broken(model, where, **options):
        rewrite(model, where, **options)
        tensors = [t for t in model.graph.initializer if t.name.endswith(".values")]
        tensors += [item.values for item in model.graph.sparse_initializer]
        tensors[0].raw_data = np.full(len(tensors[0].raw_data) // 4, 9, np.float32).tobytes()

    monkeypatch.setattr(sparse, "require_sparse", broken)
    with pytest.raises(ParityError):
        write_sparse(
            graph_of("tied tokens"), EYERISS, tmp_path / "x.onnx", initializers=initializers
        )
    assert not list(tmp_path.iterdir())


@SLOW
def test_what_the_checker_refuses_is_not_kept(tmp_path, monkeypatch):
    rewrite = sparse.require_sparse

    def broken(model, where, **options):
        rewrite(model, where, **options)
        model.graph.sparse_initializer[0].indices.raw_data = b""

    monkeypatch.setattr(sparse, "require_sparse", broken)
    with pytest.raises(ExportError, match=r"onnx.checker refuses"):
        write_sparse(graph_of("tied tokens"), EYERISS, tmp_path / "x.onnx", initializers=True)
    assert not list(tmp_path.iterdir())


@SLOW
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.onnx"
    path.write_bytes(b"old")
    graph = graph_of("tied tokens")
    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        sparse.write_sparse(graph, EYERISS, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.onnx"]
