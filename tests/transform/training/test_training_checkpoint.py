"""Checkpoints: whole, of one run, and a typed error where they are damaged."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from energy_model.errors import StorageError
from transform.training.checkpoint import Checkpoints

STATE = {
    "epoch": 3,
    "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float64)},
    "moments": {0: {"step": torch.tensor(5.0), "buffer": None}, 1: {}},
    "best": [-math.inf, 0, None],
    "betas": (0.9, 0.999),
    "flags": [True, False],
    "text": "ä",
    "random": torch.arange(9, dtype=torch.uint8),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "checkpoints"
    Checkpoints(folder, "run").save(3, STATE)
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(intact, tmp_path / "checkpoints")


def refused(folder, match=None, run="run"):
    with pytest.raises(StorageError, match=match) as caught:
        Checkpoints(folder, run).load()
    assert caught.value.remedy


def test_what_is_saved_comes_back(folder):
    assert same(Checkpoints(folder, "run").load(), STATE)


def test_the_comparison_of_this_file_sees_a_difference():
    assert not same(STATE, STATE | {"betas": [0.9, 0.999]})
    assert not same(STATE, STATE | {"half": torch.tensor([1.5])})
    assert not same(STATE, STATE | {"epoch": 3.0})


def test_there_may_be_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere", "run").load() is None
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / "empty", "run").load() is None


def test_what_is_saved_does_not_change_afterwards(tmp_path):
    weights = torch.zeros(3)
    kept = Checkpoints(tmp_path / "c", "run")
    kept.save(1, {"weights": weights, "view": weights[:2]})
    weights += 1
    assert same(kept.load(), {"weights": torch.zeros(3), "view": torch.zeros(2)})


def test_the_last_one_wins_and_the_older_go(tmp_path):
    kept = Checkpoints(tmp_path / "c", "run")
    for epoch in (2, 9, 10, 100):
        kept.save(epoch, {"epoch": epoch})
        assert kept.load() == {"epoch": epoch}
        assert len(list(kept.folder.iterdir())) == 1


def test_what_a_kill_left_beside_them_is_ignored(folder):
    (folder / ".epoch-000004.abc.partial").mkdir()
    (folder / "epoch-4").mkdir()
    assert same(Checkpoints(folder, "run").load(), STATE)


def test_two_may_stand_side_by_side_after_a_kill(folder):
    later = shutil.copytree(folder / "epoch-000003", folder / "epoch-000007")
    description = json.loads((later / "state.json").read_text())
    assert description["run"] == "run"
    kept = Checkpoints(folder, "run")
    kept.save(8, STATE | {"epoch": 8})
    assert kept.load()["epoch"] == 8
    assert [path.name for path in folder.iterdir()] == ["epoch-000008"]


def test_clearing_removes_them_all(folder):
    kept = Checkpoints(folder, "run")
    kept.clear()
    assert not folder.exists()
    kept.clear()
    assert kept.load() is None


def test_those_of_another_run_are_refused(folder):
    refused(folder, match=r"checkpoints of another run", run="other")
    assert same(Checkpoints(folder, "run").load(), STATE)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / "epoch-000003" / name).unlink()
    refused(folder, match=name)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_truncated_file_is_noticed(folder, name, share):
    path = folder / "epoch-000003" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data)) - (share > 0.9)])
    refused(folder, match="damaged|another run")


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_in_the_tensors_is_noticed(folder, place, bit):
    path = folder / "epoch-000003" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    refused(folder, match=r"tensors\.safetensors: the file is damaged")


def test_a_hash_that_is_not_that_of_the_file_is_noticed(folder):
    path = folder / "epoch-000003" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    refused(folder, match="the file is damaged")


@pytest.mark.parametrize("value", [object(), {1.5: 2}, {None: 1}])
def test_what_cannot_be_written_is_refused_and_leaves_the_last(folder, value):
    with pytest.raises(StorageError):
        Checkpoints(folder, "run").save(4, {"value": value})
    assert same(Checkpoints(folder, "run").load(), STATE)
