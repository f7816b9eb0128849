"""The user's own loss and metric, and models that are no classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_runs import Falling, batches, digest, examples, plain, run, seeded, trained_rows

import transform
from transform.fingerprint import state_digest

# Trainings of other tasks than classification: `make test-slow` runs them.
pytestmark = pytest.mark.slow


class Segmenter(nn.Module):
    """Classes of pixels: input `(N, 1, 8, 8)`, output `{"out": (N, 2, 8, 8)}`."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return {"out": self.head(torch.relu(self.up(torch.relu(self.norm(self.down(x))))))}


def pictures():
    """Bright squares on a dark ground, and which pixels are theirs; a border is ignored."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(24, 1, 8, 8, generator=generator) * 0.3
    y = torch.zeros(24, 8, 8, dtype=torch.int64)
    for number in range(24):
        top, left = torch.randint(0, 5, (2,), generator=generator).tolist()
        x[number, 0, top : top + 4, left : left + 4] += 0.6
        y[number, top : top + 4, left : left + 4] = 1
    y[:, 0] = 255
    return list(zip(x.split(8), y.split(8), strict=True))


def pixel_loss(outputs, targets):
    return F.cross_entropy(outputs["out"], targets, ignore_index=255)


class IntersectionOverUnion:
    """Of the foreground, over all batches."""

    def reset(self):
        self.both = self.any = 0

    def update(self, outputs, targets):
        found, known = outputs["out"].argmax(1) == 1, targets != 255
        self.both += int((found & (targets == 1) & known).sum())
        self.any += int(((found | (targets == 1)) & known).sum())

    def compute(self):
        return self.both / max(1, self.any)


@pytest.fixture(scope="module")
def segmenter():
    """A model that has learnt the squares."""
    return run(
        seeded(Segmenter),
        pictures(),
        "nonzeros<=100%",
        loss=pixel_loss,
        train={"epochs": 30, "lr": 0.1},
    ).model


def test_a_segmentation_model_with_its_own_loss_and_metric(segmenter, tmp_path):
    data = pictures()
    options = {"valid": data, "metric": IntersectionOverUnion(), "loss": pixel_loss}
    train = {"epochs": 12, "lr": 0.1, "distill": 0.2}
    result = run(segmenter, data, "energy<=70%", train=train, out=tmp_path / "out", **options)
    assert result.certificate.holds
    assert result.metrics["before"] > 0.9
    assert result.metrics["after"] > 0.8
    own = IntersectionOverUnion()
    own.reset()
    with torch.no_grad():
        for x, y in data:
            own.update(result.model(x), y)
    assert own.compute() == pytest.approx(result.metrics["after"])
    assert max(row["metric"] for row in trained_rows(result) if row["within"]) == pytest.approx(
        result.metrics["after"]
    )
    assert transform.load(tmp_path / "out", Segmenter()).metrics == result.metrics


def test_the_users_loss_is_what_is_minimised():
    """A loss that pulls all outputs to 7 leaves nothing of the classes."""

    def loss(outputs, targets):
        return (outputs - 7).abs().mean()

    x, _ = examples()
    result = run(loss=loss, train={"epochs": 60, "lr": 0.1})
    with torch.no_grad():
        assert float((result.model(x) - 7).abs().mean()) < 1.0
        assert float((plain()(x) - 7).abs().mean()) > 5.0


def test_the_loss_is_given_outputs_and_targets():
    seen = []

    def loss(outputs, targets):
        seen.append((tuple(outputs.shape), outputs.requires_grad, targets))
        return F.cross_entropy(outputs, targets)

    own = digest(loss=loss)
    assert own == digest()
    assert [(shape, grad) for shape, grad, _ in seen] == [((8, 3), True)] * 6
    assert all(torch.equal(seen[i][2], batches()[i % 3][1]) for i in range(6))


def test_targets_of_any_kind_reach_the_loss():
    data = [(x, {"a": x.sum(1), "b": [y]}) for x, y in batches()]

    def loss(outputs, targets):
        return F.mse_loss(outputs.sum(1), targets["a"]) + F.cross_entropy(outputs, targets["b"][0])

    result = run(data=data, loss=loss, train={"epochs": 5, "lr": 0.05})
    rows = trained_rows(result)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.metrics == {"before": None, "after": None}


def test_a_function_and_an_accumulator_of_the_same_metric_agree():
    class Share:
        def reset(self):
            self.right = self.all = 0

        def update(self, outputs, targets):
            self.right += int((outputs.argmax(1) == targets).sum())
            self.all += len(targets)

        def compute(self):
            return self.right / self.all

    def share(outputs, targets):
        return float((outputs.argmax(1) == targets).float().mean())

    uneven = [*batches(), examples(3, 4)]
    found = []
    for metric in (None, share, Share()):
        result = run(valid=uneven, metric=metric, train={"epochs": 4, "lr": 0.1})
        found.append([row["metric"] for row in trained_rows(result)])
        assert state_digest(result.model) == digest(valid=uneven, train={"epochs": 4, "lr": 0.1})
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])


def test_the_metric_selects():
    """Two metrics that rank the epochs the other way round select different ones."""

    class Rising(Falling):
        def compute(self):
            return len(self.seen)

    method = transform.EnergyProjection(schedule="none")
    options = {"valid": batches(), "train": {"epochs": 3, "lr": 0.1}, "method": method}
    falling, rising = (digest(metric=metric, **options) for metric in (Falling(), Rising()))
    last = digest(metric=Falling(), **options | {"train": options["train"] | {"select": "last"}})
    assert rising == last != falling


def test_without_a_metric_that_applies_the_last_epoch_is_kept():
    data = [(x, x[:, :3]) for x, _ in batches()]
    options = {"data": data, "loss": F.mse_loss, "train": {"epochs": 3, "lr": 0.1}}
    result = run(valid=data, **options)
    assert [row["metric"] for row in trained_rows(result)] == [None] * 3
    assert state_digest(result.model) == digest(**options)


def test_a_metric_that_fails_is_named():
    def metric(outputs, targets):
        raise KeyError("iou")

    with pytest.raises(transform.ArgumentError, match="valid: the model or the metric fails"):
        run(valid=batches(), metric=metric)
