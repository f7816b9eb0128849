"""Weights of candidates beside the record: the same bits again, and gone when not needed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from energy_model.errors import StorageError
from passes.methods.embedding.jobs import TrainingState
from passes.methods.embedding.weights import CandidateWeights

FIRST, SECOND = "a" * 64, "b" * 64


def state(epochs=3, seed=0, optimizer="Adam"):
    """After a few steps of an optimizer, with tied weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        stepping = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)
        for _ in range(epochs):
            stepping.zero_grad()
            model(torch.randn(6, 4)).square().sum().backward()
            stepping.step()
    return model, stepping, TrainingState(epochs, model.state_dict(), stepping.state_dict())


@pytest.fixture
def store(tmp_path):
    return CandidateWeights(tmp_path / "weights")


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adadelta"])
def test_training_goes_on_with_the_same_bits(store, optimizer):
    model, stepping, saved = state(optimizer=optimizer)
    store.save(FIRST, 1, saved)
    found = store.load(FIRST, 1)
    assert found.epochs == 3
    fresh, other, _ = state(0, seed=9, optimizer=optimizer)
    fresh.load_state_dict(dict(found.model))
    other.load_state_dict(dict(found.optimizer))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for net, steps in ((model, stepping), (fresh, other)):
        steps.zero_grad()
        net(x).square().sum().backward()
        steps.step()
    for (name, a), b in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_later_save_replaces(store):
    store.save(FIRST, 0, state(1)[2])
    store.save(FIRST, 0, state(2)[2])
    assert store.load(FIRST, 0).epochs == 2
    assert store.known() == {(FIRST, 0)}


def test_what_is_not_needed_goes(store):
    assert store.known() == frozenset()
    store.keep([])
    for digest, rung in ((FIRST, 0), (FIRST, 1), (SECOND, 0), (SECOND, 2)):
        store.save(digest, rung, state(1)[2])
    # As a kill leaves it.
    (store.folder / f".{FIRST}-3.0123456789ab.partial").mkdir()
    store.keep([(FIRST, 1), (SECOND, 2), ("c" * 64, 0)])
    assert store.known() == {(FIRST, 1), (SECOND, 2)}
    assert sorted(p.name for p in store.folder.iterdir()) == [f"{FIRST}-1", f"{SECOND}-2"]
    assert store.load(FIRST, 1).epochs == 1


def test_what_is_missing_or_damaged(store):
    with pytest.raises(StorageError, match="missing"):
        store.load(FIRST, 0)
    store.save(FIRST, 0, state(1)[2])
    tensors = store.folder / f"{FIRST}-0" / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + b"\x00")
    with pytest.raises(StorageError, match="SHA-256"):
        store.load(FIRST, 0)
    tensors.write_bytes(whole)
    about = store.folder / f"{FIRST}-0" / "state.json"
    described = json.loads(about.read_text())
    for key in ("epochs", "state"):
        about.write_text(json.dumps({k: v for k, v in described.items() if k != key}))
        with pytest.raises(StorageError, match="damaged"):
            store.load(FIRST, 0)


def test_what_cannot_be_written(store):
    bad = TrainingState(0, {}, {"state": {}, "param_groups": [{"lr": object()}]})
    with pytest.raises(StorageError, match="cannot be written"):
        store.save(FIRST, 0, bad)
    assert store.known() == frozenset()
