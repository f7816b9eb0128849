"""`transform sensitivity`: the same as in Python, and its files."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import transform
from bench.zoo.data import load_data
from transform.cli.app import app
from transform.cli.model import load_model

CNN = ["sensitivity", "bench.zoo:digits_cnn", "--data", "digits"]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


@pytest.mark.slow
def test_the_table_and_the_files_are_those_of_python(tmp_path):
    out = tmp_path / "ranks"
    options = ["--sparsity", 0.5, "--sparsity", 0.9, "--batches", 2, "--layers", '{"0": false}']
    result = run(*CNN, *options, "--out", out)
    assert result.exit_code == 0, result.output
    valid = load_data("digits", batch_size=64).valid
    expected = transform.sensitivity(
        load_model("bench.zoo:digits_cnn"),
        valid,
        sparsity=(0.5, 0.9),
        batches=2,
        layers={"0": False},
    )
    assert result.stdout == f"{expected}\n"
    assert "measured on the valid part" in result.stderr
    written = json.loads((out / "sensitivity.json").read_bytes())
    assert written["rows"] == expected.to_dict()["rows"]
    assert (written["format"], written["model"], written["data"], written["part"]) == (
        "transform-sensitivity",
        "bench.zoo:digits_cnn",
        "digits",
        "valid",
    )
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {"sensitivity.json", "sensitivity.png"}


@pytest.mark.slow
def test_without_validation_data_the_training_part_is_measured(tmp_path, monkeypatch):
    (tmp_path / "own_batches.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    return [(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]))], None, None\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "own_batches:batches", "--out", tmp_path / "out"]
    result = run("sensitivity", "bench.zoo:digits_cnn", *arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "sensitivity.json").read_bytes())
    assert (written["part"], written["samples"]) == ("train", 2)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--sparsity", 2], 1, "2.0 is no share"),
        (["--layers", '{"none": false}'], 1, "matches no layer"),
        (["--layers", "3"], 1, "is no JSON object"),
        (["--hardware", "none"], 1, "none"),
        (["--batches", 0], 2, "--batches"),
    ],
)
def test_bad_options_write_nothing(tmp_path, options, code, message):
    result = run(*CNN, *options, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
