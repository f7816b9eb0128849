"""`transform unpack`, and weights that are arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import transform
from energy_model.errors import ArgumentError
from transform.cli.app import app
from transform.cli.model import load_model


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """An archive, and the ONNX file that it was made from."""
    folder = tmp_path_factory.mktemp("packed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    options = {"example_inputs": torch.ones(2, 6), "method": "magnitude", "progress": "none"}
    result = transform.compress(model, "nonzeros<=30%", **options)
    result.export(folder / "small.packed")
    result.export(folder / "plain.onnx", "dense")
    return folder


@pytest.mark.slow
def test_the_file_comes_out_as_it_was_packed(packed, tmp_path):
    archive = tmp_path / "small.packed"
    archive.write_bytes((packed / "small.packed").read_bytes())
    whole = (packed / "plain.onnx").read_bytes()
    found = run("unpack", archive)
    assert found.exit_code == 0, found.output
    assert (tmp_path / "small.onnx").read_bytes() == whole
    assert f"{len(whole):,} bytes, {archive.stat().st_size:,} in the archive" in found.output
    assert str(tmp_path / "small.onnx") in found.output
    found = run("unpack", archive, "--out", tmp_path / "other.onnx")
    assert found.exit_code == 0
    assert (tmp_path / "other.onnx").read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: b"no archive at all",
    ],
    ids=["cut", "half", "empty", "flipped", "other"],
)
def test_a_damaged_archive_is_an_error_and_nothing_is_written(packed, tmp_path, damage):
    archive = tmp_path / "bad.packed"
    archive.write_bytes(damage((packed / "small.packed").read_bytes()))
    found = run("unpack", archive)
    assert found.exit_code != 0
    assert "bad.packed" in found.output
    assert "Traceback" not in found.output
    assert [path.name for path in tmp_path.iterdir()] == ["bad.packed"]


def test_what_is_not_there_or_cannot_be_written_is_an_error(packed, tmp_path):
    for arguments in (
        ("unpack", tmp_path / "none.packed"),
        ("unpack", tmp_path),
        ("unpack", packed / "small.packed", "--out", tmp_path),
    ):
        found = run(*arguments)
        assert found.exit_code != 0, arguments
        assert "Traceback" not in found.output
        assert found.exception is None or isinstance(found.exception, SystemExit)
    assert list(tmp_path.rglob("*.onnx")) == []


def test_an_archive_is_never_written_over(packed, tmp_path):
    archive = tmp_path / "small.onnx"
    data = (packed / "small.packed").read_bytes()
    archive.write_bytes(data)
    for arguments in ((archive,), (archive, "--out", tmp_path / "." / "small.onnx")):
        found = run("unpack", *arguments)
        assert found.exit_code != 0
        assert "--out" in found.output
        assert archive.read_bytes() == data


MODULE = "from torch import nn\ndef net(): return nn.Linear(8, 3)\n"


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "unpack_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def arrays(dtype=np.float32, **changes):
    generator = np.random.default_rng(0)
    values = {
        "weight": generator.standard_normal((3, 8)).astype(dtype),
        "bias": generator.standard_normal(3).astype(dtype),
    }
    return values | changes


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_may_be_arrays(nets, tmp_path, dtype):
    values = arrays(dtype)
    np.savez(tmp_path / "w.npz", **values)
    model = load_model("unpack_nets:net", tmp_path / "w.npz")
    # In the type of the model, as every state dict is loaded.
    assert model.weight.dtype == torch.float32
    assert np.array_equal(model.weight.detach().numpy(), values["weight"].astype(np.float32))
    assert np.array_equal(model.bias.detach().numpy(), values["bias"].astype(np.float32))


def test_bad_arrays_are_refused(nets, tmp_path):
    np.savez(tmp_path / "shape.npz", **arrays(bias=np.zeros(4)))
    np.savez(tmp_path / "keys.npz", **arrays(other=np.zeros(4)))
    np.savez(tmp_path / "objects.npz", **arrays(bias=np.array([{}, None, 3], dtype=object)))
    np.savez(tmp_path / "text.npz", **arrays(bias=np.array(["a", "b", "c"])))
    (tmp_path / "noise.npz").write_bytes(b"PK no archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    messages = {
        "shape.npz": "do not fit Linear: size mismatch",
        "keys.npz": "do not fit Linear",
        "objects.npz": "cannot be read",
        "text.npz": "cannot be read",
        "noise.npz": "cannot be read",
        "one.npz": "cannot be read",
        "missing.npz": r"cannot be read \(FileNotFoundError",
    }
    for name, message in messages.items():
        with pytest.raises(ArgumentError, match=message) as caught:
            load_model("unpack_nets:net", tmp_path / name)
        assert caught.value.where == str(tmp_path / name), name
