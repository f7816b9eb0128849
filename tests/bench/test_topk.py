"""Loss and ranks of the right class, by hand and against the metric of runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.topk import top_k
from energy_model.errors import ArgumentError
from transform.evaluate import evaluate

CPU = torch.device("cpu")


def test_ranks_by_hand():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0]]).repeat(6, 1)
    found = top_k(nn.Identity(), [(logits, torch.arange(6))])
    assert found.top == (1 / 6, 3 / 6, 5 / 6)
    assert found.samples == 6
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, torch.arange(6))))


def test_batches_of_any_size_give_the_same():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 8, generator=generator)
    targets = torch.randint(8, (10,), generator=generator)
    whole = top_k(nn.Identity(), [(inputs, targets)])
    parts = top_k(nn.Identity(), zip(inputs.split(4), targets.split(4), strict=True))
    assert parts.top == whole.top
    assert parts.loss == pytest.approx(whole.loss)
    assert whole.top[0] <= whole.top[1] <= whole.top[2]
    assert whole.top[0] == evaluate(nn.Identity(), [(inputs, targets)], CPU)


def test_of_equal_outputs_the_first_is_the_largest_as_in_runs():
    data = [(torch.zeros(4, 6), torch.tensor([0, 1, 4, 5]))]
    found = top_k(nn.Identity(), data)
    assert found.top == (0.25, 0.5, 0.75)
    assert found.top[0] == evaluate(nn.Identity(), data, CPU)
    assert found.loss == pytest.approx(math.log(6))


def test_few_classes_are_all_among_the_first_five():
    found = top_k(nn.Identity(), [(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))])
    assert found.top == (0.0, 1.0, 1.0)


def test_the_model_is_run_in_evaluation_mode_and_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    before = model[0].running_mean.clone()
    data = [(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(8).long())]
    assert top_k(model, data) == top_k(model, data)
    assert model.training and torch.equal(model[0].running_mean, before)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batches"),
        ([(torch.randn(2, 3),)], "no targets"),
        ([(torch.full((2, 3), math.nan), torch.tensor([0, 1]))], "nan"),
        ([(torch.randn(2, 3, 4), torch.zeros(2).long())], "not a tensor"),
        ([(torch.randn(2, 3), torch.tensor([0, 9]))], "fails on a batch"),
    ],
)
def test_bad_data_are_refused(data, words):
    with pytest.raises(ArgumentError, match=words):
        top_k(nn.Identity(), data)
