"""The speed of archives, measured on a model so small that only the numbers' shape matters."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from bench.archive_speed import (
    CASES,
    codes,
    counted,
    few_levels,
    main,
    model_bytes,
    weight_count,
)
from bench.speed.subjects import Subject
from bench.zoo.digits_cnn import digits_cnn
from export.archive import pack, unpack_bytes

SMALL = Subject("small", "bench.zoo.digits_cnn:digits_cnn", ())


def normal(shape=(40, 50)):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_tenth_of_the_weights_is_kept_on_16_levels():
    weight = normal()
    found = few_levels(weight)
    assert np.count_nonzero(found) == pytest.approx(0.1 * weight.size, abs=2)
    assert len(np.unique(found)) <= 17
    assert np.all(np.sign(found) * weight >= 0)


def test_codes_have_eight_bits():
    found = codes(normal())
    assert found.dtype == np.int8
    assert np.abs(found).max() == 127


def test_weights_without_any_size_do_not_divide_by_it():
    zero = np.zeros((2, 2), np.float32)
    assert not few_levels(zero).any()
    assert not codes(zero).any()


@pytest.mark.parametrize("change", CASES.values(), ids=list(CASES))
def test_the_file_holds_the_parameters(change):
    model = model_bytes(SMALL, change)
    expected = [tuple(parameter.shape) for parameter in digits_cnn().parameters()]
    tensors = onnx.load_model_from_string(model).graph.initializer
    assert [tuple(tensor.dims) for tensor in tensors] == expected
    assert weight_count(model) == sum(map(np.prod, expected))


def test_the_time_of_the_processor_is_kept():
    spent = []
    assert counted(lambda: 7, spent)() == 7
    assert len(spent) == 1
    assert spent[0] >= 0


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path):
    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "below" / "speed.json"
    arguments = ["--rounds", "1", "--factory", SMALL.factory, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == list(CASES)
    for row, change in zip(rows, CASES.values(), strict=True):
        archive = pack(model_bytes(SMALL, change))
        assert row["archive"] == len(archive)
        assert row["bytes"] == len(unpack_bytes(archive))
        assert row["pack_mb_s"] > 0
        assert row["pack_cpu_mb_s"] > 0
        assert f"| {row['name']} | {row['bytes']:,} | {row['archive']:,} |" in result.output
