"""The result on one screen, and as a file with a certificate that stands on its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from transform_nets import SmallConv, made

import transform
from bench.check_certificate import check
from transform.forms import require_form


@pytest.fixture(scope="module")
def compressed():
    model, example = made(SmallConv)
    budget = "energy<=60%, nonzeros<=50%"
    return transform.compress(model.eval(), budget, example_inputs=example)


@pytest.fixture(scope="module")
def exported(compressed, tmp_path_factory):
    return compressed.export(tmp_path_factory.mktemp("file") / "new" / "net.onnx")


@pytest.fixture
def copied(exported, tmp_path):
    """The file and its certificate, to be damaged."""
    shutil.copy(exported.path, tmp_path / "net.onnx")
    shutil.copy(exported.certificate, tmp_path / "net.certificate.json")
    return tmp_path / "net.onnx", tmp_path / "net.certificate.json"


def certificate_of(exported):
    return transform.Certificate.from_dict(json.loads(exported.certificate.read_text()))


@pytest.mark.slow
def test_the_export_describes_its_file(compressed, exported):
    data = exported.path.read_bytes()
    assert exported.path.name == "net.onnx"
    assert exported.certificate == exported.path.with_name("net.certificate.json")
    assert exported.form == "dense"
    assert exported.bytes == len(data) > exported.bytes_zstd > 0
    assert 0 <= exported.max_abs_error < 1e-4
    assert exported.top1_agreement == 1.0
    fields = ("path", "form", "bytes", "bytes_zstd", "max_abs_error", "top1_agreement")
    assert all(field in repr(exported) for field in fields)


def test_the_files_certificate_is_counted_from_the_file(compressed, exported):
    certificate = certificate_of(exported)
    assert certificate.source.name == "net.onnx"
    assert certificate.source.sha256 == hashlib.sha256(exported.path.read_bytes()).hexdigest()
    assert certificate.source.bytes == exported.bytes
    assert {row.counted_from for row in certificate.rows} == {"file"}
    assert certificate.holds
    initializers = {t.name: t for t in onnx.load(exported.path).graph.initializer}
    total = 0
    for row in certificate.costs.rows:
        array = numpy_helper.to_array(initializers[certificate.initializers[row.name]])
        assert np.count_nonzero(array) == row.nonzeros
        total += row.nonzeros
    reached = {row.limit: row.reached for row in certificate.rows}
    of_model = {row.limit: row.reached for row in compressed.certificate.rows}
    assert reached == of_model
    assert reached["nonzeros"] == total


def test_an_independent_recount_agrees(exported):
    assert check(exported.certificate) == []


def forge_one_weight(path, certificate, name, change):
    """Change one element of an initialiser, and make size and digest fit again."""
    model = onnx.load(path)
    [tensor] = [t for t in model.graph.initializer if t.name == name]
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save_model(model, str(path))
    claims = json.loads(certificate.read_text())
    claims["file"]["bytes"] = path.stat().st_size
    claims["file"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    certificate.write_text(json.dumps(claims))


@pytest.mark.parametrize("layer", ["conv", "head"])
@pytest.mark.parametrize("revived", [True, False])
def test_one_corrupted_weight_is_seen_by_the_recount(copied, exported, layer, revived):
    def change(array):
        flat = array.reshape(-1)
        index = np.flatnonzero((flat == 0) == revived)[0]
        flat[index] = 1.0 if revived else 0.0

    name = certificate_of(exported).initializers[layer]
    forge_one_weight(*copied, name, change)
    complaints = "\n".join(check(copied[1]))
    assert f"layer {layer}, nonzeros" in complaints
    assert "energy" in complaints


def test_a_forged_certificate_is_seen_by_the_recount(copied):
    path, certificate = copied
    claims = json.loads(certificate.read_text())
    for limit in claims["limits"]:
        limit["reached"] -= 1
    certificate.write_text(json.dumps(claims))
    complaints = "\n".join(check(certificate, path))
    assert "energy: the certificate says" in complaints
    assert "nonzeros: the certificate says" in complaints


@pytest.mark.slow
def test_a_file_with_more_than_the_model_is_never_certified(compressed, exported):
    from export.dense import write_dense

    written = write_dense(compressed.graph, compressed.costs.after.hardware, exported.path)
    assert compressed.certify_file(written) == certificate_of(exported)
    recount = written.recount
    rows = list(recount.costs.rows)
    rows[1] = replace(rows[1], energy=rows[1].energy + rows[0].energy)
    costs = replace(recount.costs, rows=tuple(rows))
    fuller = replace(written, recount=replace(recount, costs=costs))
    with pytest.raises(transform.PostconditionError, match="error of the exporter"):
        compressed.certify_file(fuller)


@pytest.mark.slow
def test_a_missed_limit_of_the_file_is_never_certified(compressed, exported):
    from export.dense import write_dense

    written = write_dense(compressed.graph, compressed.costs.after.hardware, exported.path)
    tighter = [replace(limit, maximum=limit.maximum // 2) for limit in compressed.limits]
    strict = replace(compressed, limits=tuple(tighter))
    with pytest.raises(transform.PostconditionError):
        strict.certify_file(written)


def test_forms_are_checked_first(compressed, tmp_path):
    for form in ("auto", "dense"):
        require_form(form)
    with pytest.raises(transform.ArgumentError, match=r"^form: unknown form 'tiny'.*auto, dense"):
        compressed.export(tmp_path / "x.onnx", form="tiny")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_is_no_place_for_a_file(compressed, tmp_path):
    with pytest.raises(transform.StorageError, match="cannot write here"):
        compressed.export(tmp_path)


def test_a_result_prints_on_one_screen(compressed):
    text = repr(compressed)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 120
    head = text.splitlines()[0]
    assert "SmallConv" in head
    assert "'energy'" in head
    assert text.count("holds") == 2
    for words in ("energy, relaxed", "nonzero weights", "accuracy", "conv", "head", "not measured"):
        assert words in text


def test_many_layers_are_cut_short():
    import torch
    from torch import nn

    deep = nn.Sequential(*[nn.Linear(6, 6) for _ in range(30)])
    result = transform.compress(
        deep, "nonzeros<=50%", example_inputs=torch.zeros(1, 6), keep_shapes=True
    )
    text = repr(result)
    assert "and 14 cheaper layers in .costs.after" in text
    assert len(text.splitlines()) < 40
