"""`transform train`, `transform run`, `transform compare`, and how `compress` is told to train."""

from __future__ import annotations

import csv
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import transform
from bench.zoo import digits_cnn
from bench.zoo.data import load_data
from energy_model.errors import ArgumentError
from transform import TrainConfig
from transform.cli.app import app
from transform.cli.config import layer_rules, training
from transform.evaluate import evaluate

CNN = ["bench.zoo:digits_cnn", "--data", "digits"]
QUICK = ["--epochs", 1, "--train-set", "batches_per_epoch=2"]
RECIPE = {
    "name": "toy",
    "model": "bench.zoo:digits_cnn",
    "data": "digits",
    "input": "1x8x8",
    "classes": 10,
    "budget": "energy<=30%",
    "train": {"epochs": 1, "batches_per_epoch": 1},
    "matrix": {
        "method": [{"name": "energy"}, {"name": "magnitude", "label": "magnitude global"}],
        "seed": [0, 1],
    },
    "cost": {"minutes": 0.1},
}


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def failing(*arguments):
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    return result.exit_code, result.stderr.splitlines()[-1]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_training_options_make_a_configuration():
    assert training(None, None, []) is None
    assert training(False, None, []) is False
    assert training(True, None, []) == TrainConfig()
    assert training(None, 3, []) == TrainConfig(epochs=3)
    settings = ["lr=1e-3", "optimizer=adam", "clip_grad=none", "nesterov=true", "amp=bf16"]
    expected = TrainConfig(lr=1e-3, optimizer="adam", clip_grad=None, nesterov=True, amp="bf16")
    assert training(None, None, settings) == expected


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("distill=0.5", "distill", transform.Distill(0.5)),
        ('distill={"weight": 0.7, "kind": "kl"}', "distill", transform.Distill(0.7, "kl")),
        ("distill=none", "distill", None),
        ("schedule=step", "schedule", "step"),
        ('schedule={"0": 0.1, "80": 0.01}', "schedule", {0.0: 0.1, 80.0: 0.01}),
    ],
)
def test_settings_that_are_more_than_a_number(setting, field, value):
    assert getattr(training(True, None, [setting]), field) == value


@pytest.mark.parametrize(
    ("train", "epochs", "settings", "message"),
    [
        (None, None, ["learning=1"], "'learning=1' sets no field of the training"),
        (None, None, ["epoch=1"], "Did you mean epochs"),
        (None, None, ["lr"], "Write key=value"),
        (None, None, ["lr=fast"], "--train-set lr: 'fast' is not allowed. Allowed: a number"),
        (None, None, ["lr=-1"], r"TrainConfig\.lr"),
        (None, None, ["schedule={"], "or a JSON object"),
        (None, None, ["optimizer=sgdd"], "Allowed: sgd, or adam"),
        (None, 3, ["epochs=4"], "'epochs' stands twice"),
        (False, 3, [], "--one-shot trains nothing"),
        (False, None, ["lr=1"], "--one-shot trains nothing"),
    ],
)
def test_bad_training_options_are_refused(train, epochs, settings, message):
    with pytest.raises(ArgumentError, match=message):
        training(train, epochs, settings)


def test_layer_rules_are_a_json_object():
    assert layer_rules(None) is None
    assert layer_rules('{"a.*": false}') == {"a.*": False}
    for text in ("[1]", "{", "3"):
        with pytest.raises(ArgumentError, match="is no JSON object"):
            layer_rules(text)


@pytest.mark.slow
def test_compress_trains_as_python_does(tmp_path):
    options = ["--budget", "energy<=30%", "--layers", '{"0": false}', "--seed", 3]
    result = run("compress", *CNN, *options, *QUICK, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    from transform.cli.model import load_model

    parts = load_data("digits", seed=3, batch_size=64)
    expected = transform.compress(
        load_model("bench.zoo:digits_cnn", seed=3),
        "energy<=30%",
        parts.train,
        valid=parts.valid,
        layers={"0": False},
        train=TrainConfig(epochs=1, batches_per_epoch=2),
        seed=3,
    )
    found = transform.load(tmp_path / "a")
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    assert [row.get("step") for row in found.history] == [None, 2, None]


@pytest.mark.slow
def test_compress_in_one_shot_leaves_weights_as_they_were(tmp_path):
    options = ["--budget", "energy<=30%", "--one-shot", "--out", tmp_path / "a"]
    result = run("compress", *CNN, *options)
    assert result.exit_code == 0, result.output
    assert [row.get("step") for row in transform.load(tmp_path / "a").history] == [None, None]


def test_compress_refuses_bad_layers_and_training(tmp_path):
    out = ["--budget", "energy<=30%", "--out", tmp_path / "a"]
    assert "no JSON object" in failing("compress", *CNN, *out, "--layers", "no")[1]
    assert "trains nothing" in failing("compress", *CNN, *out, "--one-shot", "--epochs", 1)[1]
    assert failing("compress", *CNN, *out, "--layers", '{"no-layer": false}')[0] == 1
    assert (
        "none-such"
        in failing(
            "compress", "bench.zoo:lenet5", "--data", "mnist", *out, "--data-root", "none-such"
        )[1]
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_train_writes_weights_that_compress_reads(tmp_path):
    options = ["--epochs", 2, "--train-set", "optimizer=adam", "--train-set", "lr=0.002"]
    result = run("train", *CNN, *options, "--out", tmp_path / "base")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert names == {"train.json", "weights.safetensors"}
    report = json.loads((tmp_path / "base" / "train.json").read_bytes())
    assert report["config"]["epochs"] == 2
    assert (report["model"], report["data"], report["seed"]) == (*CNN[::2], 0)
    model = digits_cnn()
    model.load_state_dict(load_file(tmp_path / "base" / "weights.safetensors"))
    parts = load_data("digits")
    device = torch.device("cpu")
    assert report["metrics"] == {
        "valid": pytest.approx(evaluate(model, parts.valid, device)),
        "test": pytest.approx(evaluate(model, parts.test, device)),
    }
    assert report["metrics"]["test"] > 0.9
    assert f"test   {report['metrics']['test']:.2%}\n" in result.stdout
    weights = ["--weights", tmp_path / "base" / "weights.safetensors", "--one-shot"]
    run("compress", *CNN, *weights, "--budget", "energy<=100%", "--out", tmp_path / "small")
    before = transform.load(tmp_path / "small").metrics["before"]
    assert before == pytest.approx(report["metrics"]["valid"])


def test_train_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "kept").write_text("kept")
    code, line = failing("train", *CNN, *QUICK, "--out", tmp_path)
    assert (code, "nothing is overwritten" in line) == (1, True)


def test_run_lists_what_it_would_run(recipe):
    lines = run("run", recipe, "--list").stdout.splitlines()
    assert lines[1] == "cost: 0.1 minutes a cell on 2 cores, 0.4 for all 4"
    assert lines[2:] == [
        "  0  energy, energy<=30%, seed 0",
        "  1  energy, energy<=30%, seed 1",
        "  2  magnitude global, energy<=30%, seed 0",
        "  3  magnitude global, energy<=30%, seed 1",
    ]
    assert "needs: an accelerator" in run("run", "alexnet-imagenet-energy", "--list").stdout


@pytest.mark.slow
def test_run_and_compare(recipe, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "table"
    single = run("run", recipe, "--select", 3, "--out", runs)
    assert single.exit_code == 0, single.output
    assert single.stdout.startswith("  3  magnitude global, energy<=30%, seed 1: energy ")
    [first] = runs.rglob("result.json")
    written = first.stat().st_mtime_ns
    assert run("run", recipe, "--matrix", "--out", runs).exit_code == 0
    assert len(list(runs.rglob("result.json"))) == 4
    assert first.stat().st_mtime_ns == written
    result = run("compare", runs, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "comparison.md").read_text()
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert [(row["label"], row["seeds"], row["pairs"]) for row in rows] == [
        ("energy", "0 1", "2"),
        ("magnitude global", "0 1", "0"),
    ]
    code, line = failing("compare", runs, "--baseline", "none", "--out", out)
    assert (code, "no run is labelled" in line) == (1, True)


@pytest.mark.slow
def test_compare_runs_a_recipe_first(recipe, tmp_path):
    result = run("compare", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out" / "runs" / "toy").rglob("result.json"))) == 4
    names = {f"comparison{end}.png" for end in ("", "-weights", "-energy", "-training")}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == names


@pytest.mark.slow
def test_a_dry_run_saves_no_model(recipe, tmp_path):
    result = run("run", recipe, "--dry-run", "--out", tmp_path / "dry")
    assert result.exit_code == 0, result.output
    files = [path.name for path in (tmp_path / "dry").rglob("*") if path.is_file()]
    assert files == ["result.json"]


@pytest.mark.slow
def test_what_cannot_be_reached_does_not_stop_the_others(tmp_path):
    path = tmp_path / "toy.yaml"
    matrix = {"budget": ["energy<=1%", "energy<=30%"]}
    path.write_text(yaml.safe_dump({**RECIPE, "matrix": matrix}))
    result = run("run", path, "--matrix", "--out", tmp_path / "runs")
    assert result.exit_code == 3
    assert "energy<=1%, seed 0: infeasible" in result.stdout
    assert "the least that can be reached" in result.stderr
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 1


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such-recipe", "--out", "a"], "there is no recipe"),
        (["run", "digits-energy", "--select", "999"], "there is no cell 999"),
        (["run", "digits-energy", "--select", "999", "--out", "a"], "there is no cell 999"),
        (["compare", "no-such-folder", "--out", "a"], "neither a folder of results nor a recipe"),
    ],
)
def test_bad_requests_exit_with_1(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, line = failing(*arguments)
    assert (code, message in line) == (1, True), line
    assert list(tmp_path.iterdir()) == []
