"""Tests for tests/transform that show bugs; each names the file it belongs to."""

from __future__ import annotations

import errno
import json
import os
import shutil

import onnx
import pytest
import torch
from torch import nn
from transform_nets import DictInput, SmallConv, made

import transform
from bench.check_certificate import check
from transform.fingerprint import state_digest


def compress(model=None, budget="energy<=50%", **options):
    made_model, example = made(SmallConv)
    options.setdefault("example_inputs", example)
    return transform.compress(made_model if model is None else model, budget, **options)


# channels_last weights are not contiguous, and count as "computed in forward"
def test_channels_last_weights_are_compressed_like_any_other():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    example = torch.zeros(1, 4, 8, 8)
    expected = compress(model, "nonzeros<=50%", example_inputs=example)
    model = model.to(memory_format=torch.channels_last)
    result = compress(model, "nonzeros<=50%", example_inputs=example)
    assert result.certificate.rows == expected.certificate.rows
    assert state_digest(result.model) == state_digest(expected.model)


# 
def test_a_model_whose_weights_are_all_computed_is_refused():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    for budget in ("energy<=50%", "energy<=100%", "nonzeros<=50%"):
        with pytest.raises(transform.PreconditionError):
            compress(model, budget, example_inputs=torch.zeros(1, 4))


# 
def test_a_model_of_zeros_fits_any_budget():
    model = nn.Sequential(nn.Linear(20, 20))
    nn.init.zeros_(model[0].weight)
    for budget in ("nonzeros<=10%", "energy<=100%"):
        result = compress(model, budget, example_inputs=torch.zeros(1, 20))
        assert state_digest(result.model) == state_digest(model)


# what the certificate calls nonzeros and what the checker counts
def test_the_checker_agrees_where_some_weights_are_computed(tmp_path):
    first = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 8))
    result = compress(model, "nonzeros<=50%", example_inputs=torch.zeros(2, 8))
    assert check(result.export(tmp_path / "net.onnx").certificate) == []


# meta tensors have no values
def test_a_model_without_values_is_refused():
    model, _ = made(SmallConv)
    with pytest.raises(transform.CompressionError):
        compress(model.to("meta"))
    with pytest.raises(transform.CompressionError):
        compress(device="meta")


# validation data
def test_validation_data_of_the_wrong_shape_is_a_typed_error():
    for valid in (
        5,
        [(torch.zeros(2, 3), torch.tensor([0, 1]))],
        [(torch.zeros(2, 2, 8, 8), ["a", "b"])],
    ):
        with pytest.raises(transform.CompressionError):
            compress(valid=valid)


# arguments of the wrong type
@pytest.mark.parametrize("options", [{"device": object()}, {"seed": 2**70}, {"out": 5}])
def test_arguments_of_the_wrong_type_are_typed_errors(options):
    with pytest.raises(transform.ArgumentError, match=next(iter(options))):
        compress(**options)


# "Errors name the user's file:line"
def test_a_failing_example_names_the_line_of_the_users_file():
    with pytest.raises(transform.TraceError, match=r"transform_nets\.py:\d+"):
        compress(example_inputs=torch.zeros(2, 3, 8, 8))


# torch.onnx.export takes a last positional dict for keyword arguments
def test_a_model_of_one_dict_is_exported(tmp_path):
    model, batch = made(DictInput)
    result = transform.compress(model, "nonzeros<=50%", example_inputs=batch)
    exported = result.export(tmp_path / "net.onnx")
    assert check(exported.certificate) == []


# 
def test_training_modes_come_back_with_the_users_class_too(tmp_path):
    model, example = made(SmallConv)
    model.train()
    model.norm.eval()
    folder = compress(model, "nonzeros<=40%", example_inputs=example).save(tmp_path / "saved")
    loaded = transform.load(folder, SmallConv()).model
    assert [m.training for m in loaded.modules()] == [m.training for m in model.modules()]


# a part of the model is loaded as if it were all of it
def test_a_model_that_lacks_layers_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    result = compress(model, "nonzeros<=50%", example_inputs=torch.zeros(1, 4))
    folder = result.save(tmp_path / "saved")
    for other in (nn.Sequential(nn.Linear(4, 4)), nn.Identity()):
        with pytest.raises(transform.StorageError):
            transform.load(folder, other)


# 
@pytest.mark.parametrize("other", ["net", nn.Linear, 5])
def test_what_is_no_model_is_refused_when_loading(tmp_path, other):
    folder = compress().save(tmp_path / "saved")
    with pytest.raises(transform.ArgumentError, match="model"):
        transform.load(folder, other)


# a record that is consistent with its own digest, and wrong
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights_sha256", None),
        ("weights_sha256", 5),
        ("graph", []),
        ("graph", "x"),
        ("method", None),
        ("history", 5),
        ("metrics", None),
        ("aliases", 5),
        ("training", None),
    ],
)
def test_a_forged_record_is_a_storage_error(tmp_path, key, value):
    from transform.storage import _sealed

    folder = compress().save(tmp_path / "saved")
    path = folder / "compressed.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(_sealed(record | {key: value})))
    with pytest.raises(transform.StorageError):
        transform.load(folder, SmallConv())
        transform.load(folder)


# the public surface
def test_testing_is_there_after_import_transform():
    import subprocess
    import sys

    code = "import transform; transform.testing.check_method"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# 
def test_check_method_sees_a_key_that_was_added(monkeypatch):
    from types import SimpleNamespace

    from passes.methods import magnitude, registry
    from passes.methods.base import MethodSpec
    from transform.testing import check_method

    class AddsToTheState(magnitude.MagnitudePruning):
        def finalize(self, graph, run):
            super().finalize(graph, run)
            graph.module.register_buffer("mask", torch.zeros(1))

    keys = frozenset({"nonzeros"})
    spec = MethodSpec("tried", magnitude.Magnitude, AddsToTheState, keys, "a test")
    entry = SimpleNamespace(name="tried", value="a test", load=lambda: spec)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(transform.PostconditionError, match="state-dict keys"):
        check_method("tried")


# 
def test_a_tightest_value_that_cannot_be_reached_is_a_broken_clause(monkeypatch):
    from types import SimpleNamespace

    from passes.methods import magnitude, registry
    from passes.methods.base import MethodSpec
    from transform.testing import check_method

    class PromisesTooMuch(magnitude.MagnitudePruning):
        def plan(self, graph, costs, limits, **options):
            try:
                return super().plan(graph, costs, limits, **options)
            except transform.InfeasibleBudget as error:
                error.tightest -= 1
                raise

    keys = frozenset({"energy"})
    spec = MethodSpec("tried", magnitude.Magnitude, PromisesTooMuch, keys, "a test")
    entry = SimpleNamespace(name="tried", value="a test", load=lambda: spec)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(transform.PostconditionError):
        check_method("tried")


# a tie of a weight with its own transpose
def test_a_weight_tied_with_its_transpose_survives(tmp_path):
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = nn.Parameter(self.a.weight.t())

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    model = Autoencoder()
    result = compress(model, "nonzeros<=50%", example_inputs=torch.zeros(1, 6))
    loaded = transform.load(result.save(tmp_path / "s"))
    assert check(loaded.export(tmp_path / "net.onnx").certificate) == []


# a message, not a traceback
def test_the_command_prints_one_line(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("")
    script = Path(sys.executable).with_name("transform")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([script, "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


# the temporary draft of an export on a full disk
def test_a_full_temporary_disk_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    result = compress()
    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(transform.StorageError, match="No space left"):
        result.export(tmp_path / "net.onnx")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(transform.StorageError, match="No space left"):
        result.save(tmp_path / "saved")
    shutil.rmtree(tmp_path)


# 
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_float_types_export_or_are_refused_with_the_file_asked_for(tmp_path, dtype):
    model, example = made(SmallConv)
    result = compress(model.eval().to(dtype), example_inputs=example.to(dtype))
    try:
        result.export(tmp_path / "net.onnx")
    except transform.CompressionError as error:
        assert "transform-export-" not in str(error)
        assert isinstance(error, transform.ExportError)
        assert error.remedy
