"""Data of every kind: what is trained on, what is not, and the error that says so."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import Recorded, batches, digest, examples, plain, run, seeded, trained_rows

import transform
from transform.fingerprint import state_digest

EXAMPLE = examples(4)[0]


class Endless:
    """Batches without a length."""

    def __iter__(self):
        while True:
            yield from batches()


def refused(error, match, **options):
    """The error, and that nothing was changed."""
    model = plain()
    before = state_digest(model)
    with pytest.raises(error, match=match) as caught:
        run(model=model, **options)
    assert caught.value.remedy
    assert state_digest(model) == before


def decided(result):
    return {d.what: d.why for d in result.decisions if d.what in ("trained", "one shot")}


@pytest.mark.spread(4)
@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([EXAMPLE], transform.TrainingError, "data: the batches have no targets"),
        ([{"inputs": EXAMPLE}], transform.TrainingError, "data: the batches have no targets"),
        ([], transform.ArgumentError, "data: no batches"),
        (iter(batches()), transform.ArgumentError, "data: a generator .*read only once"),
        ((b for b in batches()), transform.ArgumentError, "data: a generator .*read only once"),
        (Endless(), transform.ArgumentError, "data: Endless has no length"),
        (3, transform.ArgumentError, "data: int is not iterable"),
    ],
    ids=["bare", "dict", "empty", "iterator", "generator", "endless", "number"],
)
def test_data_that_cannot_be_trained_on_is_refused(data, error, match):
    refused(error, match, data=data, train={"epochs": 1})


def test_the_error_for_a_generator_says_what_is_wanted():
    with pytest.raises(transform.ArgumentError, match="Pass a loader or a list") as caught:
        run(data=(batch for batch in batches()), train={"epochs": 1})
    assert "generator" in str(caught.value)
    assert "chain" not in str(caught.value)


def test_an_iterator_is_refused_even_if_its_length_is_given():
    train = {"epochs": 2, "batches_per_epoch": 2}
    refused(transform.ArgumentError, "can be read only once", data=iter(batches()), train=train)


def test_no_data_and_empty_data_are_refused_when_training_is_asked_for():
    options = {"example_inputs": EXAMPLE, "train": {"epochs": 1}}
    refused(transform.ArgumentError, "data: no batches", data=[], **options)
    with pytest.raises(transform.ArgumentError, match=r"train: .*there is no data"):
        transform.compress(plain(), "nonzeros<=50%", **options)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([EXAMPLE], "the data has no labels"),
        (iter(batches()), "read only once"),
        (Endless(), "has no length"),
        ([(EXAMPLE, torch.rand(4, 3))], "no classes, and no loss"),
        ([(EXAMPLE, {"boxes": 1})], "no classes, and no loss"),
    ],
    ids=["bare", "iterator", "endless", "floats", "nested"],
)
def test_unasked_such_data_gives_one_shot_and_its_reason(data, reason):
    result = run(data=data, train=None)
    [(what, why)] = decided(result).items()
    assert what == "one shot"
    assert reason in why
    assert trained_rows(result) == []
    assert result.certificate.holds


@pytest.mark.slow
def test_the_decision_says_who_asked():
    data = batches()
    assert decided(run(data=data, train=None)) == {
        "trained": "the data has labels; train=False for one shot"
    }
    assert decided(run(data=data, train=1)) == {"trained": "asked for"}
    assert decided(run(data=data, train=False)) == {"one shot": "train=False"}
    floats = [(EXAMPLE, torch.rand(4, 3))]
    loss = nn.functional.mse_loss
    assert "trained" in decided(run(data=floats, train=None, loss=loss))


def test_unasked_training_is_that_of_the_defaults():
    assert digest(train=None) == digest(train=transform.TrainConfig())


def test_data_without_a_length_is_trained_on_when_the_batches_are_counted():
    result = run(data=Endless(), train={"epochs": 3, "batches_per_epoch": 4})
    assert trained_rows(result)[-1]["step"] == 12
    assert result.certificate.holds


def test_data_that_ends_early_still_keeps_the_budget():
    class Lying(Recorded):
        def __len__(self):
            return 7

    result = run(data=Lying(batches()), train={"epochs": 2, "lr": 0.05})
    assert trained_rows(result)[-1]["step"] == 6
    assert result.certificate.holds


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: ((x,), y),
        lambda x, y: {"inputs": x, "targets": y},
        lambda x, y: {"inputs": {"input": x}, "targets": y},
    ],
)
def test_every_form_of_a_batch_is_trained_on_alike(form):
    assert digest(data=[form(x, y) for x, y in batches()]) == digest()


def test_a_loader_is_its_batches():
    loader = DataLoader(TensorDataset(*examples()), batch_size=8)
    assert digest(data=loader) == digest()


POISON = {
    "nan": lambda x: x * math.nan,
    "inf": lambda x: x * math.inf,
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("place", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(poison, place, tmp_path):
    data = batches()
    x, y = data[place]
    data[place] = (POISON[poison](x), y)
    options = {"data": data, "example_inputs": EXAMPLE, "out": tmp_path / "out"}
    refused(
        transform.TrainingError, rf"loss is (nan|inf) in epoch 1, batch {place + 1}\b", **options
    )
    assert list(tmp_path.rglob("*")) == []


def test_a_diverging_run_is_stopped(tmp_path):
    train = {"epochs": 9, "lr": 1e12, "schedule": "constant", "clip_grad": None}
    method = transform.EnergyProjection(interval=1000)

    def loss(outputs, targets):
        return (outputs**2).mean()

    refused(
        (transform.TrainingError, transform.PreconditionError),
        "loss is (nan|inf)|NaN, infinite",
        train=train,
        method=method,
        loss=loss,
        out=tmp_path / "out",
    )
    assert not (tmp_path / "out" / "compressed.json").exists()


def test_a_late_nan_leaves_no_result(tmp_path):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return nn.functional.cross_entropy(outputs, targets) * (math.nan if len(calls) > 4 else 1)

    out = tmp_path / "out"
    refused(transform.TrainingError, "nan in epoch 2, batch 2", loss=loss, out=out)
    assert [path.name for path in out.iterdir()] == ["checkpoints"]
    with pytest.raises(transform.StorageError):
        transform.load(out)


def test_a_batch_of_another_shape_does_not_pass_silently():
    data = [*batches(), (torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(Exception, match=r"shape|size|cannot be multiplied"):
        run(data=data)


class TwoInputs(nn.Module):
    """Inputs `(N, 8)` and `(N, 4)`, a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 12), nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x, y):
        return {"scores": self.head(torch.relu(self.left(x) + self.right(y)))}


FORMS = {
    "flat": lambda x, y, t: (x, y, t),
    "nested": lambda x, y, t: ((x, y), t),
    "named": lambda x, y, t: {"inputs": {"x": x, "y": y}, "targets": t},
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_two_inputs_is_trained(form, tmp_path):
    make = FORMS[form]
    data = [make(x, x[:, :4] * 2, t) for x, t in batches()]
    model = seeded(TwoInputs)
    train = {"epochs": 3, "lr": 0.1, "distill": 0.3}
    result = run(model, data, train=train, valid=data, out=tmp_path / "out")
    assert result.certificate.holds
    assert [row["metric"] for row in trained_rows(result)] != []
    rows = trained_rows(result)
    assert rows[-1]["loss"] < rows[0]["loss"]
    loaded = transform.load(tmp_path / "out", TwoInputs())
    assert state_digest(loaded.model) == state_digest(result.model)
