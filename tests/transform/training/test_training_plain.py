"""Training without a budget: the same loop, resumed bit for bit, tested once."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.zoo import digits_cnn
from bench.zoo.data import load_data
from energy_model.errors import ArgumentError, StorageError, TrainingError
from transform import TrainConfig
from transform.storage import CHECKPOINTS
from transform.training.checkpoint import Checkpoints
from transform.training.plain import train_plain

CONFIG = TrainConfig(epochs=3, batches_per_epoch=4, optimizer="adam", lr=2e-3)


def cnn():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return digits_cnn()


def digits():
    return load_data("digits", batch_size=64)


def trained(model=None, config=CONFIG, **options):
    data = digits()
    options = {"valid": data.valid, "progress": "none"} | options
    return train_plain(model or cnn(), data.train, config, **options)


def states(first, second):
    return zip(first.state_dict().values(), second.state_dict().values(), strict=True)


def test_the_callers_model_and_random_state_are_untouched():
    model, random = cnn(), torch.get_rng_state()
    result = trained(model)
    assert all(torch.equal(a, b) for a, b in states(model, cnn()))
    assert not all(torch.equal(a, b) for a, b in states(model, result.model))
    assert torch.equal(torch.get_rng_state(), random)
    assert type(result.model) is type(model)
    assert result.metrics["test"] is None


def test_every_weight_is_free():
    """No budget, no mask: nothing is zero after training."""
    assert all(torch.count_nonzero(p) == p.numel() for p in trained().model.parameters())


def test_test_data_are_read_once_and_last():
    reads = []

    class Watched(list):
        def __iter__(self):
            reads.append(self.name)
            return super().__iter__()

    data = digits()
    valid, test = Watched(data.valid), Watched(data.test)
    valid.name, test.name = "valid", "test"
    result = train_plain(cnn(), data.train, CONFIG, valid=valid, test=test, progress="none")
    assert reads == ["valid"] * (CONFIG.epochs + 1) + ["test"]
    best = max(row["metric"] for row in result.history)
    assert result.metrics["valid"] == best


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = trained(out=tmp_path / "whole", about={"data": "digits"})
    save = Checkpoints.save

    def killed(self, epoch, state):
        save(self, epoch, state)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", killed)
        trained(out=tmp_path / "parts", about={"data": "digits"})
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [CHECKPOINTS]
    with pytest.raises(StorageError, match="another run"):
        trained(out=tmp_path / "parts", about={"data": "digits"}, seed=1)
    parts = trained(out=tmp_path / "parts", about={"data": "digits"})
    assert parts.history == whole.history
    for name in ("weights.safetensors", "train.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((tmp_path / "parts").iterdir())) == 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


def test_tied_weights_are_written_under_both_names(tmp_path):
    result = trained(Tied(), out=tmp_path / "tied", config=TrainConfig(epochs=1))
    saved = load_file(tmp_path / "tied" / "weights.safetensors")
    assert torch.equal(saved["first.weight"], saved["second.weight"])
    assert torch.equal(saved["first.weight"], result.model.first.weight)
    report = json.loads((tmp_path / "tied" / "train.json").read_bytes())
    assert report["metrics"] == result.metrics


def test_what_cannot_be_trained_writes_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="no targets"):
        train_plain(cnn(), [torch.zeros(2, 1, 8, 8)], CONFIG, out=out, progress="none")
    config = TrainConfig(epochs=1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(ArgumentError, match="cannot be written down"):
        trained(config=config, out=out)
    assert not out.exists()
