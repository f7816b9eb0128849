"""A run with input masks that was stopped goes on bit for bit, in every phase and between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from masked_runs import EPOCHS, STEPS, Script, conv_net, image_batches, masked_run
from training_loaders import Noisy

import transform
from passes.methods.energy_projection import WeightedProjection
from transform.fingerprint import state_digest

# Trainings that are stopped and resumed: `make test-slow` runs them.
pytestmark = pytest.mark.slow

PHASE = EPOCHS * STEPS
PROGRAM = Path(__file__).with_name("killed_masks.py")


class Stop(BaseException):
    """Ends a run from outside."""


class Images(Noisy):
    """Changed at random by all three global generators; ends the run after so many batches."""

    def __init__(self, after=None):
        self.after, self.served = after, 0

    def __iter__(self):
        for (x, y), (noise, _) in zip(image_batches(), super().__iter__(), strict=True):
            if self.served == self.after:
                raise Stop
            self.served += 1
            yield x + 0.1 * noise[:, :1, None, None], y


@pytest.fixture(autouse=True)
def unsaved(monkeypatch):
    """Without the files of a finished run, which take longer than the training."""
    monkeypatch.setattr(transform.Compressed, "save", lambda *args, **options: None)


def assert_same(result, whole):
    assert state_digest(result.model) == state_digest(whole.model)
    assert result.history == whole.history
    assert result.metrics == whole.metrics
    assert result.certificate == whole.certificate
    assert result.decisions == whole.decisions


OPTIONS = {
    "weights": {"start": "weights", "hold": 0.0, "interval": 1},
    "masks": {"start": "masks", "mask_cost": "count", "mask_score": "value"},
    "adam": {"train": {"optimizer": "adam", "lr": 0.01, "save_every": 2}},
    "mixed precision": {"train": {"amp": "bf16"}},
}
WHOLE = {}


def whole_run(name):
    if name not in WHOLE:
        WHOLE[name] = masked_run(data=Images(), **OPTIONS[name])
    return WHOLE[name]


STOPS = [
    *[("weights", n) for n in (1, 4, 6, 10, 12, 16, 18, 22, 24, 28)],
    *[("masks", n) for n in (4, 6, 10, 16)],
    *[("adam", n) for n in (9, 28)],
    ("mixed precision", 10),
]


@pytest.mark.parametrize(("name", "after"), STOPS)
def test_stopped_in_every_phase_and_between(name, after, tmp_path):
    with pytest.raises(Stop):
        masked_run(data=Images(after), out=tmp_path / "out", **OPTIONS[name])
    rest = Images()
    assert_same(masked_run(data=rest, out=tmp_path / "out", **OPTIONS[name]), whole_run(name))
    # Nothing is run again but the epochs since the last checkpoint.
    every = OPTIONS[name].get("train", {}).get("save_every", 1)
    total = (4 if name == "masks" else 5) * PHASE
    assert rest.served == total - after // (STEPS * every) * STEPS * every


@pytest.mark.parametrize("number", [0, 1])
def test_stopped_while_a_phase_ends(number, tmp_path, monkeypatch):
    """Masks are rounded and counted, or inputs masked for nothing, and then nothing is saved."""
    original, calls = WeightedProjection.on_phase_end, []

    def ending(method, phase):
        original(method, phase)
        calls.append(phase.name)
        if len(calls) == number + 1:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(WeightedProjection, "on_phase_end", ending)
        with pytest.raises(Stop):
            masked_run(data=Images(), out=tmp_path / "out", **OPTIONS["weights"])
    result = masked_run(data=Images(), out=tmp_path / "out", **OPTIONS["weights"])
    assert_same(result, whole_run("weights"))


def test_stopped_again_and_again(tmp_path):
    for _ in range(5 * EPOCHS - 1):
        with pytest.raises(Stop):
            masked_run(data=Images(STEPS + 1), out=tmp_path / "out", **OPTIONS["weights"])
    result = masked_run(data=Images(), out=tmp_path / "out", **OPTIONS["weights"])
    assert_same(result, whole_run("weights"))


def test_stopped_after_training_it_only_finishes(tmp_path, monkeypatch):
    def finalize(*args):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(WeightedProjection, "finalize", finalize)
        with pytest.raises(Stop):
            masked_run(data=Images(), out=tmp_path / "out", **OPTIONS["weights"])
    rest = Images()
    result = masked_run(data=rest, out=tmp_path / "out", **OPTIONS["weights"])
    assert rest.served == 0
    assert_same(result, whole_run("weights"))


def test_the_decision_to_stop_early_survives(tmp_path):
    values = [0.0, *[0.1, 0.2], *[0.9, 0.9], *[0.3, 0.3], *[0.9, 0.9], *[0.1, 0.2], 0.0]
    options = {"stop_early": True, "mask_keep": (0.9, 0.8, 0.7, 0.6), "schedule": "none"}
    whole = masked_run(data=Images(), metric=Script(*values), **options)
    # Five phases, stopped in the fifth; the metric before training is measured again.
    with pytest.raises(Stop):
        masked_run(
            data=Images(4 * PHASE + 1), out=tmp_path / "out", metric=Script(*values), **options
        )
    left = Script(0.0, *values[9:])
    rest = Images()
    result = masked_run(data=rest, out=tmp_path / "out", metric=left, **options)
    assert rest.served == PHASE
    assert_same(result, whole)


OTHERS = [
    {"mask_keep": (0.8, 0.7)},
    {"mask_lr": 0.06},
    {"mask_cost": "count"},
    {"mask_score": "value"},
    {"start": "masks"},
    {"stop_early": True},
]


def test_other_masks_are_another_run(tmp_path):
    with pytest.raises(Stop):
        masked_run(data=Images(PHASE + 4), out=tmp_path / "out")
    for options in OTHERS:
        with pytest.raises(transform.StorageError, match="checkpoints of another run"):
            masked_run(data=Images(), out=tmp_path / "out", **options)


def test_the_random_state_of_the_caller_is_not_drawn_from():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    masked_run(data=Images(), model=conv_net(), **OPTIONS["masks"])
    assert torch.rand(1) == expected


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_a_phase_of_masks_and_of_weights(tmp_path):
    numbers = [STEPS + 2, PHASE + STEPS + 1]
    process = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), *map(str, numbers)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert [row["killed"] for row in answer["rows"]] == [{"signal": signal.SIGKILL}] * 2
    assert [row["left"] for row in answer["rows"]] == [["epoch-000001"], ["epoch-000003"]]
    for row in answer["rows"]:
        assert row["again"] == answer["whole"]
