"""Learning rates against closed forms and torch's own schedulers; groups; optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_runs import batches, digest, plain, rich, run, trained_rows

from transform import TrainConfig
from transform.training.optimizers import LearningRate, build_optimizer, parameter_groups

LR, LEAST, EPOCHS = 0.4, 0.01, 10


def rates(steps=20, **options):
    """The learning rate of every step of ten epochs."""
    schedule = LearningRate(TrainConfig(epochs=EPOCHS, lr=LR, **options))
    return [schedule.at(step * EPOCHS / steps) for step in range(steps + 1)]


def by_torch(make, steps=20):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, found = make(optimizer), []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("least", [0.0, LEAST])
def test_cosine_is_that_of_torch(least):
    expected = by_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=least)
    )
    assert rates(schedule="cosine", min_lr=least) == pytest.approx(expected)


@pytest.mark.parametrize(("least", "end"), [(0.0, LR / 100), (LEAST, LEAST)])
def test_exponential_is_that_of_torch(least, end):
    gamma = (end / LR) ** (1 / 20)
    expected = by_torch(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma))
    assert rates(schedule="exponential", min_lr=least) == pytest.approx(expected)


def test_step_is_that_of_torch_at_a_half_and_three_quarters():
    expected = by_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15], gamma=0.1))
    assert rates(schedule="step") == pytest.approx(expected)
    assert min(rates(schedule="step", min_lr=LEAST)) == LEAST


def test_constant_is_constant():
    assert set(rates(schedule="constant")) == {LR}


def test_a_table_holds_from_its_epoch_on():
    schedule = LearningRate(TrainConfig(epochs=9, lr=LR, schedule={6: 0.1, 2.5: 0.2}))
    found = [schedule.at(epoch) for epoch in (0, 2.49, 2.5, 5.99, 6, 8, 100)]
    assert found == [LR, LR, 0.2, 0.2, 0.1, 0.1, 0.1]


NAMES = ("cosine", "step", "exponential", "plateau", "constant")


@pytest.mark.parametrize("schedule", [*NAMES, {0: LR}])
def test_warm_up_is_linear_from_zero(schedule):
    config = TrainConfig(epochs=EPOCHS, lr=LR, schedule=schedule, warmup_epochs=2.5)
    rate = LearningRate(config)
    for epoch in (0, 0.5, 1.25, 2.0):
        assert rate.at(epoch) == pytest.approx(LR * epoch / 2.5)
    assert rate.at(2.5) == pytest.approx(LR)


@given(st.sampled_from(NAMES), st.floats(0, 9), st.floats(0, 1))
def test_after_warm_up_the_schedule_spans_what_is_left(name, warm, share):
    short = LearningRate(TrainConfig(epochs=EPOCHS, lr=LR, schedule=name, warmup_epochs=warm))
    whole = LearningRate(TrainConfig(epochs=EPOCHS, lr=LR, schedule=name))
    epoch = warm + share * (EPOCHS - warm)
    if name == "step":  # at the very edge, rounding decides
        epoch += 1e-9
        share += 1e-9
    assert short.at(epoch) == pytest.approx(whole.at(share * EPOCHS), abs=1e-9)


@given(st.sampled_from(NAMES), st.integers(0, 5), st.floats(0, 20), st.floats(0, LR))
def test_a_rate_lies_between_its_ends(name, epochs, epoch, least):
    rate = LearningRate(TrainConfig(epochs=epochs, lr=LR, schedule=name, min_lr=least)).at(epoch)
    assert least * (1 - 1e-12) <= rate <= LR * (1 + 1e-12)


@given(st.lists(st.integers(0, 5), max_size=30), st.sampled_from([0.0, 0.03]))
def test_plateau_is_that_of_torch(metrics, least):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=0.0, min_lr=least, eps=0
    )
    rate = LearningRate(TrainConfig(lr=LR, schedule="plateau", min_lr=least))
    for metric in metrics:
        oracle.step(float(metric))
        rate.observe(float(metric))
        assert rate.at(3) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_goes_on_from_its_state():
    config = TrainConfig(lr=LR, schedule="plateau")
    first, second = LearningRate(config), LearningRate(config)
    for metric in (0.5, 0.4, 0.3, 0.2):
        first.observe(metric)
    second.load_state_dict(first.state_dict())
    assert second == first
    first.observe(0.1)
    second.observe(0.1)
    assert second.at(1) == first.at(1) == LR / 4


def test_the_other_schedules_do_not_listen_to_the_metric():
    rate = LearningRate(TrainConfig(epochs=EPOCHS, lr=LR))
    before = rate.at(4)
    for _ in range(9):
        rate.observe(0.0)
    assert rate.at(4) == before


def test_every_group_gets_the_rate():
    optimizer = build_optimizer(rich(), TrainConfig(lr=LR, decay_norm_and_bias=False))
    assert LearningRate(TrainConfig(epochs=10, lr=LR)).apply(optimizer, 5) == pytest.approx(LR / 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([LR / 2] * 2)


@pytest.mark.spread(1)
@pytest.mark.parametrize("options", [{}, {"warmup_epochs": 0.5}, {"schedule": {0.5: 0.1}}])
def test_a_run_uses_the_rate_of_every_batch(options):
    config = TrainConfig(epochs=2, lr=0.05, log_every=1, **options)
    result = run(train=config)
    # The row that closes an epoch repeats the rate of its last batch.
    found = [row["lr"] for row in trained_rows(result)]
    times = [epoch + batch / 3 for epoch in (0, 1) for batch in (0, 1, 2, 2)]
    assert found == [LearningRate(config).at(time) for time in times]


def test_the_rate_that_a_callable_optimizer_sets_is_overwritten():
    def digest_at(own, lr):
        def optimizer(groups):
            return torch.optim.SGD(groups, lr=own)

        return digest(train=TrainConfig(epochs=1, optimizer=optimizer, lr=lr))

    assert digest_at(own=0.5, lr=0.05) == digest_at(own=7.0, lr=0.05)
    assert digest_at(own=0.5, lr=0.05) != digest_at(own=0.5, lr=0.01)


def test_plateau_halves_the_rate_of_a_run():
    valid = [(x, y * 0) for x, y in batches()]
    train = {"epochs": 6, "lr": 1e-30, "schedule": "plateau", "select": "last"}
    result = run(train=train, valid=valid, budget="nonzeros<=100%")
    assert [row["lr"] for row in trained_rows(result)] == [1e-30] * 3 + [5e-31] * 2 + [2.5e-31]


def test_all_trainable_parameters_are_in_one_group():
    model = rich()
    model[0].bias.requires_grad_(False)
    [group] = parameter_groups(model, TrainConfig(weight_decay=0.3))
    assert group["weight_decay"] == 0.3
    assert [id(p) for p in group["params"]] == [
        id(p) for p in model.parameters() if p.requires_grad
    ]


def test_norm_and_bias_may_be_spared_the_decay():
    model = rich()
    config = TrainConfig(weight_decay=0.3, decay_norm_and_bias=False)
    full, flat = parameter_groups(model, config)
    assert (full["weight_decay"], flat["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in full["params"]} == {id(model[0].weight), id(model[4].weight)}
    spared = (model[0].bias, model[1].weight, model[1].bias, model[4].bias)
    assert {id(p) for p in flat["params"]} == {id(p) for p in spared}


def test_a_tied_weight_is_trained_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    [group] = parameter_groups(model, TrainConfig())
    assert len(group["params"]) == 3


@pytest.mark.parametrize("spared", [False, True])
def test_the_decay_shrinks_what_it_should(spared):
    model = rich()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainConfig(lr=0.5, momentum=0.0, weight_decay=0.2, decay_norm_and_bias=not spared)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if spared and parameter.dim() == 1 else 1 - 0.5 * 0.2
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("adadelta", torch.optim.Adadelta),
    ],
)
def test_every_name_makes_its_optimizer(name, kind):
    optimizer = build_optimizer(plain(), TrainConfig(optimizer=name, lr=0.3, weight_decay=0.01))
    assert type(optimizer) is kind
    [group] = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)


def test_momentum_is_that_of_sgd():
    config = TrainConfig(momentum=0.7, nesterov=True)
    [group] = build_optimizer(plain(), config).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.7, True)


def test_a_callable_gets_the_groups():
    seen = []

    def make(groups):
        seen.extend(groups)
        return torch.optim.RMSprop(groups, alpha=0.5)

    optimizer = build_optimizer(plain(), TrainConfig(optimizer=make, decay_norm_and_bias=False))
    assert type(optimizer) is torch.optim.RMSprop
    assert [group["weight_decay"] for group in seen] == [1e-4, 0.0]
    assert math.isclose(optimizer.param_groups[0]["alpha"], 0.5)
