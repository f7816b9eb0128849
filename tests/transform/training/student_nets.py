"""Small students, a teacher and data for the tests of training them together."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from training_runs import batches, seeded

from passes.inputs import Call
from passes.tracing.trace import trace
from transform.training.config import Distill, TrainConfig
from transform.training.students import Lesson, train_students

SEARCH = TrainConfig(
    epochs=10,
    optimizer="adam",
    lr=1e-2,
    weight_decay=5e-4,
    schedule="constant",
    distill=Distill(0.5, "kl"),
)


def net(width=16, seed=0, p=0.3, classes=3):
    """Linear, norm, ReLU, dropout, Linear; input `(N, 8)`."""

    def make():
        parts = nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(p)
        return nn.Sequential(*parts, nn.Linear(width, classes))

    return seeded(make, seed).eval()


def graph(model):
    """A traced model."""
    return trace(model, Call((torch.zeros(4, 8),)))


def student(width=16, **options):
    return graph(net(width, **options))


def teacher():
    return net(24, seed=5)


def lesson(**options):
    """What students share; 3 batches an epoch."""
    options = {
        "teacher": teacher(),
        "data": batches(),
        "valid": batches(seed=7),
        "config": SEARCH,
        "seed": 3,
        "bn_batches": 2,
        "chance": 1 / 3,
    } | options
    return Lesson(**options)


def together(shared, graphs, epochs=2, **options):
    return train_students(shared, graphs, epochs, **options)


def assert_same_state(first, second):
    """The same bits in weights and optimizer."""
    assert first.epochs == second.epochs
    assert list(first.model) == list(second.model)
    for name, tensor in first.model.items():
        assert torch.equal(tensor, second.model[name]), name
    assert first.optimizer["param_groups"] == second.optimizer["param_groups"]
    assert first.optimizer["state"].keys() == second.optimizer["state"].keys()
    for number, entry in first.optimizer["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, second.optimizer["state"][number][key]), (number, key)


def assert_same(first, second):
    """The same outcome but for the time."""
    assert first.failure is None and second.failure is None
    assert first.accuracy == second.accuracy
    assert_same_state(first.state, second.state)


@dataclass(frozen=True)
class Width:
    """The simplest genotype: how many hidden units."""

    width: int
    fault: str = ""

    def to_dict(self):
        return {"width": self.width, "fault": self.fault}

    @property
    def digest(self):
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def make_build():
    """Builds a student of its width, with its fault."""
    return build


def build(genotype):
    kind, _, where = genotype.fault.partition(":")
    if kind == "build":
        raise ValueError("there is no such layer")
    made = student(genotype.width, seed=genotype.width, classes=4 if kind == "shape" else 3)
    if kind == "die":
        made.module[2].register_forward_pre_hook(lambda *_: die(where))
    return made


def die(where):
    """Kill this process; once only, if a file is named."""
    if where and Path(where).exists():
        return
    if where:
        Path(where).touch()
    os.kill(os.getpid(), signal.SIGKILL)
