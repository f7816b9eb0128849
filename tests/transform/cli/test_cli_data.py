"""--data."""

from __future__ import annotations

import sys

import pytest
import torch

from energy_model.errors import ArgumentError
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


def test_digits_are_split_by_the_seed():
    data = load_data("digits")
    assert sum(len(y) for part in data for _, y in part) == 1797
    assert data.train[0][0].shape[1:] == (1, 8, 8)
    assert not torch.equal(load_data("digits", seed=1).train[0][0], data.train[0][0])


def test_fake_data_have_shape_and_classes():
    data = load_data("fake:1x28x28:10", seed=3)
    inputs, targets = data.train[0]
    assert inputs.shape == (64, 1, 28, 28)
    assert set(torch.cat([y for _, y in data.train]).tolist()) == set(range(10))
    assert (targets.dtype, targets.shape) == (torch.int64, (64,))
    assert torch.equal(load_data("fake:1x28x28:10", seed=3).train[0][0], inputs)
    assert not torch.equal(load_data("fake:1x28x28:10", seed=4).train[0][0], inputs)


def test_a_users_callable_gives_three_parts():
    assert load_data("cli_sources:three") == ([1], [2], None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cli_sources:two", r"returns 2 values, not \(train, valid, test\)"),
        ("cli_sources:nothing", "returns NoneType"),
        ("cli_sources:no_train", "returns no training data"),
        ("cli_sources:tree", "Did you mean three"),
        ("digit", "unknown data 'digit'. There are: digits .*fake:SHAPE:CLASSES"),
        ("fake:1x28x28", "is not fake:SHAPE:CLASSES"),
        ("fake:1x28x28:0", "is not fake:SHAPE:CLASSES"),
        ("fake:1x28x28:ten", "is not fake:SHAPE:CLASSES"),
        ("fake::10", "'' is not a shape"),
    ],
)
def test_bad_data_are_refused(spec, message):
    with pytest.raises(ArgumentError, match=message):
        load_data(spec)
