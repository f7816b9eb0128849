"""A limit on the bytes of the file: sparse from the start, and met to the byte."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

import transform
from energy_model.budget import Limit
from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.methods.sparse_training import SparseTraining
from passes.methods.sparse_training.size_limit import by_count

X = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(1))
Y = (X.mean((1, 2, 3)) > 0).long()
DATA = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )


def trained(budget, model=None):
    return transform.compress(
        model or net(),
        budget,
        data=DATA,
        method=SparseTraining(every=3),
        train=transform.TrainConfig(epochs=2, lr=0.05),
        progress="none",
    )


@pytest.mark.slow
def test_the_file_has_at_most_so_many_bytes_and_nearly_as_many(tmp_path):
    result = trained("size<=20%")
    [row] = result.certificate.rows
    assert row.holds
    assert row.reached <= row.maximum
    assert row.reached > 0.95 * row.maximum
    export = result.export(tmp_path / "model.onnx")
    assert export.path.stat().st_size == row.reached
    assert set(result.plan.reached) == {"size"}


@pytest.mark.slow
def test_the_tighter_of_two_limits_decides():
    few = trained("size<=60%, nonzeros<=300")
    assert few.costs.after.total.nonzeros <= 300
    small = trained("size<=15%, nonzeros<=90%")
    assert small.certificate.holds
    assert small.costs.after.total.nonzeros < 10_000


@pytest.mark.slow
def test_what_the_dense_file_meets_removes_nothing():
    result = trained("size<=100%")
    assert result.plan.rows[0].keep == result.plan.rows[0].size


@pytest.mark.slow
def test_biases_alone_can_be_too_much():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(256, 2), nn.ReLU(), nn.Linear(2, 2000))
    with pytest.raises(InfeasibleBudget) as caught:
        trained("size<=20%", wide)
    assert caught.value.limit == "size"
    assert caught.value.tightest > caught.value.asked


def count(key, most):
    unit = {"size": "B", "nonzeros": "weight", "energy": "MAC"}[key]
    return ResolvedLimit(Limit(key, Fraction(most), unit), 0, most)


def test_bytes_become_weights_beside_the_other_limits():
    size, energy = count("size", 5000), count("energy", 70)
    assert by_count([energy], None) == (energy,)
    with pytest.raises(PreconditionError):
        by_count([size], None)
    only, added = by_count([energy, size], 900)
    assert (only, added.key, added.maximum) == (energy, "nonzeros", 900)
    tighter, looser = count("nonzeros", 800), count("nonzeros", 1000)
    assert by_count([size, tighter], 900) == (tighter,)
    assert [limit.maximum for limit in by_count([size, looser], 900)] == [900]
