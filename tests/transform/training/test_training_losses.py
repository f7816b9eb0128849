"""Losses against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from transform.training.config import Distill
from transform.training.losses import combined, cross_entropy, distillation, logits_of

STUDENT = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
TEACHER = torch.tensor([[0.0, 2.0], [3.0, 1.0]])


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def kl_by_hand(student, teacher, heat):
    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax([v / heat for v in t]), softmax([v / heat for v in s])
        rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return heat**2 * sum(rows) / len(rows)


def test_the_mean_squared_difference_of_logits():
    # (1 + 0 + 9 + 4) / 4
    assert float(distillation(STUDENT, TEACHER, Distill(kind="logit_mse"))) == 3.5


def test_the_temperature_has_no_part_in_it():
    hot = Distill(kind="logit_mse", temperature=9.0)
    assert float(distillation(STUDENT, TEACHER, hot)) == 3.5


@pytest.mark.parametrize("heat", [1.0, 2.0, 4.0])
def test_the_divergence_of_softened_outputs(heat):
    found = distillation(STUDENT, TEACHER, Distill(kind="kl", temperature=heat))
    assert float(found) == pytest.approx(kl_by_hand(STUDENT, TEACHER, heat), rel=1e-5)


def test_a_value_of_the_divergence():
    # One sample, logits ln 3 and 0 against 0 and 0: 0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25).
    student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    found = distillation(student, teacher, Distill(kind="kl", temperature=1.0))
    assert float(found) == pytest.approx(0.5 * math.log(4 / 3))


@pytest.mark.parametrize("kind", ["logit_mse", "kl"])
def test_the_student_has_the_gradient_and_the_teacher_none(kind):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    distillation(student, teacher, Distill(kind=kind)).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0


def test_the_gradient_of_the_squared_difference():
    student = STUDENT.clone().requires_grad_()
    distillation(student, TEACHER, Distill()).backward()
    assert torch.equal(student.grad, 2 * (STUDENT - TEACHER) / 4)


@pytest.mark.parametrize("kind", ["logit_mse", "kl"])
def test_equal_logits_cost_nothing(kind):
    assert float(distillation(TEACHER, TEACHER.clone(), Distill(kind=kind))) == pytest.approx(0)


@given(st.floats(0, 1))
def test_the_shares_of_task_and_teacher(weight):
    total = combined(torch.tensor(2.0), torch.tensor(6.0), Distill(weight))
    assert float(total) == pytest.approx(2 * (1 - weight) + 6 * weight)


def test_without_a_teacher_the_task_is_all():
    task = torch.tensor(2.0)
    assert combined(task, None, Distill()) is task
    assert combined(task, torch.tensor(6.0), None) is task


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_mixes_in_the_uniform_distribution(smoothing):
    targets, expected = [1, 0], 0.0
    for row, target in zip(STUDENT.tolist(), targets, strict=True):
        logs = [math.log(p) for p in softmax(row)]
        expected -= (1 - smoothing) * logs[target] + smoothing * sum(logs) / 2
    found = cross_entropy(smoothing)(STUDENT, torch.tensor(targets))
    assert float(found) == pytest.approx(expected / 2)


def test_the_first_of_several_outputs_is_meant():
    for outputs in (STUDENT, (STUDENT, TEACHER), [STUDENT], {"a": STUDENT, "b": TEACHER}):
        assert logits_of(outputs) is STUDENT


@pytest.mark.parametrize("outputs", [(), {}, None, 3.0, ([STUDENT],)])
def test_outputs_without_logits_are_refused(outputs):
    with pytest.raises(ArgumentError, match=r"loss: .*Pass loss="):
        logits_of(outputs)
