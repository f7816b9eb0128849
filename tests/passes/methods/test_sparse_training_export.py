"""What was trained sparse is sparse in the file: counted again, tensor by tensor."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from sparse_training_runs import CONV_TOTAL, IMAGES, LABELS, nonzeros, trained, watched, weights_of
from torch import nn

from passes.methods.quantize_config import Quantize
from passes.methods.sparse_training import SparseTraining

BATCHES = [(IMAGES[i : i + 16], LABELS[i : i + 16]) for i in range(0, 48, 16)]


def wide():
    """Large enough for sparse forms to pay."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def floats():
    return trained("nonzeros<=10%", model=wide(), data=BATCHES)


@pytest.fixture(scope="module")
def dense_file(floats, tmp_path_factory):
    return floats.export(tmp_path_factory.mktemp("dense") / "model.onnx", form="dense")


def weights_in(path):
    """Of every initialiser that is a weight, its values."""
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {name: value for name, value in tensors.items() if value.ndim > 1}


def outputs_of(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]


@pytest.mark.slow
def test_nonzeros_of_every_initialiser_are_those_of_the_report(floats, dense_file):
    reported = {row.name: row.nonzeros for row in floats.costs.after}
    found = {
        name.removesuffix(".weight"): int(np.count_nonzero(value))
        for name, value in weights_in(dense_file.path).items()
    }
    assert found == reported == nonzeros(floats.model)
    total = sum(w.numel() for w in weights_of(wide()).values())
    assert sum(found.values()) <= total // 10
    assert floats.certificate.rows[0].reached == sum(found.values())


def test_the_runtime_computes_what_torch_does(floats, dense_file):
    floats.model.eval()
    with torch.no_grad():
        expected = floats.model(IMAGES).numpy()
    found = outputs_of(dense_file.path, IMAGES)
    assert float(np.abs(found - expected).max()) <= 1e-5
    assert dense_file.max_abs_error <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sparse", pytest.param("packed", marks=pytest.mark.slow)])
def test_sparse_forms_apply_and_are_smaller(form, floats, dense_file, tmp_path):
    name = "model.packed" if form == "packed" else "model.onnx"
    written = floats.export(tmp_path / name, form=form)
    assert written.form == form and written.path.stat().st_size == written.bytes
    assert written.bytes < 0.5 * dense_file.bytes
    assert written.max_abs_error <= 1e-5
    if form == "sparse":
        same = outputs_of(written.path, IMAGES) - outputs_of(dense_file.path, IMAGES)
        assert float(np.abs(same).max()) == 0


@pytest.mark.slow
def test_zeros_stay_zeros_as_integers(tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    methods = [SparseTraining(rule="rigl", every=2), Quantize(7, 8)]
    result = trained("nonzeros<=20%", model=wide(), data=BATCHES, method=methods, epochs=2)
    written = result.export(tmp_path / "model.onnx", form="qdq")
    masks = {name: mask.numpy() for name, mask in seen.last[0].items()}
    codes = {n: v for n, v in weights_in(written.path).items() if v.dtype == np.int8}
    assert len(codes) == len(masks) == 3
    for name, mask in masks.items():
        [values] = [v for v in codes.values() if v.size == mask.size]
        values = values if values.shape[0] != 96 else values.T
        assert not values.reshape(-1)[~mask].any(), name
        assert np.count_nonzero(values) == nonzeros(result.model)[name] > 0
        assert int(mask.sum()) >= np.count_nonzero(values)
    assert result.certificate.holds


@pytest.mark.slow
def test_channels_that_died_are_removed(tmp_path):
    options = {"model": wide(), "data": BATCHES, "rule": "set_uniform", "epochs": 2}
    kept = trained("nonzeros<=3%", **options)
    removed = trained("nonzeros<=3%", keep_shapes=False, **options)
    before, after = kept.costs.after.total, removed.costs.after.total
    assert after.weights < 0.8 * before.weights and after.nonzeros <= before.nonzeros
    kept.model.eval(), removed.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(removed.model(IMAGES), kept.model(IMAGES))
    written = removed.export(tmp_path / "model.onnx", form="dense")
    shapes = {value.shape for value in weights_in(written.path).values()}
    assert shapes == {tuple(w.shape) for w in weights_of(removed.model).values()}


def test_active_weights_may_be_zero_and_the_two_counts_differ(monkeypatch):
    """The last step of the training has an event: what has just grown is still zero."""
    seen = watched(monkeypatch)
    result = trained("nonzeros<=20%", rule="dsr_exact", start="uniform", every=23, share=0.3)
    [moment] = seen.events
    assert moment.step == 23
    active = sum(moment.row["active"].values())
    grown = sum(moment.row["grown"].values())
    assert active == CONV_TOTAL * 20 // 100
    assert 0 < sum(nonzeros(result.model).values()) <= active - grown < active
    assert result.costs.after.total.nonzeros == sum(nonzeros(result.model).values())
