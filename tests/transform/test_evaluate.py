"""Metrics, and which samples are right: against counting by hand, and what says nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from energy_model.errors import ArgumentError
from transform.evaluate import correct_samples, evaluate

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 2.0], [0.0, 5.0], [1.0, 0.0]])
TARGETS = torch.tensor([0, 0, 0, 1, 1])
RIGHT = [True, False, True, True, False]


def batches(size):
    return list(zip(LOGITS.split(size), TARGETS.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_samples_are_judged_in_the_order_of_the_data(size):
    assert correct_samples(nn.Identity(), batches(size), CPU) == RIGHT
    assert evaluate(nn.Identity(), batches(size), CPU) == pytest.approx(3 / 5)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20),
    st.integers(1, 7),
)
def test_the_mean_of_the_samples_is_the_metric(pairs, size):
    outputs = nn.functional.one_hot(torch.tensor([a for a, _ in pairs]), 4).float()
    targets = torch.tensor([b for _, b in pairs])
    data = list(zip(outputs.split(size), targets.split(size), strict=True))
    found = correct_samples(nn.Identity(), data, CPU)
    assert found == [a == b for a, b in pairs]
    assert evaluate(nn.Identity(), data, CPU) == sum(found) / len(found)


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"dict": {"logits": x, "other": -x}, "tuple": (x, -x)}[self.kind]


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_the_first_of_several_outputs_is_judged(kind):
    assert correct_samples(Several(kind), batches(2), CPU) == RIGHT


@pytest.mark.parametrize(
    "data",
    [
        [LOGITS],
        [(LOGITS, TARGETS.float())],
        [(LOGITS, LOGITS)],
        [(LOGITS[None], TARGETS)],
        [(LOGITS, TARGETS), LOGITS],
    ],
    ids=["no targets", "real targets", "two-dimensional", "images", "targets that end"],
)
def test_where_top_1_says_nothing_neither_does(data):
    assert correct_samples(nn.Identity(), data, CPU) is None
    assert evaluate(nn.Identity(), data, CPU) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batches"),
        (3, "int is not iterable"),
        ([(LOGITS, TARGETS[:2])], "2 targets for 5 outputs"),
        ([(torch.zeros(2, 7), TARGETS[:2])], "the model or the metric fails on a batch"),
    ],
)
def test_bad_data_are_refused_alike(data, message):
    for judge in (correct_samples, evaluate):
        with pytest.raises(ArgumentError, match=message):
            judge(nn.Linear(2, 2), data, CPU)


def test_the_mode_of_the_model_is_put_back():
    model = nn.Sequential(nn.Dropout(1.0)).train()
    assert correct_samples(model, batches(2), CPU) == RIGHT
    assert model.training
    assert model[0].training
