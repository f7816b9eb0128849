"""Finished runs as a table: read from real cells, and written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import typer
from torch.nn import functional as F
from typer.testing import CliRunner

import transform
from bench.kept_report import main, to_markdown
from bench.kept_runs import KEPT, Kept, read_kept
from bench.topk import TopK
from bench.zoo import digits_batches, digits_cnn
from energy_model.errors import StorageError
from transform.recipes.recipe import Recipe
from transform.recipes.run import run_cell

pytestmark = pytest.mark.slow

TOY = Recipe.from_dict(
    {
        "name": "toy",
        "model": "bench.zoo:digits_cnn",
        "data": "digits",
        "input": "1x8x8",
        "classes": 10,
        "budget": "macs<=50%",
        "method": {"name": "l2", "label": "l2 | own"},
        "train": {"epochs": 1, "batches_per_epoch": 3},
        "cost": {"minutes": 1},
    }
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return folder, run_cell(TOY, TOY.single(), folder / "cell", progress="none")


def invoke(*arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_run_is_read_and_its_model_is_tested(finished):
    folder, result = finished
    [run] = read_kept([folder])
    assert (run.label, run.budget, run.seed) == ("l2 | own", "macs<=50%", 0)
    assert run.scores.top[0] == result["metrics"]["test"]["after"]
    model = transform.load(folder / "cell" / "compressed").model.eval()
    inputs, targets = (torch.cat(parts) for parts in zip(*digits_batches()[2], strict=True))
    with torch.no_grad():
        outputs = model(inputs)
    assert run.scores.loss == pytest.approx(float(F.cross_entropy(outputs, targets)))
    ranks = (outputs > outputs.gather(1, targets[:, None])).sum(1)
    for place, most in enumerate((1, 3, 5)):
        assert run.scores.top[place] == pytest.approx(float((ranks < most).double().mean()))
    assert run.params == (result["params"]["before"], result["params"]["after"])
    assert run.macs == (result["macs"]["before"], result["macs"]["after"])
    assert run.bytes == (folder / "cell" / "compressed" / "model.onnx").stat().st_size
    assert sum(p.numel() for p in digits_cnn().parameters()) == run.params[0]
    assert run.params[1] / run.params[0] < run.share < 1


def copied(folder, tmp_path):
    """The run, as if it had never been tested."""
    shutil.copytree(folder / "cell", tmp_path / "cell")
    (tmp_path / "cell" / KEPT).unlink(missing_ok=True)


def test_a_model_is_tested_once(finished, tmp_path):
    folder, _ = finished
    copied(folder, tmp_path)
    first = read_kept([tmp_path])
    shutil.rmtree(tmp_path / "cell" / "compressed")
    assert read_kept([tmp_path]) == first == read_kept([folder])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": "another"}, "its identity is 'another'"),
        ({"version": 9}, "its version is 9"),
        ({"format": "x"}, "its format is 'x'"),
        ({"top": {}}, "'1' is missing"),
        ({"top": {"1": 0.01, "3": 0.5, "5": 0.6}}, "scores 0.0100 on the test data"),
        (None, "damaged"),
    ],
)
def test_what_lies_beside_a_run_is_that_runs(finished, tmp_path, change, words):
    folder, _ = finished
    copied(folder, tmp_path)
    read_kept([tmp_path])
    file = tmp_path / "cell" / KEPT
    known = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps({**known, **change}))
    with pytest.raises(StorageError, match=words) as error:
        read_kept([tmp_path])
    assert str(file.parent) in str(error.value)


def test_a_model_that_scores_something_else_is_told(finished, tmp_path):
    folder, result = finished
    copied(folder, tmp_path)
    metrics = {**result["metrics"], "test": {"before": 0.1, "after": 0.99}}
    (tmp_path / "cell" / "result.json").write_text(json.dumps({**result, "metrics": metrics}))
    with pytest.raises(StorageError, match=r"scores 0\.\d{4} on the test data, the run noted 0.99"):
        read_kept([tmp_path])


def test_a_run_without_its_file_is_named(finished, tmp_path):
    folder, _ = finished
    copied(folder, tmp_path)
    (tmp_path / "cell" / "compressed" / "model.onnx").unlink()
    with pytest.raises(StorageError, match="no ONNX file"):
        read_kept([tmp_path])
    assert invoke(tmp_path).exit_code == 1


def kept(label, budget, seed, top, macs):
    return Kept(label, budget, seed, TopK(0.5, top, 10), 0.75, (100, 40), (1000, macs), 900)


def test_a_table_for_each_budget_and_means_over_seeds():
    text = to_markdown(
        [
            kept("l2", "macs<=25%", 0, (0.5, 0.7, 0.9), 250),
            kept("a|b", "macs<=50%", 0, (0.6, 0.8, 0.9), 480),
            kept("l2", "macs<=50%", 0, (0.8, 0.9, 1.0), 500),
            kept("l2", "macs<=50%", 1, (0.7, 0.8, 0.9), 490),
        ]
    )
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("##")] == ["## macs<=50%", "## macs<=25%"]
    rows = [line for line in lines if line.startswith(("| l2", "| a"))]
    assert rows == [
        "| l2 | 2 | 75.00 +- 7.07 | 85.00 | 95.00 | 0.5000 | 75.0% | 40 | 40.0% | 495 | 49.5% "
        "| 900 |",
        "| a\\|b | 1 | 60.00 | 80.00 | 90.00 | 0.5000 | 75.0% | 40 | 40.0% | 480 | 48.0% | 900 |",
        "| l2 | 1 | 50.00 | 70.00 | 90.00 | 0.5000 | 75.0% | 40 | 40.0% | 250 | 25.0% | 900 |",
    ]
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert widths == {13}


def test_the_command_writes_a_page(finished, tmp_path):
    folder, _ = finished
    out = tmp_path / "below" / "kept.md"
    result = invoke(folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert "## macs<=50%" in result.output and "| l2 \\| own | 1 |" in result.output
    assert out.read_text().startswith("# What is kept\n\n    python -m bench.kept_report")
    assert result.output.strip() in out.read_text()
    nothing = invoke(tmp_path / "below")
    assert nothing.exit_code == 1 and "no result.json" in nothing.output
