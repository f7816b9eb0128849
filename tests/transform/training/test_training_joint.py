"""The method `joint` in whole training runs: history, selection, stops and chains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from training_loaders import Noisy
from training_runs import batches, nonzeros, plain, rich, run, trained_rows

import transform
from energy_model.errors import PreconditionError
from transform import Joint
from transform.fingerprint import state_digest

# Whole trainings of the method: `make test-slow` runs them.
pytestmark = pytest.mark.slow

BUDGET = "weight_bits<=5%"
OPTIONS = {"budget": BUDGET, "train": {"epochs": 4, "lr": 0.1}}


class Stop(BaseException):
    """What a user who presses a key raises."""


@pytest.fixture(autouse=True)
def without_files(monkeypatch):
    """Without the files of a finished run, which take longer than the training."""
    monkeypatch.setattr(transform.Compressed, "save", lambda *args, **options: None)
    monkeypatch.setattr("transform.pipeline.count_sizes", lambda *args: None)


def joint(model=None, data=None, **options):
    method = options.pop("method", None) or Joint(project_every=2, dual_every=4, start=1.0)
    return run(rich() if model is None else model, data, method=method, **OPTIONS | options)


def stopping(after):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return F.cross_entropy(outputs, targets)

    return loss


@pytest.mark.parametrize("after", [4, 10])
@pytest.mark.parametrize(
    "method",
    [
        None,
        Joint(mode="quantize", levels="uniform"),
        ["magnitude", Joint(mode="quantize", bits=4)],
    ],
    ids=["both", "quantize", "chain"],
)
def test_a_stopped_run_goes_on_bit_for_bit(method, after, tmp_path):
    budget = "nonzeros<=40%" if isinstance(method, list) else "weight_bits<=10%"
    options = {"method": method, "valid": batches(), "budget": budget}
    whole = joint(data=Noisy(), **options)
    with pytest.raises(Stop):
        joint(data=Noisy(), out=tmp_path / "out", loss=stopping(after), **options)
    assert len(list((tmp_path / "out" / "checkpoints").glob("epoch-*"))) == 1
    resumed = joint(data=Noisy(), out=tmp_path / "out", **options)
    assert state_digest(resumed.model) == state_digest(whole.model)
    assert resumed.history == whole.history
    assert resumed.certificate == whole.certificate
    assert resumed.metrics == whole.metrics


def test_the_history_tells_what_the_method_does():
    result = joint(valid=batches())
    rows = trained_rows(result)
    assert len(rows) == 4
    for row in rows:
        assert {"bits", "nonzeros", "allowed_bits"} <= row.keys()
        # At the end of an epoch the model is within what the ladder allows.
        spent = sum(b * k for b, k in zip(row["bits"], row["nonzeros"], strict=True))
        assert spent <= row["allowed_bits"]
        assert row["within"] == (row["allowed_bits"] == result.limits[0].maximum)
    assert [row.bits for row in result.costs.after] == rows[-1]["bits"]
    assert [("primal_residual" in row) for row in rows] == [True, True, False, False]


def test_the_best_epoch_is_one_within_the_budget():
    class Falling:
        def __init__(self):
            self.count = 0

        def reset(self):
            self.count += 1

        def update(self, outputs, targets):
            pass

        def compute(self):
            return 1 / self.count

    result = joint(valid=batches(), metric=Falling(), train={"epochs": 6, "lr": 0.1})
    within = [row["within"] for row in trained_rows(result)]
    assert within[0] is False
    assert within[-1] is True
    assert result.certificate.holds
    for site in result.graph.compressible:
        result.graph.codebooks[site.name].check(result.graph.weight(site), site.name)
    last = joint(
        valid=batches(), metric=Falling(), train={"epochs": 6, "lr": 0.1, "select": "last"}
    )
    assert state_digest(last.model) != state_digest(result.model)


@pytest.mark.parametrize("mode", ["both", "prune", "quantize"])
@pytest.mark.parametrize("levels", ["free", "uniform"])
def test_without_epochs_it_only_projects(mode, levels):
    method = Joint(mode=mode, levels=levels)
    result = joint(method=method, budget="weight_bits<=10%", train={"epochs": 0})
    assert result.certificate.holds
    assert trained_rows(result) == []


def test_two_runs_are_equal_and_the_callers_model_stays():
    model = rich()
    before = copy.deepcopy(model.state_dict())
    first, second = (joint(model, Noisy()) for _ in range(2))
    assert state_digest(first.model) == state_digest(second.model)
    assert first.history == second.history
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_after_magnitude_zeros_stay_and_count():
    method = ["magnitude", Joint(mode="quantize", bits=4)]
    result = joint(plain(), method=method, budget="nonzeros<=40%")
    assert nonzeros(result.model) <= 0.4 * 176
    assert {book.bits for book in result.graph.codebooks.values()} == {4}
    assert all(book.reserved_zero for book in result.graph.codebooks.values())


@pytest.mark.parametrize("mode", ["both", "quantize"])
def test_weights_that_are_no_numbers_are_refused_before_training(mode):
    model = rich()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(PreconditionError, match="NaN"):
        joint(model, method=Joint(mode=mode))


def test_mixed_precision_and_gradients_of_several_batches():
    for extra in ({"amp": "bf16"}, {"accumulate": 2}, {"clip_grad": 1.0}, {"optimizer": "adam"}):
        result = joint(plain(), train={"epochs": 3, "lr": 0.02} | extra)
        assert result.certificate.holds, extra
