"""The configuration of training: what is refused, and that it survives being written down."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import transform
from transform import ArgumentError, TrainConfig
from transform.training.config import Distill

NAN, INF = float("nan"), float("inf")
NOT_A_RATE = (-0.1, NAN, INF, True, "1", None)
NOT_A_COUNT = (0, -1, 1.5, True, "2")
REFUSED = {
    "epochs": (-1, 1.5, True, "3", None),
    "optimizer": ("SGD", "lbfgs", "", None, 3),
    "lr": NOT_A_RATE,
    "momentum": (*NOT_A_RATE, 1.1),
    "nesterov": (1, None, "yes"),
    "weight_decay": NOT_A_RATE,
    "decay_norm_and_bias": (0, None),
    "schedule": ("cos", "", None, 3, {}, {-1: 0.1}, {0: -0.1}, {0: NAN}, {NAN: 0.1}, {0: INF}),
    "min_lr": NOT_A_RATE,
    "warmup_epochs": NOT_A_RATE,
    "clip_grad": (0, -1.0, NAN, INF, True, "1"),
    "label_smoothing": (*NOT_A_RATE, 1.1),
    "distill": (-0.1, 1.1, NAN, True, "kl", [0.5]),
    "dropout": (-0.1, 1.1, NAN, True, "0.5"),
    "amp": ("bfloat16", "no", True, 16),
    "accumulate": (*NOT_A_COUNT, None),
    "batches_per_epoch": NOT_A_COUNT,
    "eval_every": (*NOT_A_COUNT, None),
    "save_every": (*NOT_A_COUNT, None),
    "log_every": (-1, 1.5, True, "2", None),
    "select": ("first", "", None, True),
    "seed": (-1, 1.5, True, "2"),
}


def test_every_field_has_values_that_are_refused():
    assert set(REFUSED) == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_a_bad_value_is_refused_by_name(name, value):
    where = r"(TrainConfig\.|Distill\.weight)" if name == "distill" else rf"TrainConfig\.{name}: "
    with pytest.raises(ArgumentError, match=where) as caught:
        TrainConfig(**{name: value})
    assert "Allowed: " in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("weight", value) for value in (-0.1, 1.1, NAN, None, True)),
        *(("kind", value) for value in ("mse", "", None)),
        *(("temperature", value) for value in (0, -1.0, NAN, INF, None)),
    ],
)
def test_a_bad_value_of_distillation_is_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=rf"Distill\.{name}: "):
        Distill(**{name: value})


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ArgumentError, match="nesterov needs a momentum"):
        TrainConfig(nesterov=True, momentum=0.0)
    assert TrainConfig(nesterov=True, momentum=0.5).nesterov


def test_a_schedule_that_would_rise_is_refused():
    with pytest.raises(
        ArgumentError, match=r"TrainConfig\.min_lr: min_lr is 0\.2, above lr"
    ) as caught:
        TrainConfig(lr=0.1, min_lr=0.2)
    assert "lower min_lr, or raise lr" in caught.value.remedy
    assert TrainConfig(lr=0.1, min_lr=0.1).min_lr == 0.1
    assert TrainConfig(lr=0.0).min_lr == 0.0


def test_the_defaults_are_those_of_the_paper():
    config = TrainConfig()
    assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (config.accumulate, config.select, config.distill) == (1, "best", None)
    assert Distill() == Distill(0.5, "logit_mse")


def test_a_configuration_is_frozen():
    for config in (TrainConfig(), Distill()):
        with pytest.raises(FrozenInstanceError):
            config.weight = 3


def test_distillation_has_a_short_a_full_and_a_written_form():
    full = TrainConfig(distill=Distill(0.25))
    assert TrainConfig(distill=0.25) == full
    assert TrainConfig(distill={"weight": 0.25}) == full
    assert TrainConfig(distill=1).distillation == Distill(1.0)
    assert full.distillation == Distill(0.25, "logit_mse", 4.0)
    assert TrainConfig().distillation is None


def test_a_table_of_rates_is_sorted_and_may_have_keys_from_json():
    table = TrainConfig(schedule={"5": 0.01, "0": 0.1, "2.5": 0.05}).schedule
    assert list(table.items()) == [(0.0, 0.1), (2.5, 0.05), (5.0, 0.01)]


share = st.floats(0, 1)
rate = st.floats(0, 10)
configs = st.builds(
    lambda lr, least, **fields: TrainConfig(lr=lr, min_lr=lr * least, **fields),
    epochs=st.integers(0, 100),
    optimizer=st.sampled_from(["sgd", "adam", "adamw", "adadelta"]),
    lr=rate,
    momentum=share,
    weight_decay=rate,
    decay_norm_and_bias=st.booleans(),
    schedule=st.sampled_from(["cosine", "step", "exponential", "plateau", "constant"])
    | st.dictionaries(st.floats(0, 50), rate, min_size=1, max_size=4),
    least=share,
    warmup_epochs=rate,
    clip_grad=st.none() | st.floats(0.01, 5),
    label_smoothing=share,
    distill=st.none()
    | share
    | st.builds(Distill, share, st.sampled_from(["kl", "logit_mse"]), st.floats(0.5, 9)),
    dropout=st.none() | share,
    amp=st.sampled_from([None, "bf16", "fp16"]),
    accumulate=st.integers(1, 9),
    batches_per_epoch=st.none() | st.integers(1, 9),
    eval_every=st.integers(1, 9),
    save_every=st.integers(1, 9),
    log_every=st.integers(0, 9),
    select=st.sampled_from(["best", "last"]),
    seed=st.none() | st.integers(0, 2**40),
)


@given(configs)
def test_a_configuration_survives_json(config):
    data = json.loads(json.dumps(config.to_dict()))
    assert data["config"] == "TrainConfig"
    assert data["version"] == 1
    assert TrainConfig.from_dict(data) == config


def test_what_was_written_by_others_is_refused():
    data = TrainConfig().to_dict()
    for changes, match in (
        ({"version": 2}, "newer"),
        ({"config": "Distill"}, "the configuration of Distill"),
        ({"learning_rate": 0.1}, r"unknown fields \['learning_rate'\]"),
        ({"lr": -1}, r"TrainConfig\.lr"),
        ({"distill": {"weigth": 0.5}}, "unknown fields"),
        ({"distill": {"weight": 0.5, "version": 2}}, "newer"),
    ):
        with pytest.raises(ArgumentError, match=match):
            TrainConfig.from_dict(data | changes)


def test_a_callable_optimizer_runs_but_cannot_be_written():
    config = TrainConfig(optimizer=torch.optim.RMSprop)
    with pytest.raises(ArgumentError, match="callable cannot be written"):
        config.to_dict()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (False, None),
        (True, TrainConfig()),
        (0, TrainConfig(epochs=0)),
        (7, TrainConfig(epochs=7)),
        ({"lr": 0.5}, TrainConfig(lr=0.5)),
        (TrainConfig(lr=0.5), TrainConfig(lr=0.5)),
    ],
)
def test_the_argument_has_short_forms(given, expected):
    assert transform.arguments.training_config(given) == expected


@pytest.mark.parametrize("given", ["long", 1.5, [3], -1])
def test_other_arguments_are_refused(given):
    with pytest.raises(ArgumentError):
        transform.arguments.training_config(given)
