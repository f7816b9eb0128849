"""Budgets in joules, on the profile that knows them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import transform
from energy_model.errors import BudgetError


def lenet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 10),
        )  # fmt: skip


EXAMPLE = torch.zeros(1, 1, 32, 32)


def test_a_budget_in_joules_is_met_and_nearly_used():
    model = lenet()
    before = transform.analyze(model, EXAMPLE, hardware="horowitz")
    assert "uJ" in str(before)
    dense = before.total.energy.relaxed * 1e-14
    assert 10e-6 < dense < 100e-6
    result = transform.compress(
        model, "energy<=12 uJ", method="energy", example_inputs=EXAMPLE, hardware="horowitz"
    )
    after = transform.analyze(result.model, EXAMPLE, hardware="horowitz")
    [row] = result.certificate.rows
    assert row.maximum == 1_200_000_000
    assert row.base == before.total.dense
    assert after.total.energy.relaxed == row.reached == result.plan.reached["energy"]
    joules = after.hardware.joules(after.total.energy.relaxed)
    assert 11.99e-6 < joules <= 12e-6
    assert after.total.nonzeros < before.total.nonzeros


def test_eyeriss_knows_no_joules_and_says_who_does():
    with pytest.raises(BudgetError, match="horowitz"):
        transform.compress(lenet(), "energy<=3 uJ", method="energy", example_inputs=EXAMPLE)
