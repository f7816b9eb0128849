"""The demonstration, run once with less training, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import transform
from bench.check_certificate import check
from energy_model.errors import PostconditionError, StorageError
from transform import demo
from transform.cli.app import app


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder and the report of one run, and whether it left torch as it was."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    before = torch.random.get_rng_state(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAINING", transform.TrainConfig(epochs=2))
        text = demo.run_demo(folder, epochs=2)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == torch.get_num_threads()
    return folder, text


def test_the_files_are_there(shown):
    folder, text = shown
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "bench.json",
        "compressed.certificate.json",
        "compressed.onnx",
        "energy.png",
        "latency.png",
        "original.onnx",
        "report.txt",
        "saved",
    }
    for name in names:
        assert name in text
    assert (folder / "energy.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.txt").read_text() == f"{text}\n"


def test_the_report_tells_costs_accuracy_and_measurement(shown):
    folder, text = shown
    for part in (
        "energy<=25%: holds",
        "energy, relaxed (MAC)",
        "method 'magnitude'",
        "one inference, median, ms",
        "modelled energy, MAC/sample",
        demo.HONEST,
        demo.TRAINED,
        f"The files are in {folder}:",
    ):
        assert part in text
    assert "not measured\n" not in text


def test_the_certificate_holds_and_the_result_loads(shown):
    folder, _ = shown
    assert check(folder / "compressed.certificate.json") == []
    result = transform.load(folder / "saved")
    assert result.certificate.holds
    assert result.metrics["before"] > 0.8


def test_both_were_measured_with_their_modelled_energy(shown):
    folder, _ = shown
    first, second = json.loads((folder / "bench.json").read_text())["measurements"]
    assert Path(first["path"]).name == "original.onnx"
    assert second["energy"] <= 0.25 * first["energy"]


@pytest.mark.slow
def test_a_certificate_that_fails_stops_the_demo(shown, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.check_certificate.check", lambda path: ["energy: 1 is not 2"])
    subject = demo.train(epochs=0)
    result = subject.compressed(transform.EnergyProjection(), False)
    with pytest.raises(PostconditionError, match="energy: 1 is not 2"):
        demo._write(subject, result, tmp_path / "out")


def test_training_is_reproducible():
    with demo.one_thread():
        first, second = demo.train(1), demo.train(1)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_the_next_free_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo.free_folder() == Path("demo-output")
    Path("demo-output").mkdir()
    assert demo.free_folder() == Path("demo-output-2")
    Path("demo-output-2").write_text("a file")
    assert demo.free_folder() == Path("demo-output-3")


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(StorageError, match="not empty"):
        demo.run_demo(tmp_path)
    assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path)]).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
