"""Every field of the configurations changes the run."""

from __future__ import annotations

from dataclasses import fields

import pytest
from training_runs import Falling, batches, digest, rich, run, trained_rows

import transform
from transform import TrainConfig
from transform.fingerprint import state_digest
from transform.training.checkpoint import Checkpoints
from transform.training.config import Distill

# A training for every field: `make test-slow` runs them.
pytestmark = pytest.mark.slow

BASE = {"epochs": 4, "lr": 0.05, "seed": 5}
CHANGED = {
    "epochs": 3,
    "optimizer": "adam",
    "lr": 0.02,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.1,
    "decay_norm_and_bias": False,
    "schedule": "constant",
    "min_lr": 0.01,
    "warmup_epochs": 0.5,
    "clip_grad": 0.01,
    "label_smoothing": 0.1,
    "distill": 0.5,
    "dropout": 0.0,
    "amp": "bf16",
    "accumulate": 2,
    "batches_per_epoch": 2,
    "select": "last",
    "seed": 6,
}
# These do not change the result, but what is said and kept on the way.
OBSERVED = {"eval_every", "log_every", "save_every"}


def state(method=None, **train):
    """The result of a run whose best epoch is its first."""
    method = method or transform.EnergyProjection(schedule="none", interval=2)
    return digest(
        model=rich(), train=BASE | train, valid=batches(), metric=Falling(), method=method
    )


@pytest.fixture(scope="module")
def base():
    return state()


def test_no_field_is_forgotten():
    assert set(CHANGED) | OBSERVED == {field.name for field in fields(TrainConfig)}
    assert not set(CHANGED) & OBSERVED


@pytest.mark.parametrize("name", CHANGED)
def test_a_field_changes_the_result(base, name):
    assert state(**{name: CHANGED[name]}) != base


def test_what_is_only_observed_changes_nothing(base):
    assert state() == base
    assert state(log_every=1, save_every=2) == base


@pytest.mark.parametrize(
    ("change", "against"),
    [
        ({"weight": 0.2}, {}),
        ({"kind": "kl"}, {}),
        ({"kind": "kl", "temperature": 2.0}, {"kind": "kl"}),
    ],
)
def test_every_field_of_distillation_changes_the_result(change, against):
    assert state(distill=Distill(**change)) != state(distill=Distill(**against))


METHOD = {"hold": 0.6, "interval": 3, "schedule": "linear", "min_per_layer": 30}


@pytest.mark.parametrize("name", [*METHOD, "min_density"])
def test_every_field_of_the_schedule_changes_the_result(name):
    own = {"hold": 0.2, "interval": 2, "schedule": "geometric"}
    change = METHOD | {"min_density": 0.48}
    budget = {"budget": "nonzeros<=49%", "model": rich(), "train": BASE | {"select": "last"}}
    results = [
        digest(method=transform.EnergyProjection(**options), **budget)
        for options in (own, own | {name: change[name]})
    ]
    assert results[0] != results[1]


def test_a_seed_of_its_own_comes_before_that_of_the_call():
    own, outer = ({"epochs": 1, "lr": 0.05, "seed": seed} for seed in (3, None))
    assert digest(model=rich(), train=own, seed=9) == digest(model=rich(), train=outer, seed=3)
    assert digest(model=rich(), train=own, seed=9) != digest(model=rich(), train=outer, seed=9)


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_evaluations_in_the_history(every, epochs):
    rows = trained_rows(run(train={"epochs": 5, "eval_every": every}, valid=batches()))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows if "metric" in row] == epochs
    assert all(("within" in row) == ("metric" in row) for row in rows)


def test_without_validation_nothing_is_evaluated():
    rows = trained_rows(run())
    assert [sorted(row) for row in rows] == [["epoch", "event", "loss", "lr", "step"]] * 2


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [3, 6]), (1, [1, 2, 3, 3, 4, 5, 6, 6]), (2, [2, 3, 5, 6])]
)
def test_rows_within_an_epoch(every, steps):
    rows = trained_rows(run(train={"epochs": 2, "log_every": every}))
    assert [row["step"] for row in rows] == steps


def test_rows_within_an_epoch_are_counted_in_batches_not_in_steps():
    rows = trained_rows(run(train={"epochs": 1, "log_every": 1, "accumulate": 2}))
    assert [row["step"] for row in rows] == [0, 1, 2, 2]


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_checkpoints_on_the_way(every, epochs, tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save

    def noted(self, epoch, state):
        save(self, epoch, state)
        saved.append(epoch)
        assert [p.name for p in self.folder.iterdir()] == [f"epoch-{epoch:06d}"]

    monkeypatch.setattr(Checkpoints, "save", noted)
    # Half way is enough: what is written at the end of a run is not of interest here.
    monkeypatch.setattr(transform.Compressed, "save", lambda *args, **options: None)
    run(train={"epochs": 5, "save_every": every}, out=tmp_path / "out")
    assert saved == epochs


def test_the_result_of_a_run_is_that_of_its_parts():
    """The digest that the tests above compare tells weights apart."""
    model = rich()
    before = state_digest(model)
    model[0].weight.data[0, 0] += 1e-6
    assert state_digest(model) != before
