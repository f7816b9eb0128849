"""What finished runs left: read as `transform.load` reads it, and damage that is told."""

from __future__ import annotations

import json

import pytest
import torch

import transform
from bench.saved_runs import checked_curve, find_run, saved_costs, saved_curve
from bench.zoo import digits_batches, digits_cnn
from energy_model.errors import ArgumentError, StorageError
from transform import TrainConfig
from transform.training.plain import train_plain


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    train, valid, _ = digits_batches()
    torch.manual_seed(0)
    config = TrainConfig(epochs=2, batches_per_epoch=1)
    options = {"valid": valid, "train": config, "out": folder, "progress": "none"}
    return folder, transform.compress(digits_cnn(), "energy<=30%", train, **options)


@pytest.mark.slow
def test_costs_and_curve_are_those_of_the_result(compressed):
    folder, result = compressed
    path = find_run(folder)
    assert saved_costs(path) == (result.costs.before, result.costs.after)
    rows = [row for row in result.history if "epoch" in row]
    assert saved_curve(path) == [[r["epoch"], r["loss"], r["metric"], r["lr"]] for r in rows]
    assert len(rows) == 2


@pytest.mark.slow
def test_a_trained_model_has_a_curve_and_no_costs(tmp_path):
    train, valid, _ = digits_batches()
    config = TrainConfig(epochs=2, batches_per_epoch=1)
    trained = train_plain(
        digits_cnn(), train, config, valid=valid, out=tmp_path / "run", progress="none"
    )
    path = find_run(tmp_path / "run")
    assert saved_costs(path) is None
    assert [row[1] for row in saved_curve(path)] == [row["loss"] for row in trained.history]


def test_a_run_is_found_in_a_cell_too(compressed, tmp_path):
    folder, _ = compressed
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "compressed").symlink_to(folder)
    assert find_run(tmp_path / "cell") == tmp_path / "cell" / "compressed" / "compressed.json"
    for nothing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageError, match="there is no finished run"):
            find_run(nothing)


@pytest.mark.parametrize(
    ("reader", "damage"),
    [
        (saved_costs, {"version": 2}),
        (saved_costs, {"format": "other"}),
        (saved_costs, {"costs": None}),
        (saved_costs, {"costs": {"before": {}}}),
        (saved_costs, {"costs": {"before": {}, "after": {}}}),
        (saved_costs, {"costs": {"before": {"rows": 3, "hardware": {}}, "after": 3}}),
        (saved_curve, {"version": 2}),
        (saved_curve, {"history": None}),
        (saved_curve, {"history": [3]}),
        (saved_curve, {"history": [{"epoch": 1, "loss": "low"}]}),
    ],
)
def test_damage_is_told(compressed, tmp_path, reader, damage):
    folder, _ = compressed
    values = json.loads((folder / "compressed.json").read_bytes())
    path = tmp_path / "compressed.json"
    path.write_text(json.dumps(values | damage))
    with pytest.raises(StorageError, match="this is no finished run"):
        reader(path)


@pytest.mark.parametrize(
    "rows", [None, 3, {}, [3], [[1, 2, 3]], [[1, 2.0, None, "x"]], [[None, 2.0, None, None]]]
)
def test_rows_that_are_no_curve_are_refused(rows):
    assert checked_curve([[1, 2.0, None, None]], "here") == [[1, 2.0, None, None]]
    with pytest.raises(ArgumentError, match="here: the curve is no rows"):
        checked_curve(rows, "here")
