"""The same seed gives the same run, and a run that was stopped goes on bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from ising_nets import compressed, conv_data
from torch.utils.data import DataLoader, TensorDataset

from energy_model.errors import StorageError
from passes.methods.ising import Ising, IsingPruning
from passes.methods.ising.candidates import Candidates
from transform.fingerprint import state_digest

# Seven steps an epoch, four epochs: the search ends in the middle of the third, or with the second.
MIDDLE, WITH_AN_EPOCH = 0.6, 0.5
SLOW = pytest.mark.slow


class Stop(BaseException):
    """Ends a run from outside."""


def traits(result):
    rows = [{k: v for k, v in row.items() if k != "milliseconds"} for row in result.history]
    return (
        state_digest(result.model),
        json.dumps(rows),
        json.dumps(result.certificate.to_dict()),
        [decision.to_dict() for decision in result.decisions],
    )


def watched(monkeypatch, stop=None):
    """Every step of the method, and an end after one of them."""
    steps, on_step = [], IsingPruning.on_step

    def spied(self, step, optimizer):
        on_step(self, step, optimizer)
        steps.append(step)
        if step == stop:
            raise Stop

    monkeypatch.setattr(IsingPruning, "on_step", spied)
    return steps


@pytest.mark.parametrize(
    ("share", "stop", "left", "search"),
    [
        (0.8, 9, 7, {"epochs": 2}),  # in the search
        pytest.param(MIDDLE, 10, 21, {}, marks=SLOW),
        pytest.param(MIDDLE, 16, 14, {"anneal": True, "energy": "combined"}, marks=SLOW),
        pytest.param(MIDDLE, 17, 14, {"search": "ratio-de"}, marks=SLOW),  # with the commit
        pytest.param(MIDDLE, 18, 14, {"search": "de+ls", "refresh": 3}, marks=SLOW),
        pytest.param(WITH_AN_EPOCH, 15, 14, {"energy": "ising"}, marks=SLOW),  # after it
        pytest.param(MIDDLE, 25, 7, {"importance": "taylor", "every": 2}, marks=SLOW),
        pytest.param(0.0, 10, 21, {"energy": "distill"}, marks=SLOW),  # searched before training
    ],
)
def test_a_stopped_run_goes_on(share, stop, left, search, tmp_path, monkeypatch):
    options = {"train": True, "epochs": search.get("epochs", 4)}
    search = {key: value for key, value in search.items() if key != "epochs"}
    options["search"] = {"search_share": share, "states": 4} | search
    whole = compressed(**options)
    with monkeypatch.context() as patch:
        watched(patch, stop)
        with pytest.raises(Stop):
            compressed(out=tmp_path, **options)
    steps = watched(monkeypatch)
    again = compressed(out=tmp_path, **options)
    assert len(steps) == left
    assert traits(again) == traits(whole)


@pytest.mark.parametrize("share", [0.0, MIDDLE])
def test_the_seed_decides(share):
    search = {"search_share": share, "states": 4}
    one, same, other = (
        compressed(train=True, epochs=1, search=search, seed=seed) for seed in (0, 0, 1)
    )
    assert traits(one) == traits(same)
    assert state_digest(one.model) != state_digest(other.model)


@pytest.mark.slow
def test_a_shuffled_loader_with_its_own_generator_goes_on(tmp_path, monkeypatch):
    x, y = (torch.cat(parts) for parts in zip(*conv_data(), strict=True))

    def loader():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator)

    options = {"train": True, "search": {"search_share": MIDDLE, "states": 4}}
    whole = compressed(data=loader(), **options)
    with monkeypatch.context() as patch:
        watched(patch, 18)
        with pytest.raises(Stop):
            compressed(data=loader(), out=tmp_path, **options)
    again = compressed(data=loader(), out=tmp_path, **options)
    assert traits(again) == traits(whole)


@pytest.mark.slow
def test_a_search_before_training_that_ends_elsewhere_is_told(tmp_path, monkeypatch):
    """As when a back end was chosen by the clock: its rounding may decide otherwise."""
    options = {"train": True, "epochs": 2, "search": {"search_share": 0.0, "states": 4}}
    with monkeypatch.context() as patch:
        watched(patch, 9)
        with pytest.raises(Stop):
            compressed(out=tmp_path, **options)
    outputs = Candidates.outputs

    def worse(self, population, call):
        return [-each for each in outputs(self, population, call)]

    monkeypatch.setattr(Candidates, "outputs", worse)
    with pytest.raises(StorageError, match="other channels"):
        compressed(out=tmp_path, **options)


def test_an_interrupted_search_keeps_its_back_end():
    config = Ising()
    candidates = Candidates(None, config)
    candidates.use("fold")
    assert candidates.backend == "fold"
    candidates.use("")
    assert candidates.backend == ""
