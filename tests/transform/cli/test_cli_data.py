"""--data."""

from __future__ import annotations

import sys

import pytest
import torch

from energy_model.errors import ArgumentError, StorageError
from transform.cli.data import load_data

MODULE = """
def three(): return [1], [2], None
def two(): return [1], [2]
def nothing(): return None
def no_train(): return None, [2], [3]
"""


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    (tmp_path / "cli_sources.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("cli_sources", None)


def first(data):
    return next(iter(data))


def test_the_seed_orders_digits_and_leaves_their_split():
    data, other = load_data("digits"), load_data("digits", seed=1)
    assert sum(len(y) for part in data for _, y in part) == 1797
    assert first(data.train)[0].shape == (64, 1, 8, 8)
    assert not torch.equal(first(other.train)[0], first(data.train)[0])
    assert torch.equal(first(other.valid)[0], first(data.valid)[0])


def test_options_of_a_spec_win():
    assert first(load_data("digits:batch=7").train)[0].shape == (7, 1, 8, 8)


def test_the_root_is_where_files_are_looked_for(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="named-root"):
        load_data("mnist", root=tmp_path / "named-root")
    monkeypatch.setenv("TRANSFORM_DATA", str(tmp_path / "from-environment"))
    with pytest.raises(StorageError, match="from-environment"):
        load_data("mnist")
    with pytest.raises(StorageError, match="named-root"):
        load_data("mnist", root=tmp_path / "named-root")


def test_fake_data_have_shape_and_classes():
    data = load_data("fake:1x28x28:10", seed=3)
    inputs, targets = first(data.train)
    assert inputs.shape == (64, 1, 28, 28)
    assert set(torch.cat([y for _, y in data.train]).tolist()) == set(range(10))
    assert (targets.dtype, targets.shape) == (torch.int64, (64,))
    assert torch.equal(first(load_data("fake:1x28x28:10", seed=3).train)[0], inputs)
    assert not torch.equal(first(load_data("fake:1x28x28:10", seed=4).train)[0], inputs)


def test_a_users_callable_gives_three_parts():
    assert load_data("cli_sources:three") == ([1], [2], None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cli_sources:two", r"returns 2 values, not \(train, valid, test\)"),
        ("cli_sources:nothing", "returns NoneType"),
        ("cli_sources:no_train", "returns None as train"),
        ("cli_sources:tree", "Did you mean three"),
        ("digit", r"unknown data 'digit'. Did you mean digits\? .*fake:SHAPE:CLASSES"),
        ("fake:1x28x28", "is not fake:SHAPE:CLASSES"),
        ("fake:1x28x28:0", "is not fake:SHAPE:CLASSES"),
        ("fake:1x28x28:ten", "is not fake:SHAPE:CLASSES"),
        ("fake::10", "is not fake:SHAPE:CLASSES"),
    ],
)
def test_bad_data_are_refused(spec, message):
    with pytest.raises(ArgumentError, match=message):
        load_data(spec)
