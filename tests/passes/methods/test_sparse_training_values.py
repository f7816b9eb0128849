"""What sparse training does to values: new ones, penalties, and exact zeros elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from sparse_training_runs import (
    BATCHES,
    ROW_BATCHES,
    conv_net,
    nonzeros,
    row_net,
    trained,
    watched,
    weights_of,
)
from torch import nn

from energy_model.errors import TrainingError
from passes.dynamic.engine import RewireEngine
from passes.rewrite.masks import WatchedMask

MOVING = ["set_uniform", "dsr_exact", "rigl", "dsr_plus"]


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_where_weights_grow(grow, monkeypatch):
    seen = watched(monkeypatch)
    trained("nonzeros<=20%", rule="dsr_exact", grow=grow, share=0.3)
    assert all(moment.row["grown"]["2"] > 0 for moment in seen.events)
    asked = ["gradients" in seen.engine.rule.needs, type(seen.engine.rule.grow).__name__]
    assert asked == [grow == "gradient", "ByGradient" if grow == "gradient" else "AtRandom"]


def logits_around_growth(monkeypatch, **options):
    """Largest difference of outputs that the new weights of any event make, and their values."""
    seen = watched(monkeypatch)
    rewire, differences, values = RewireEngine.rewire, [], []

    def rewired(engine, step, due, optimizer):
        row = rewire(engine, step, due, optimizer)
        moment, inputs = seen.events[-1], BATCHES[0][0]
        with torch.no_grad():
            after = engine.graph.runnable(inputs)
            for member in engine.members:
                weight = engine.graph.weight(member.site)
                grown = moment.grown[member.site.name].reshape(weight.shape)
                values.append((member.site.name, weight[grown].clone()))
                weight.masked_fill_(grown, 0)
            differences.append(float((engine.graph.runnable(inputs) - after).abs().max()))
            for member, (_, old) in zip(engine.members, values[-3:], strict=True):
                weight = engine.graph.weight(member.site)
                weight[moment.grown[member.site.name].reshape(weight.shape)] = old
        return row

    monkeypatch.setattr(RewireEngine, "rewire", rewired)
    trained("nonzeros<=40%", share=0.3, epochs=6, **options)
    grown = {n: torch.cat([v for name, v in values if name == n]) for n in ("0", "2", "5")}
    return differences, grown


@pytest.mark.parametrize("rule", ["dsr_exact", "rigl"])
def test_growth_from_zero_leaves_the_function_as_it_is(rule, monkeypatch):
    differences, grown = logits_around_growth(monkeypatch, rule=rule, start="uniform")
    assert differences and max(differences) == 0
    assert all(len(values) and not bool(values.any()) for values in grown.values())


def test_growth_from_normal_values(monkeypatch):
    differences, grown = logits_around_growth(
        monkeypatch, rule="dsr_exact", new_values="normal", stop=1.0
    )
    assert min(differences) > 0
    # 2 / (outputs x kernel), and one over the inputs of a linear layer.
    for name, variance in {"0": 2 / 72, "2": 2 / 72, "5": 1 / 32}.items():
        assert len(grown[name]) > 50
        assert 0.7 < float(grown[name].square().mean()) / variance < 1.4
        assert abs(float(grown[name].mean())) < 4 * math.sqrt(variance / len(grown[name]))


def test_normal_values_in_double_precision():
    data = [(inputs.double(), targets) for inputs, targets in BATCHES]
    trained(model=conv_net().double(), data=data, new_values="normal", epochs=1)


ONE_STEP = {"schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "batches_per_epoch": 1}


def after_one_step(monkeypatch, **options):
    """Stored weights and masks after one step of plain gradient descent; lr is 0.05."""
    seen = watched(monkeypatch)
    options = {"rule": "static", "rescale": False, "epochs": 1} | options
    trained("nonzeros<=30%", train=ONE_STEP, **options)
    return seen.values[0], seen.stored[0], seen.first[0]


@pytest.mark.parametrize("lasso", [False, True])
def test_penalties_pull_active_weights_only(lasso, monkeypatch):
    alpha = 0.1
    start, plain, masks = after_one_step(monkeypatch)
    _, pulled, _ = after_one_step(monkeypatch, l1=alpha, group_lasso=lasso)
    for name, value in start.items():
        gradient = value.sign()
        if lasso and value.dim() == 4:
            norms = (value.square().sum((2, 3), keepdim=True) + 1e-12).sqrt()
            gradient = value / norms
        expected = -0.05 * alpha * gradient
        torch.testing.assert_close(pulled[name] - plain[name], expected, atol=1e-6, rtol=1e-4)
        assert not bool(pulled[name].reshape(-1)[~masks[name]].any())
        assert bool((expected != 0).any())


def test_initial_values_are_rescaled_for_density(monkeypatch):
    model = conv_net()
    for options, scaled in [
        ({}, True),
        ({"rescale": False}, False),
        ({"start": "magnitude"}, False),
        ({"start": "magnitude", "rescale": True}, True),
        ({"rule": "gradual"}, False),
    ]:
        seen = watched(monkeypatch)
        trained(model=model, epochs=1, **options)
        for name, value in weights_of(model).items():
            mask = seen.first[0][name].reshape(value.shape)
            density = float(mask.float().mean())
            assert bool(mask.all()) == (options.get("rule") == "gradual") or name == "5"
            factor = 1 / math.sqrt(density) if scaled else 1.0
            found = seen.values[0][name]
            torch.testing.assert_close(found[mask], value[mask] * factor)
            assert not bool(found[~mask].any())


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": "sgd", "nesterov": True, "weight_decay": 0.02},
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {"optimizer": "adadelta", "lr": 1.0, "weight_decay": 0.02},
    ],
    ids=lambda train: train["optimizer"],
)
def test_inactive_values_stay_exactly_zero_under_decay_and_penalty(train, monkeypatch):
    seen = watched(monkeypatch)
    result = trained(train=train, rule="rigl", l1=1e-3, stop=0.5, epochs=12)  # 36 steps after it
    assert len(seen.events) == 17
    for name, value in seen.stored[0].items():
        inactive = value.reshape(-1)[~seen.last[0][name]]
        assert not bool(inactive.any()) and (inactive.numel() or name == "5")
        assert int(torch.count_nonzero(value)) == nonzeros(result.model)[name] > 0


def test_gradients_that_are_none_name_their_layer(monkeypatch):
    def poisoned(mask, gradient):
        second = gradient.shape == (8, 8, 3, 3)
        mask.dense = torch.full_like(gradient, torch.nan) if second else gradient.clone()

    monkeypatch.setattr(WatchedMask, "_gather", poisoned)
    with pytest.raises(TrainingError, match=r"^2: .*scores"):
        trained(rule="rigl")


class Overflows(nn.Module):
    """Finite outputs, and gradients that are none: the root of zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 20), nn.Linear(20, 2)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.last(hidden) + (hidden * 0).sqrt().sum(1, keepdim=True)


def test_weights_that_are_none_name_their_layer():
    train = {"batches_per_epoch": 1}  # so that the first step has an event, before the next loss
    with pytest.raises(TrainingError, match=r"^first: "):
        trained(model=Overflows(), data=ROW_BATCHES, rule="set", every=None, train=train)


@pytest.mark.spread(1)
@pytest.mark.parametrize("rule", MOVING)
def test_weights_that_are_all_equal(rule, monkeypatch):
    seen = watched(monkeypatch)
    model = row_net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    trained(model=model, data=ROW_BATCHES, rule=rule, epochs=2)
    total = 592 * 20 // 100
    assert seen.active() == [total] * len(seen.events) and len(seen.events) >= 4
