"""Cells that fail: the others run, and what failed is listed at the end."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from energy_model.errors import TrainingError
from transform.cli import run as run_command
from transform.cli.app import app

# Whole matrices from the shell: `make test-slow` runs them.
pytestmark = pytest.mark.slow

RECIPE = {
    "name": "toy",
    "model": "bench.zoo:digits_cnn",
    "data": "digits",
    "input": "1x8x8",
    "classes": 10,
    "budget": "energy<=30%",
    "train": {"epochs": 1, "batches_per_epoch": 1},
    "matrix": {"method": [{"name": "energy"}, {"name": "magnitude"}], "seed": [0, 1]},
    "cost": {"minutes": 0.1},
}
REFUSED = {**RECIPE, "matrix": {"budget": ["energy<=30%", "energy<=1%"]}}


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture
def refused(tmp_path):
    path = tmp_path / "refused.yaml"
    path.write_text(yaml.safe_dump(REFUSED))
    return path


@pytest.fixture
def failing(monkeypatch):
    """Make the cells of given seeds fail with given errors."""
    whole = run_command.run_cell

    def fail(**errors):
        def run_cell(recipe, cell, *arguments, **options):
            error = errors.get(f"seed_{cell.seed}")
            if error is not None:
                raise error
            return whole(recipe, cell, *arguments, **options)

        monkeypatch.setattr(run_command, "run_cell", run_cell)

    return fail


@pytest.mark.parametrize(
    "error", [TrainingError("the loss is nan", where="train"), RuntimeError("out of memory")]
)
def test_a_cell_that_fails_does_not_stop_the_others(recipe, tmp_path, failing, error):
    failing(seed_0=error)
    result = run("run", recipe, "--matrix", "--out", tmp_path / "runs")
    assert result.exit_code == 1
    assert [line.partition(",")[0] for line in result.stdout.splitlines()] == [
        "  1  energy",
        "  3  magnitude",
    ]
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 2
    *listed, last = result.stderr.splitlines()[-4:]
    name = type(error).__name__
    assert listed == [
        "2 of 4 cells failed:",
        f"  0  energy, energy<=30%, seed 0: {name}: {error}",
        f"  2  magnitude, energy<=30%, seed 0: {name}: {error}",
    ]
    assert last.startswith("error: 2 of 4 cells failed.")
    assert ("Traceback" in result.stderr) == isinstance(error, RuntimeError)


def test_the_same_command_runs_only_what_failed(recipe, tmp_path, failing):
    arguments = ("run", recipe, "--matrix", "--out", tmp_path / "runs")
    failing(seed_1=TrainingError("the loss is nan"))
    assert run(*arguments).exit_code == 1
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("result.json")}
    failing()
    assert run(*arguments).exit_code == 0
    then = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("result.json")}
    assert (len(first), len(then)) == (2, 4)
    assert then | first == then


def test_another_failure_outweighs_a_budget_that_cannot_be_reached(refused, tmp_path, failing):
    failing(seed_0=TrainingError("the loss is nan"))
    values = {**REFUSED, "matrix": {**REFUSED["matrix"], "seed": [0, 1]}}
    refused.write_text(yaml.safe_dump(values))
    result = run("run", refused, "--matrix", "--out", tmp_path / "runs")
    assert result.exit_code == 1
    assert "3 of 4 cells failed:" in result.stderr
    assert "energy<=1%, seed 1: InfeasibleBudget: " in result.stderr
    assert "energy<=1%, seed 1: infeasible" in result.stdout


def test_a_single_cell_fails_with_its_own_error(recipe, tmp_path, failing):
    failing(seed_0=TrainingError("the loss is nan", where="train"))
    result = run("run", recipe, "--out", tmp_path / "runs")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "error: train: the loss is nan"
    failing(seed_0=RuntimeError("out of memory"))
    assert isinstance(run("run", recipe, "--out", tmp_path / "runs").exception, RuntimeError)


def test_an_interrupt_stops_all(recipe, tmp_path, failing):
    failing(seed_0=KeyboardInterrupt())
    result = run("run", recipe, "--matrix", "--out", tmp_path / "runs")
    assert (result.exit_code, result.stdout) == (130, "")


def test_compare_shows_what_finished_and_then_fails(refused, recipe, tmp_path, failing):
    result = run("compare", refused, "--out", tmp_path / "a")
    assert result.exit_code == 3
    table = (tmp_path / "a" / "comparison.md").read_text()
    assert table in result.stdout
    assert "| method | energy<=30% |" in table
    failing(seed_0=RuntimeError("out of memory"))
    result = run("compare", recipe, "--out", tmp_path / "b")
    assert result.exit_code == 1
    assert '"seeds": [' in (tmp_path / "b" / "comparison.json").read_text()


def test_compare_without_any_result_tells_what_failed(recipe, tmp_path, failing):
    error = TrainingError("the loss is nan")
    failing(seed_0=error, seed_1=error)
    result = run("compare", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: 4 of 4 cells failed")
    assert not (tmp_path / "out").exists()
