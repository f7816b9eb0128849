"""Measuring and fitting with a planted cost in place of the clock, and once with the clock."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer import Typer
from typer.testing import CliRunner

import bench.fit_measured as module
from bench.errors import BenchError
from bench.fit_measured import LENET, MLP, Reading, lenet, main, measure_bilinear, mlp, onnx_reading
from energy_model.bilinear import BilinearModel, Term, chain
from energy_model.errors import ArgumentError, StorageError

TERMS, FULL_WIDTHS = chain([("pixels", 5), ("fc1", 12), ("fc2", 9), ("fc3", 3)])
PLANTED = BilinearModel(1e-5, (2e-5, 3e-5, 4e-5), TERMS, FULL_WIDTHS, "s")
JOULES_PER_SECOND = 7.0


class Widths(nn.Module):
    """A stand-in for a network: it only knows its widths."""

    def __init__(self, widths) -> None:
        super().__init__()
        self.widths = dict(widths)


def build(widths):
    return Widths(widths), torch.zeros(1)


def seconds_only(network, example) -> Reading:
    assert example.shape == (1,)
    return Reading(PLANTED.predict(network.widths))


def both(network, example) -> Reading:
    seconds = PLANTED.predict(network.widths)
    return Reading(seconds, JOULES_PER_SECOND * seconds)


def planted_fit(measure=seconds_only, **options):
    return measure_bilinear(
        build, TERMS, FULL_WIDTHS, **{"count": 40, "measure": measure} | options
    )


def test_planted_seconds_come_back() -> None:
    found = planted_fit()
    assert found.fit.model.unit == "s"
    np.testing.assert_allclose(found.fit.model.coefficients, PLANTED.coefficients, rtol=1e-6)
    assert found.fit.model.intercept == pytest.approx(PLANTED.intercept, rel=1e-6)
    assert found.fit.worst_error < 1e-6
    assert len(found.rows) == 40
    assert len(found.fit.held_out) == 8
    for row in found.rows:
        assert row.reading == Reading(PLANTED.predict(row.widths), None)


def test_joules_are_fitted_where_every_row_has_them() -> None:
    found = planted_fit(both)
    assert found.fit.model.unit == "J"
    expected = JOULES_PER_SECOND * np.array(PLANTED.coefficients)
    np.testing.assert_allclose(found.fit.model.coefficients, expected, rtol=1e-6)
    assert planted_fit(both, quantity="seconds").fit.model.unit == "s"


def sometimes(network, example) -> Reading:
    """A counter that stands still for narrow networks."""
    return (both if network.widths["fc1"] > 3 else seconds_only)(network, example)


def test_rows_without_joules_are_never_taken_for_zero() -> None:
    assert planted_fit(sometimes).fit.model.unit == "s"
    with pytest.raises(BenchError, match="of 40 rows have no joules"):
        planted_fit(sometimes, quantity="joules")
    with pytest.raises(BenchError, match="40 of 40 rows have no joules"):
        planted_fit(quantity="joules")


def test_the_seed_decides_widths_and_split() -> None:
    assert planted_fit() == planted_fit(seed=0)
    assert planted_fit().rows != planted_fit(seed=1).rows
    assert planted_fit().fit.held_out != planted_fit(seed=1).fit.held_out


def test_options_reach_the_fit() -> None:
    def noisy(network, example) -> Reading:
        widths = network.widths
        return Reading(PLANTED.predict(widths) * (1 + 0.3 * np.cos(sum(widths.values()))))

    plain = planted_fit(noisy).fit.model
    assert planted_fit(noisy, relative=False).fit.model != plain
    assert planted_fit(noisy, ridge=1.0).fit.model != plain

    def falling(network, example) -> Reading:
        return Reading(2 - network.widths["fc1"] / 12)

    assert min(planted_fit(falling).fit.model.coefficients) == 0
    assert min(planted_fit(falling, nonnegative=False).fit.model.coefficients) < -0.9


def test_rows_are_written_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    found = planted_fit(sometimes, rows_path=path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["fc1", "fc2", "seconds", "joules"]
    assert len(rows) == 40
    for text, row in zip(rows, found.rows, strict=True):
        assert {name: int(text[name]) for name in FULL_WIDTHS} == row.widths
        assert float(text["seconds"]) == row.reading.seconds
        assert text["joules"] == ("" if row.reading.joules is None else str(row.reading.joules))
    assert {text["joules"] == "" for text in rows} == {True, False}


def test_rows_outlive_a_measurement_that_dies(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("an older file")
    steps = []

    def dies(network, example) -> Reading:
        # The rows are in the file already, so that even a kill would leave them.
        assert len(path.read_text().splitlines()) == len(steps)
        if len(steps) == 11:
            raise BenchError("the runtime crashed")
        return seconds_only(network, example)

    with pytest.raises(BenchError, match="crashed"):
        planted_fit(dies, rows_path=path, progress=lambda *step: steps.append(step))
    assert steps == [(number, 40) for number in range(11)]
    lines = path.read_text().splitlines()
    assert lines[0] == "fc1,fc2,seconds,joules"
    assert len(lines) == 11


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write here"):
        planted_fit(rows_path=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 1}, "1 networks"),
        ({"count": 4}, "3 fitted samples cannot determine 4 coefficients"),
        ({"seed": -1}, "the seed is -1"),
        ({"quantity": "watts"}, "'watts' is not measured. Known: seconds, joules"),
        ({"ridge": -1.0}, "the weight is -1.0"),
    ],
)
def test_wrong_arguments_are_found_before_measuring(options, words: str) -> None:
    def never(network, example) -> Reading:
        raise AssertionError("measured")

    with pytest.raises(ArgumentError, match=words):
        planted_fit(never, **options)


def test_terms_that_cannot_be_told_apart_are_found_before_measuring() -> None:
    terms = (Term("first", "a", "b"), Term("second", "b", "a"))
    with pytest.raises(ArgumentError, match="first and second"):
        measure_bilinear(build, terms, {"a": 8, "b": 8}, count=40, measure=seconds_only)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "neither seconds nor joules"),
        ((0.0,), "the seconds of one inference are 0.0"),
        ((1.0, 0.0), "the joules of one inference are 0.0"),
        ((1.0, -1.0), "the joules of one inference are -1.0"),
        ((float("nan"),), "the seconds of one inference are nan"),
    ],
)
def test_a_reading_is_positive_or_absent(arguments, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        Reading(*arguments)


@pytest.mark.parametrize(("make", "layers"), [(mlp, MLP), (lenet, LENET)])
def test_networks_have_the_widths_asked_for(make, layers) -> None:
    terms, full_widths = chain(layers)
    widths = {name: 2 + index for index, name in enumerate(full_widths)}
    network, example = make(widths)
    made = [m.weight.shape[:2] for m in network if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [outputs for outputs, _ in made] == [*widths.values(), 10]
    assert len(made) == len(terms)
    with torch.no_grad():
        assert network(example).shape == (1, 10)


@pytest.mark.slow
def test_a_real_reading() -> None:
    network, example = mlp({"fc1": 4, "fc2": 3})
    network.train()
    reading = onnx_reading(network, example, rounds=2, seconds_per_round=0.01)
    assert 0 < reading.seconds < 10
    assert reading.joules is None or reading.joules > 0
    assert network.training


app = Typer()
app.command()(main)


def fake_reading(network, example, *, threads: int) -> Reading:
    assert threads == 2
    weights = sum(p.numel() for p in network.parameters())
    return Reading(1e-6 + 1e-9 * weights, 1.0)


def test_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "onnx_reading", fake_reading)
    out = tmp_path / "mlp.json"
    arguments = ["--net", "mlp", "--count", "30", "--threads", "2", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "mean error" in done.output
    assert "on 6 held-out networks" in done.output
    data = json.loads(out.read_text())
    assert (data["net"], data["count"], data["seed"], data["threads"]) == ("mlp", 30, 0, 2)
    assert data["machine"]
    model = BilinearModel.from_dict(data["fit"]["model"])
    assert model.unit == "s"
    assert data["fit"]["mean_error"] < 1e-6
    assert model.predict({"fc1": 300, "fc2": 100}) == pytest.approx(1e-6 + 1e-9 * 266_610, rel=1e-6)
    assert len((tmp_path / data["rows"]).read_text().splitlines()) == 31


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", "fit.csv"], 2, "does not end in .json"),
        (["--out", "fit.json", "--count", "3"], 2, "cannot determine"),
        (["--out", "fit.json", "--count", "20"], 1, "the runtime crashed"),
    ],
)
def test_command_fails_with_a_sentence(arguments, code, words, tmp_path, monkeypatch) -> None:
    def crashes(network, example, *, threads: int) -> Reading:
        raise BenchError("the runtime crashed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "onnx_reading", crashes)
    done = CliRunner().invoke(app, ["--net", "lenet", *arguments])
    assert done.exit_code == code
    assert words in done.output
    assert not (tmp_path / "fit.json").exists()
