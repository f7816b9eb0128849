"""`transform plot`: the pictures of one finished run."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from transform.cli.app import app

# Plots of whole runs: `make test-slow` runs them.
pytestmark = pytest.mark.slow

CNN = ["bench.zoo:digits_cnn", "--data", "digits"]
QUICK = ["--epochs", 1, "--train-set", "batches_per_epoch=1"]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that was trained under a budget, one that was not, and one without a budget."""
    folder = tmp_path_factory.mktemp("plot")
    budget = ["--budget", "energy<=30%"]
    for command in (
        ["compress", *CNN, *budget, *QUICK, "--out", folder / "both"],
        ["compress", *CNN, *budget, "--one-shot", "--out", folder / "compressed"],
        ["train", *CNN, *QUICK, "--out", folder / "trained"],
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("both", ["energy.png", "sparsity.png", "training.png"]),
        ("compressed", ["energy.png", "sparsity.png"]),
        ("trained", ["training.png"]),
    ],
)
def test_what_there_is_is_plotted(folders, tmp_path, name, pictures):
    result = run("plot", folders / name, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "out" / name) for name in pictures]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == pictures
    assert {path.read_bytes()[:4] for path in (tmp_path / "out").iterdir()} == {b"\x89PNG"}


def test_pictures_go_beside_the_run_which_can_still_be_loaded(folders):
    import transform

    for _ in range(2):
        assert run("plot", folders / "both").exit_code == 0
    assert (folders / "both" / "training.png").is_file()
    assert transform.load(folders / "both").certificate.holds


def test_a_folder_without_a_run_is_refused(tmp_path):
    result = run("plot", tmp_path)
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "there is no finished run" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_trained_nothing_has_nothing_to_plot(folders, tmp_path):
    result = run("train", *CNN, "--epochs", 0, "--out", tmp_path / "none")
    assert result.exit_code == 0, result.output
    result = run("plot", tmp_path / "none")
    assert result.exit_code == 1
    assert "there is nothing to plot" in result.stderr
