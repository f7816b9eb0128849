"""The loop against a plain torch loop, and what it promises besides."""

from __future__ import annotations

import copy
import math
import os
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import (
    Falling,
    Recorded,
    batches,
    digest,
    examples,
    nonzeros,
    plain,
    reference,
    rich,
    run,
    seeded,
    trained_rows,
)

import transform
from transform import TrainConfig
from transform.fingerprint import state_digest
from transform.training.config import Distill
from transform.training.steps import total_steps

ALL = "nonzeros<=100%"
CONFIGS = [
    {},
    {"nesterov": True, "momentum": 0.5},
    {"momentum": 0.0, "weight_decay": 0.1},
    {"weight_decay": 0.1, "decay_norm_and_bias": False},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    {"optimizer": "adadelta", "lr": 1.0},
    {"optimizer": torch.optim.RMSprop, "lr": 0.01},
    {"clip_grad": 0.05},
    {"label_smoothing": 0.2},
    {"accumulate": 2},
    {"accumulate": 5},
    {"batches_per_epoch": 2},
    {"schedule": "step"},
    {"schedule": "exponential", "min_lr": 0.01},
    {"schedule": {0: 0.1, 1: 0.01}},
    {"warmup_epochs": 1.5},
    {"distill": 0.3},
    {"distill": 1.0},
    {"distill": Distill(0.7, "kl", 2.0)},
]


def assert_same(model, other, **tolerance):
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.spread(1)
@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_without_a_budget_it_is_plain_training(options):
    config = TrainConfig(**{"epochs": 3, "lr": 0.1} | options)
    teacher = plain(seed=4)
    expected = reference(plain(), batches(), config, teacher)
    result = run(train=config, budget=ALL, teacher=teacher)
    assert_same(result.model, expected, rtol=1e-4, atol=1e-6)
    moved = (result.model[0].weight - plain()[0].weight).detach().abs().max()
    assert float(moved) > 1e-3


def test_the_reference_notices_a_difference():
    expected = reference(plain(), batches(), TrainConfig(epochs=3, lr=0.1))
    result = run(train=TrainConfig(epochs=3, lr=0.101), budget=ALL)
    with pytest.raises(AssertionError):
        assert_same(result.model, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_accumulated_batches_are_one_large_batch(k):
    train = {"epochs": 3, "lr": 0.1, "schedule": "constant"}
    parts = run(data=batches(4), train=train | {"accumulate": k}, budget=ALL)
    whole = run(data=batches(4 * k), train=train, budget=ALL)
    assert_same(parts.model, whole.model, rtol=1e-5, atol=1e-6)
    assert trained_rows(parts)[-1]["step"] == trained_rows(whole)[-1]["step"]


@pytest.mark.spread(1)
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4), (3, 2), (7, 2)])
def test_the_steps_are_counted_before_and_as_they_happen(accumulate, steps):
    config = TrainConfig(epochs=2, accumulate=accumulate)
    assert total_steps(batches(), config) == steps
    assert trained_rows(run(train=config))[-1]["step"] == steps


def moved_by(**options):
    """How far one step moves all parameters together."""
    train = {"epochs": 1, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0} | options
    model = run(data=batches(24), train=train, budget=ALL).model
    pairs = zip(model.state_dict().values(), plain().state_dict().values(), strict=True)
    return math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs))


def test_the_gradient_is_clipped_to_its_norm():
    free = moved_by()
    assert free > 0.1
    assert moved_by(clip_grad=0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved_by(clip_grad=free * 2) == pytest.approx(free)


class Watched(nn.Module):
    """A teacher that notes how it is called; shared by its copies."""

    seen: ClassVar[list[tuple[bool, bool, bool]]] = []

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x)
        self.seen.append((self.training, out.requires_grad, torch.is_grad_enabled()))
        return out


def test_the_teacher_stays_in_evaluation_and_learns_nothing():
    Watched.seen.clear()
    teacher = Watched(rich(seed=7)).train()
    before = state_digest(teacher)
    run(model=rich(), train={"epochs": 2, "lr": 0.1, "distill": 0.5}, teacher=teacher)
    assert Watched.seen == [(False, False, False)] * 6
    assert state_digest(teacher) == before
    assert teacher.training
    assert teacher.inner[1].training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_the_original_is_the_default_teacher():
    train = {"epochs": 2, "lr": 0.1, "distill": 0.5}
    taught = digest(train=train)
    assert taught == digest(train=train, teacher="original") == digest(train=train, teacher=plain())
    assert taught != digest(train=train, teacher=plain(seed=9))


@pytest.mark.parametrize("teacher", ["someone", 3])
def test_another_teacher_is_refused(teacher):
    with pytest.raises(transform.ArgumentError, match="is no teacher"):
        run(train={"epochs": 1, "distill": 0.5}, teacher=teacher)


def test_dropout_is_overridden_while_training_and_put_back():
    train = {"epochs": 2, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "dropout": 1.0}
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 9), nn.Dropout(0.25), nn.Linear(9, 3)))
    found = run(model=model, train=train, budget=ALL).model
    # Nothing passes the dropout, so only the last bias can be learnt.
    assert torch.equal(found[0].weight, model[0].weight)
    assert torch.equal(found[2].weight, model[2].weight)
    assert not torch.equal(found[2].bias, model[2].bias)
    assert found[1].p == model[1].p == 0.25


def test_dropout_zero_is_training_without_dropout():
    train = {"epochs": 2, "lr": 0.1}
    expected = digest(model=rich(p=0.0), train=train)
    assert digest(model=rich(p=0.5), train=train | {"dropout": 0.0}) == expected
    assert digest(model=rich(p=0.5), train=train) != expected


@pytest.mark.slow
def test_mixed_precision_leaves_an_ordinary_model(tmp_path):
    result = run(train={"epochs": 2, "lr": 0.1, "amp": "bf16"}, out=tmp_path / "out")
    x, _ = examples()
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert result.model(x).dtype is torch.float32
    loaded = transform.load(tmp_path / "out", plain())
    assert torch.equal(loaded.model(x), result.model(x))


def test_mixed_precision_is_near_full_precision():
    full = run(train={"epochs": 2, "lr": 0.05}, budget=ALL).model
    mixed = run(train={"epochs": 2, "lr": 0.05, "amp": "bf16"}, budget=ALL).model
    assert_same(mixed, full, rtol=0, atol=0.01)


@pytest.mark.spread(1)
@pytest.mark.parametrize(("limit", "served"), [(None, [0, 1, 2]), (2, [0, 1]), (9, [0, 1, 2])])
def test_an_epoch_has_so_many_batches(limit, served):
    data = Recorded(batches())
    config = TrainConfig(epochs=2, batches_per_epoch=limit)
    result = run(data=data, train=config)
    assert data.served[-2 * len(served) :] == served * 2
    assert trained_rows(result)[-1]["step"] == 2 * len(served)


def test_the_best_epoch_is_selected_not_the_last():
    free = transform.EnergyProjection(schedule="none", interval=1)
    outputs, rows = {}, {}
    for select in ("best", "last"):
        metric = Falling()
        train = {"epochs": 4, "lr": 0.1, "select": select}
        result = run(train=train, valid=batches(24), metric=metric, method=free)
        # Evaluations: before, the four epochs, after.
        seen = [torch.cat(each) for each in metric.seen]
        assert len(seen) == 6
        outputs[select], rows[select] = seen, trained_rows(result)
    best, last = outputs["best"], outputs["last"]
    torch.testing.assert_close(best[5], best[1])
    torch.testing.assert_close(last[5], last[4])
    assert not torch.allclose(best[1], best[4], atol=1e-3)
    assert [row["metric"] for row in rows["best"]] == [1 / 2, 1 / 3, 1 / 4, 1 / 5]


def test_only_epochs_within_budget_are_selected():
    metric = Falling()
    method = transform.EnergyProjection(interval=1, hold=0.5)
    train = {"epochs": 6, "lr": 0.1}
    result = run(train=train, valid=batches(24), metric=metric, method=method)
    rows = trained_rows(result)
    assert [row["within"] for row in rows] == [False, False, True, True, True, True]
    assert [row["metric"] for row in rows] == sorted((r["metric"] for r in rows), reverse=True)
    torch.testing.assert_close(metric.seen[-1][0], metric.seen[3][0])
    assert nonzeros(result.model) <= 88


def test_of_equal_epochs_the_first_is_selected():
    valid, seen = batches(24), []

    def metric(outputs, targets):
        seen.append(outputs.clone())
        return 0.5

    method = transform.EnergyProjection(schedule="none", interval=1)
    run(train={"epochs": 3, "lr": 0.1}, valid=valid, metric=metric, method=method)
    torch.testing.assert_close(seen[-1], seen[1])


@pytest.mark.slow
def test_training_improves_on_one_shot():
    x, y = examples(240)
    data = list(zip(x.split(16), y.split(16), strict=True))
    base = run(model=plain(), data=data, train={"epochs": 20, "lr": 0.1}, budget=ALL).model
    share = {"budget": "nonzeros<=8%", "data": data, "valid": data, "model": base}
    trained = run(train={"epochs": 10, "lr": 0.1}, **share)
    shot = run(train=False, **share)
    assert trained.metrics["before"] > 0.85
    assert trained.metrics["after"] > shot.metrics["after"]


def test_the_callers_model_and_state_are_untouched():
    model = rich().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    before, flags = state_digest(model), [m.training for m in model.modules()]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 -- the global state is what is watched
    run(model=model, train={"epochs": 2, "lr": 0.1, "dropout": 0.5, "distill": 0.5})
    drawn = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    assert state_digest(model) == before
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert model[3].p == 0.2
    after = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
    assert after == environment
    assert torch.get_num_threads() == 1


def test_what_its_author_froze_stays_frozen():
    model = rich().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    found = run(model=model, train={"epochs": 2, "lr": 0.1}, keep_shapes=True).model
    assert torch.equal(found[1].running_mean, model[1].running_mean)
    assert torch.equal(found[0].bias, model[0].bias)
    moving = run(model=rich().eval(), train={"epochs": 2, "lr": 0.1}, keep_shapes=True).model
    assert not torch.equal(moving[1].running_mean, model[1].running_mean)
    assert not moving.training


def test_a_copy_of_a_model_trains_alike():
    model = rich()
    assert digest(model=model) == digest(model=copy.deepcopy(model))
