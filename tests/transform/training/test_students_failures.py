"""A student that fails is noted with its reason, and the others do not feel it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from student_nets import SEARCH, assert_same, graph, lesson, net, student, teacher, together
from torch import nn

from energy_model.errors import ArgumentError
from passes.inputs import Call
from passes.tracing.trace import trace
from transform.fingerprint import state_digest
from transform.training.config import Distill
from transform.training.students import chance_level

CHANCE = 1 / 3


def diverging():
    """Its loss is not a number."""
    given = student(9)
    with torch.no_grad():
        given.module[4].weight.fill_(float("nan"))
    return given


def exploding():
    """Its loss is infinite or not a number after some steps: weights of 1e30 are multiplied."""
    given = student(9)
    with torch.no_grad():
        given.module[4].weight.mul_(1e30)
        given.module[1].weight.fill_(1e30)
    return given


def raising_at(call):
    """Raises when it is run for the n-th time."""
    given = student(9)
    calls = []

    def hook(module, args):
        calls.append(1)
        if len(calls) == call:
            raise OSError("the disk is on fire")

    given.module[2].register_forward_pre_hook(hook)
    return given


def misshapen():
    """Takes other inputs."""
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    return trace(model, Call((torch.zeros(4, 7),)))


def broad():
    """One class too many."""
    return graph(net(9, classes=4))


def single():
    """One output, which would be broadcast."""
    return graph(net(9, classes=1))


FAULTS = {
    "diverging": (diverging, "the loss is nan in epoch 1, batch 1"),
    "exploding": (exploding, "not finite|the loss is (nan|inf)"),
    "first batch": (lambda: raising_at(1), "the disk is on fire"),
    "second epoch": (lambda: raising_at(5), "the disk is on fire"),
    "scoring": (lambda: raising_at(7), "the disk is on fire"),
    "inputs": (misshapen, "mat1 and mat2"),
    "classes": (broad, r"\(8, 4\).*\(8, 3\)"),
    "one output": (single, r"\(8, 1\).*\(8, 3\)"),
}


@pytest.fixture(scope="module")
def healthy():
    return together(lesson(), [student(5), student(16)])


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", FAULTS)
def test_it_fails_alone(name, healthy):
    make, reason = FAULTS[name]
    first, failed, last = together(lesson(), [student(5), make(), student(16)])
    assert failed.state is None
    assert failed.accuracy == CHANCE
    assert failed.seconds > 0
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(failed.failure)
    assert_same(first, healthy[0])
    assert_same(last, healthy[1])


def test_all_of_them_may_fail_at_different_times():
    outcomes = together(lesson(), [raising_at(5), diverging(), raising_at(1)])
    assert all(o.failure and o.accuracy == CHANCE and o.state is None for o in outcomes)


@pytest.mark.parametrize("kind", ["kl", "logit_mse"])
def test_outputs_must_be_like_the_teacher_s(kind):
    config = dataclasses.replace(SEARCH, distill=Distill(1.0, kind))
    [outcome] = together(lesson(config=config), [broad()])
    assert "(8, 4)" in outcome.failure


@pytest.mark.parametrize("epochs", [0, 1])
def test_also_where_nothing_is_distilled(epochs):
    # Cross entropy takes a class too many without a word.
    config = dataclasses.replace(SEARCH, distill=None)
    [outcome] = together(lesson(config=config), [broad()], epochs)
    assert "(4,)" in outcome.failure
    [free] = together(lesson(config=config, teacher=None), [broad()], epochs)
    assert free.failure is None


def test_weights_that_overflow_in_the_last_step():
    config = dataclasses.replace(
        SEARCH, optimizer="sgd", lr=3e38, batches_per_epoch=1, weight_decay=1e5
    )
    [outcome] = together(lesson(config=config), [student(9)], 1)
    assert outcome.failure == "a weight is not finite after epoch 1"


def test_outputs_that_are_not_finite_when_it_is_scored():
    given = student(9)
    given.module[1].running_mean.fill_(float("nan"))
    outcomes = together(lesson(bn_batches=0), [given, student(5)], 0)
    assert outcomes[0].failure == "its outputs are not finite on the validation data"
    assert outcomes[1].failure is None
    # Estimating the norm anew mends it.
    mended = student(9)
    mended.module[1].running_mean.fill_(float("nan"))
    assert together(lesson(), [mended], 0)[0].failure is None


def test_neither_the_teacher_nor_the_start_suffers():
    master = teacher()
    before = state_digest(master)
    [one] = together(lesson(), [student(9)], 1)
    kept = copy.deepcopy(dict(one.state.optimizer["state"]))
    for make, _ in FAULTS.values():
        together(lesson(teacher=master), [make()], 1)
    together(lesson(), [raising_at(1)], 2, starts=[one.state])
    assert state_digest(master) == before
    assert torch.equal(one.state.optimizer["state"][0]["exp_avg"], kept[0]["exp_avg"])


def test_an_interruption_is_no_failure_of_a_student():
    given = student(9)

    def hook(module, args):
        raise KeyboardInterrupt

    given.module[2].register_forward_pre_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        together(lesson(), [given])
    assert not given.module.training


def test_the_level_of_chance():
    data = lesson().valid
    cpu = torch.device("cpu")
    assert chance_level(teacher(), data, cpu) == CHANCE
    assert chance_level(net(classes=10), data, cpu) == 0.1
    assert chance_level(teacher(), data, cpu, lambda o, t: 1.0) == 0.0
    assert chance_level(nn.Flatten(0), data, cpu) == 0.0
    with pytest.raises(ArgumentError, match="no batches"):
        chance_level(teacher(), [], cpu)
