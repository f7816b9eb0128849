"""The whole way to a dense ONNX file: what is in it is what the model computes and holds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_nets import CASES, Branching, ConvNet, DeadChannel, Recurrent, built, thinned_graph
from onnx import numpy_helper

from energy_model.errors import ExportError, ParityError, StorageError
from energy_model.hardware import load_hardware
from export import dense
from export.dense import write_dense
from export.onnx_file import OPSET, at_batch
from export.parity import check_parity, open_session
from export.recount import sha256
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.storage import atomic
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Graph and file of a case; every case is exported once."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def get(name):
        if name not in done:
            graph = thinned_graph(*CASES[name])
            path = folder / f"{name.replace(' ', '-')}.onnx"
            done[name] = graph, write_dense(graph, EYERISS, path)
        return done[name]

    return get


def run(path, inputs):
    """Outputs of ONNX Runtime for tensors by position."""
    session = open_session(path)
    names = [item.name for item in session.get_inputs()]
    return session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_file_holds_the_weights_the_counts_and_the_energy_of_the_model(exported, name):
    graph, written = exported(name)
    costs, recount = cost_table(graph, EYERISS), written.recount
    assert set(recount.stored) == {site.name for site in graph.compressible}
    initializers = {t.name: numpy_helper.to_array(t) for t in load(written).graph.initializer}
    for site in graph.compressible:
        stored = recount.stored[site.name]
        array = initializers[stored.name]
        array = array if stored.part is None else array[stored.part]
        assert np.count_nonzero(array) == np.count_nonzero(stored.values)
        assert recount.costs[site.name].nonzeros == costs[site.name].nonzeros < site.size
    assert recount.costs.total.energy == costs.total.energy


def load(written):
    return onnx.load(written.path)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_is_dynamic(exported, name, batch):
    graph, written = exported(name)
    call = at_batch(graph.call, batch)
    assert call.batch_size == batch
    with torch.no_grad():
        expected = call(graph.module)
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    actual = run(written.path, call.tensors())
    assert len(actual) == len(expected)
    for torchs, onnxs in zip(expected, actual, strict=True):
        np.testing.assert_allclose(onnxs, torchs.numpy(), rtol=1e-4, atol=1e-5)


def test_what_was_written_is_described(exported):
    graph, written = exported("conv")
    data = written.path.read_bytes()
    assert (written.form, written.bytes) == ("dense", len(data))
    assert 0 < written.bytes_zstd < written.bytes
    assert written.recount.size == len(data)
    assert written.recount.sha256 == sha256(written.path)
    assert written.parity.batch == 3 != graph.call.batch_size
    assert written.parity.max_abs_error < 1e-4
    assert written.parity.top1_agreement == 1.0
    model = onnx.load(written.path)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert written.recount.parameters == sum(int(np.prod(t.dims)) for t in floats)
    assert [item.version for item in model.opset_import if item.domain == ""] == [OPSET]


def test_batch_norms_are_folded_away_and_zeros_stay(exported):
    graph, written = exported("conv")
    model = onnx.load(written.path)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for site in graph.compressible:
        stored = written.recount.stored[site.name]
        assert stored.same_layout
        np.testing.assert_array_equal(values[stored.name] == 0, graph.weight(site).numpy() == 0)


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_the_machine_is_in_the_file(exported, name):
    written = exported(name)[1]
    data = written.path.read_bytes()
    root = Path(torch.__file__).parents[1]
    for text in (str(root), str(Path.cwd()), str(written.path.parent), ".py", "stack_trace"):
        assert text.encode() not in data


@pytest.mark.slow
def test_the_same_export_gives_the_same_bytes(exported, tmp_path):
    graph, written = exported("conv")
    again = write_dense(graph, EYERISS, tmp_path / "other-name.onnx")
    assert again.path.read_bytes() == written.path.read_bytes()


@pytest.mark.slow
def test_a_channel_that_its_norm_silences_costs_nothing_in_the_file(tmp_path):
    model, example = built(DeadChannel, (2, 2, 4, 4))
    graph = trace(model, as_call(model, example))
    written = write_dense(graph, EYERISS, tmp_path / "dead.onnx")
    before, after = cost_table(graph, EYERISS), written.recount.costs
    assert before["0"].nonzeros - after["0"].nonzeros == 2 * 3 * 3
    assert after["3"] == before["3"]
    assert after.total.energy.exact < before.total.energy.exact


@pytest.mark.slow
def test_both_directions_of_a_recurrent_layer_are_found(tmp_path):
    graph = thinned_graph(Recurrent, (2, 4, 5))
    written = write_dense(graph, EYERISS, tmp_path / "lstm.onnx")
    stored, costs = written.recount.stored, cost_table(graph, EYERISS)
    assert set(stored) == {site.name for site in graph.sites}
    pairs = [("lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse")]
    pairs += [("lstm.weight_hh_l0", "lstm.weight_hh_l0_reverse")]
    for forward, backward in pairs:
        assert stored[forward].name == stored[backward].name
        assert (stored[forward].part, stored[backward].part) == (0, 1)
    assert written.recount.costs.total.energy == costs.total.energy
    for name in stored:
        assert written.recount.costs[name].nonzeros == costs[name].nonzeros


@pytest.mark.slow
def test_a_model_without_an_onnx_form_is_refused_and_nothing_is_written(tmp_path):
    model, example = built(Branching, (2, 6))
    graph = trace(model, as_call(model, example))
    with pytest.raises(ExportError, match=r"^Branching: .*cannot express.*torch\.where"):
        write_dense(graph, EYERISS, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_file_that_disagrees_is_never_put_in_its_place(tmp_path, monkeypatch):
    def other_model(module, call):
        model = float_model(module, call)
        for tensor in model.graph.initializer:
            if tensor.name == "6.weight":
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "6.weight"))
        return model

    float_model = dense.float_model
    monkeypatch.setattr(dense, "float_model", other_model)
    graph, target = thinned_graph(ConvNet, (2, 2, 8, 8)), tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(ParityError, match="differs from torch by") as caught:
        write_dense(graph, EYERISS, target)
    assert caught.value.max_abs_error > 1e-3
    assert target.read_bytes() == b"old"
    monkeypatch.setattr(dense, "float_model", lambda *_: onnx.ModelProto())
    with pytest.raises(ExportError, match=r"model\.onnx: onnx\.checker refuses"):
        write_dense(graph, EYERISS, target)
    assert target.read_bytes() == b"old"


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(exported, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    monkeypatch.setattr(atomic, "_write_content", full)
    with pytest.raises(StorageError, match=r"No space left.*Free some disk space"):
        write_dense(exported("tied")[0], EYERISS, target)
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["conv", "tied"])
def test_parity_sees_one_changed_weight(exported, name, tmp_path):
    graph, written = exported(name)
    model, stored = onnx.load(written.path), next(iter(written.recount.stored.values()))
    [tensor] = [t for t in model.graph.initializer if t.name == stored.name]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1.0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    changed = tmp_path / "changed.onnx"
    onnx.save_model(model, str(changed))
    assert check_parity(written.path, graph.module, graph.call).max_abs_error < 1e-4
    with pytest.raises(ParityError, match=r"changed\.onnx: ONNX Runtime differs") as caught:
        check_parity(changed, graph.module, graph.call)
    assert caught.value.max_abs_error > 1e-4
