"""The form `packed` of whole models: what it holds is what the other forms write, and runs."""

from __future__ import annotations

import errno
import hashlib

import numpy as np
import onnx
import pytest
import torch
from quantized_nets import encode, seeded
from torch import nn

from bench.zoo import lenet5_caffe
from energy_model.errors import ArgumentError, ExportError, ParityError, StorageError
from energy_model.hardware import load_hardware
from export import unpack
from export.archive import graph_bytes
from export.archive_file import read_archive
from export.dense import write_dense
from export.onnx_file import at_batch
from export.packed import FORM, predict_packed_bytes, write_packed
from export.parity import open_session
from export.qdq import write_qdq
from export.recount import sha256
from export.sparse import write_sparse
from passes.inputs import as_call
from passes.storage import atomic
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")


class Residual(nn.Module):
    """A convolution with a norm, a residual block, and a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.bn2(self.conv2(x)) + x).mean([2, 3]))


class Attention(nn.Module):
    """An encoder layer on tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)

    def forward(self, x):
        return self.layer(self.embed(x))


def few_values(graph, zeros, levels):
    """Set weights to zero, and the others to a few values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for site in graph.compressible:
            weight = graph.weight(site)
            book = torch.linspace(-1, 1, levels)
            weight.copy_(book[torch.randint(levels, weight.shape, generator=generator)])
            weight[torch.rand(weight.shape, generator=generator) < zeros] = 0
    return graph


def graph_of(build, *shape, zeros=0.9, levels=6, bits=0):
    model, inputs = seeded(build, shape)
    graph = few_values(trace(model, as_call(model, inputs), train=False), zeros, levels)
    return encode(graph, bits) if bits else graph


CASES = {
    "lenet5": (lambda: graph_of(lenet5_caffe, 2, 1, 28, 28, zeros=0.995), write_dense, None),
    "residual": (lambda: graph_of(Residual, 2, 3, 8, 8), write_dense, None),
    "attention": (lambda: graph_of(Attention, 2, 5, 12), write_dense, None),
    "int8": (lambda: graph_of(Residual, 2, 3, 8, 8, bits=8), write_qdq, None),
    "int4": (lambda: graph_of(Residual, 2, 3, 8, 8, bits=4), write_qdq, None),
    "sparse": (lambda: graph_of(Residual, 2, 3, 8, 8), write_sparse, "sparse"),
}


SLOW = pytest.mark.slow
NAMES = [name if name == "int4" else pytest.param(name, marks=SLOW) for name in CASES]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A graph, its file in the form inside, and its archive; each exported once."""
    folder, done = tmp_path_factory.mktemp("packed"), {}

    def get(name):
        if name not in done:
            make, write, of = CASES[name]
            graph = make()
            plain = write(graph, EYERISS, folder / f"{name}.onnx")
            done[name] = (
                graph,
                plain,
                write_packed(graph, EYERISS, folder / f"{name}.packed", of=of),
            )
        return done[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_archive_holds_the_other_file_bit_for_bit(exported, name):
    _, plain, written = exported(name)
    assert read_archive(written.path) == plain.path.read_bytes()
    assert written.form == FORM
    assert written.inside.form == plain.form
    assert (written.inside.bytes, written.inside.sha256) == (plain.bytes, sha256(plain.path))
    assert written.bytes == written.path.stat().st_size == written.recount.size
    assert written.recount.sha256 == hashlib.sha256(written.path.read_bytes()).hexdigest()
    assert written.bytes < plain.bytes_zstd
    assert written.parity == plain.parity
    assert written.recount.costs.total == plain.recount.costs.total
    assert abs(predict_packed_bytes(onnx.load(plain.path)) - written.bytes) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_unpacked_runs_as_the_model_does(exported, name, tmp_path):
    graph, plain, written = exported(name)
    unpack(written.path, tmp_path / "model.onnx")
    inputs = at_batch(graph.call, 5).tensors()[0].numpy()
    outputs = []
    for path in (plain.path, tmp_path / "model.onnx"):
        session = open_session(path)
        outputs.append(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    assert outputs[0].tobytes() == outputs[1].tobytes()
    assert np.abs(outputs[1]).max() > 0


@pytest.mark.slow
def test_a_note_says_what_it_is_for(exported):
    _, plain, written = exported("lenet5")
    assert f"{plain.bytes:,} bytes of ONNX (form 'dense')" in written.notes[-1]
    graph = graph_bytes(plain.path.read_bytes())
    assert 10 < graph < 100
    assert f"{written.bytes:,} bytes, of which the graph takes {graph}." in written.notes[-1]
    assert "No runtime reads it" in written.notes[-1]
    assert written.notes[:-1] == plain.notes


@pytest.mark.slow
def test_the_graph_of_lenet5_costs_little(exported):
    """2,150 nonzeros of six values, 580 biases of at most four bytes, and the network."""
    graph, _, written = exported("lenet5")
    kept = {site.name: int(graph.weight(site).count_nonzero()) for site in graph.compressible}
    sizes = {site.name: graph.weight(site).numel() for site in graph.compressible}
    entropy = 0.0
    for name, count in kept.items():
        share = count / sizes[name]
        per_weight = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
        entropy += sizes[name] * per_weight + count * np.log2(6)
    assert written.bytes < entropy / 8 + 4 * 580 + 150


def test_an_unknown_form_inside_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="does not hold the form 'column_groups'"):
        write_packed(graph_of(Attention, 2, 5, 12), EYERISS, tmp_path / "x", of="column_groups")


def test_the_errors_of_the_form_inside_come_through(tmp_path):
    with pytest.raises(ExportError, match="no weight of the model is quantized"):
        write_packed(graph_of(Attention, 2, 5, 12), EYERISS, tmp_path / "x.packed", of="qdq")
    assert not list(tmp_path.iterdir())


@SLOW
def test_a_file_that_computes_something_else_is_not_packed(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ParityError("the file computes something else", max_abs_error=1.0)

    monkeypatch.setattr("export.dense.check_parity", broken)
    with pytest.raises(ParityError):
        write_packed(graph_of(Residual, 2, 3, 8, 8), EYERISS, tmp_path / "x.packed")
    assert not list(tmp_path.iterdir())


@SLOW
def test_a_full_disk_leaves_the_old_archive(tmp_path, monkeypatch):
    path, graph = tmp_path / "x.packed", graph_of(Residual, 2, 3, 8, 8)
    path.write_bytes(b"old")
    replace = atomic.os.replace

    def full(source, target):
        if target == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        write_packed(graph, EYERISS, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.packed"]


@pytest.mark.slow
def test_a_damaged_archive_of_a_model_is_seen(exported, tmp_path):
    _, _, written = exported("int4")
    archive = written.path.read_bytes()
    for place in range(0, len(archive), 37):
        path = tmp_path / "bad.packed"
        path.write_bytes(archive[:place] + bytes([archive[place] ^ 4]) + archive[place + 1 :])
        with pytest.raises(StorageError):
            unpack(path)
