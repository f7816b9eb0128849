"""The tables for real, on small models: compressed, exported, run and timed."""

from __future__ import annotations

import pytest
import torch

import bench.integer.post_training as post_training
from bench.integer.cnn import resnet18_section
from bench.integer.models import Trained, random_batches, seeded, trained_resnet20
from bench.integer.ours import Setup
from bench.integer.weight_only import encoder_section, linear_section
from bench.layer_plan import plan_layers
from bench.zoo import resnet20
from bench.zoo.data_root import data_root

# ResNet-18 is reconstructed layer by layer: six minutes on a quiet machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path, tmp_path, rounds=2, say=lambda line: None)


def test_a_linear_layer_multiplies_codes(setup):
    section = linear_section(setup, width=64)
    assert [row.kernels for row in section.rows] == ["0 integer, 1 float"] + [
        "1 integer, 0 float"
    ] * 3
    error = [row.error for row in section.rows[1:]]
    assert 0 < error[0] < 0.02 < error[1] < 0.3
    assert section.rows[1].bytes < section.rows[0].bytes / 3


def test_an_encoder(setup):
    section = encoder_section(setup, width=64, layers=1, tokens=4)
    assert all(row.note == "" for row in section.rows)
    assert int(section.rows[2].kernels.split()[0]) == 6


def test_resnet18_runs_in_integers_with_half_its_channels(setup):
    section = resnet18_section(setup, side=32)
    assert [row.kernels.split()[0] for row in section.rows] == ["0", "21", "0", "21"]
    sizes = [row.bytes for row in section.rows]
    assert sizes[3] < sizes[1] < sizes[2] < sizes[0] or sizes[3] < sizes[2] < sizes[0]
    plan = plan_layers(setup.file("r18-whole"), setup.file("r18-whole-int8"), rounds=2)
    assert list(plan.float_times) == list(plan.integer_times)
    assert "layer1.0.conv1" in plan.float_times


def test_post_training_of_an_untrained_model(setup, monkeypatch):
    data = random_batches(8, 3, 32, 32, count=2)
    test = [(batch, torch.zeros(8, dtype=torch.long)) for batch in data]
    trained = Trained(seeded(resnet20), data, test)
    monkeypatch.setattr(post_training, "trained_resnet20", lambda root: trained)
    rows = post_training.post_training_section(setup).rows
    assert len(rows) == 13
    assert all(row.seconds > 0 for row in rows[1:])


@pytest.mark.data
def test_the_trained_model_and_its_images(tmp_path, monkeypatch):
    if not (data_root() / "ci" / "cifar10").exists():
        pytest.skip(f"{data_root()} IS ABSENT: set TRANSFORM_DATA to the data root")
    monkeypatch.setenv("TRANSFORM_CACHE", str(tmp_path))
    found = trained_resnet20(data_root(), images=100, data="cifar10-jpeg:ci=1,normalize=imagenet")
    assert [len(batch) for batch in found.unlabelled] == [64, 36]
    right = sum(int((found.model(x).argmax(1) == y).sum()) for x, y in found.test)
    assert right / 2000 > 0.85
