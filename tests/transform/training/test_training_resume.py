"""A run that was stopped goes on where it was, bit for bit; and only that run."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from training_loaders import LOADERS, Noisy
from training_runs import batches, digest, plain, rich, run, trained_rows

import transform
from energy_model.hardware import load_hardware
from transform import TrainConfig
from transform.fingerprint import state_digest
from transform.training.config import Distill

EPOCHS, STEPS = 5, 3
TRAIN = {"epochs": EPOCHS, "lr": 0.1}


class Stop(BaseException):
    """What a user who presses a key raises."""


def stopping(after=None):
    """The default loss, that stops the run after so many batches."""
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if after is not None and len(calls) > after:
            raise Stop
        return F.cross_entropy(outputs, targets)

    return loss


def stopped(out, after, **options):
    with pytest.raises(Stop):
        run(out=out, loss=stopping(after), **options)


@pytest.fixture
def unsaved(monkeypatch):
    """Without the files of a finished run, which take longer than the training."""
    monkeypatch.setattr(transform.Compressed, "save", lambda *args, **options: None)


def assert_resumes(out, make, after=7, **options):
    whole = run(data=make(), **options)
    stopped(out, after, data=make(), **options)
    assert len(list((out / "checkpoints").glob("epoch-*"))) == 1
    result = run(data=make(), out=out, **options)
    assert state_digest(result.model) == state_digest(whole.model)
    assert result.history == whole.history
    assert result.metrics == whole.metrics


@pytest.mark.spread(1)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("after", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_with_any_loader(loader, after, tmp_path, unsaved):
    assert_resumes(tmp_path / "out", LOADERS[loader], after, model=rich(), train=TRAIN)


OPTIONS = {
    "nesterov": {"nesterov": True},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "adadelta": {"optimizer": "adadelta", "lr": 1.0},
    "callable": {"optimizer": torch.optim.RMSprop, "lr": 0.01},
    "two groups": {"decay_norm_and_bias": False, "weight_decay": 0.01},
    "plateau": {"schedule": "plateau"},
    "table": {"schedule": {0: 0.1, 2.5: 0.05}, "warmup_epochs": 0.5},
    "distilled": {"distill": Distill(0.5, "kl")},
    "no dropout": {"dropout": 0.0},
    "mixed precision": {"amp": "bf16"},
    "accumulated": {"accumulate": 2},
    "cut": {"batches_per_epoch": 2},
    "rarely evaluated": {"eval_every": 2},
    "rarely saved": {"save_every": 2},
    "logged": {"log_every": 1},
    "last": {"select": "last"},
    "own seed": {"seed": 8},
}


EVERY = [
    pytest.param(name, marks=pytest.mark.slow if index % 2 else ())
    for index, name in enumerate(OPTIONS)
]


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", EVERY)
def test_with_any_configuration(name, tmp_path, unsaved):
    train = TrainConfig(**TRAIN | OPTIONS[name])
    options = {"model": rich(), "train": train, "valid": batches()}
    assert_resumes(tmp_path / "out", Noisy, **options)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "method",
    [
        transform.EnergyProjection(schedule="linear", interval=4, hold=0.1),
        transform.EnergyProjection(schedule="none", interval=100),
        transform.Magnitude(interval=4),
        transform.Magnitude(scope="layer", schedule="linear", interval=1),
    ],
    ids=str,
)
def test_with_any_method(method, tmp_path, unsaved):
    options = {"model": rich(), "train": TRAIN, "method": method, "valid": batches()}
    assert_resumes(tmp_path / "out", Noisy, **options)


def test_the_best_epoch_before_the_stop_is_not_forgotten(tmp_path, unsaved):
    class Once:
        """Best at its second evaluation: the first epoch of the first part."""

        def __init__(self, start=0):
            self.count = start

        def reset(self):
            self.count += 1

        def update(self, outputs, targets):
            pass

        def compute(self):
            return 1 / self.count

    method = transform.EnergyProjection(schedule="none")
    options = {"train": TRAIN, "valid": batches(), "method": method}
    first = digest(train={**TRAIN, "select": "best"}, valid=batches(), method=method, metric=Once())
    stopped(tmp_path / "out", 7, metric=Once(), **options)
    result = run(out=tmp_path / "out", metric=Once(50), **options)
    assert state_digest(result.model) == first
    last = options | {"train": TRAIN | {"select": "last"}}
    assert digest(metric=Once(), **last) != first


def test_finished_epochs_are_not_run_again(tmp_path, unsaved):
    stopped(tmp_path / "out", 7, train=TRAIN)
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return F.cross_entropy(outputs, targets)

    run(out=tmp_path / "out", loss=loss, train=TRAIN)
    assert len(calls) == (EPOCHS - 2) * STEPS


def test_a_stop_before_the_first_checkpoint_starts_anew(tmp_path, unsaved):
    stopped(tmp_path / "out", 2, train=TRAIN)
    assert not (tmp_path / "out").exists()
    assert state_digest(run(out=tmp_path / "out", train=TRAIN).model) == digest(train=TRAIN)


def test_stopped_again_and_again(tmp_path, unsaved):
    options = {"model": rich(), "train": TRAIN}
    for _ in range(EPOCHS - 1):
        stopped(tmp_path / "out", STEPS + 1, data=Noisy(), **options)
    result = run(data=Noisy(), out=tmp_path / "out", **options)
    assert state_digest(result.model) == digest(data=Noisy(), **options)


@pytest.mark.slow
def test_a_finished_folder_is_complete_and_refused(tmp_path):
    out = tmp_path / "out"
    stopped(out, 7, train=TRAIN)
    result = run(out=out, train=TRAIN)
    names = {path.name for path in out.iterdir()}
    assert names == {
        "compressed.json",
        "weights.safetensors",
        "report.txt",
        "model.onnx",
        "model.certificate.json",
    }
    loaded = transform.load(out, plain())
    assert state_digest(loaded.model) == state_digest(result.model)
    assert loaded.history == result.history
    assert len(trained_rows(loaded)) == EPOCHS
    with pytest.raises(transform.StorageError, match="exists already"):
        run(out=out, train=TRAIN)


OTHERS = {
    "budget": {"budget": "nonzeros<=40%"},
    "seed": {"seed": 1},
    "epochs": {"train": TRAIN | {"epochs": 6}},
    "optimizer": {"train": TRAIN | {"optimizer": "adam"}},
    "distillation": {"train": TRAIN | {"distill": 0.5}},
    "method": {"method": transform.Magnitude()},
    "interval": {"method": transform.EnergyProjection(interval=3)},
    "weights": {"model": plain(seed=3)},
}


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    out = tmp_path_factory.mktemp("half") / "out"
    stopped(out, 7, train=TRAIN)
    return out


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", OTHERS)
def test_the_checkpoints_of_another_run_are_refused(half_done, name):
    before = {p: p.read_bytes() for p in half_done.rglob("*") if p.is_file()}
    with pytest.raises(transform.StorageError, match="checkpoints of another run") as caught:
        run(out=half_done, **{"train": TRAIN} | OTHERS[name])
    assert "Choose another folder" in caught.value.remedy
    assert {p: p.read_bytes() for p in half_done.rglob("*") if p.is_file()} == before


def test_another_accelerator_is_another_run(half_done):
    profile = load_hardware("eyeriss").to_dict()
    key = next(name for name, value in profile.items() if type(value) is int and value > 100)
    with pytest.raises(transform.StorageError, match="another run"):
        run(out=half_done, train=TRAIN, hardware=profile | {key: profile[key] // 2})


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(transform.StorageError, match="not empty"):
        run(out=tmp_path / "out", train=TRAIN)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
