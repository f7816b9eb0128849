"""End to end: against masks by chance and pruning by norms, trained alike, over five seeds."""

from __future__ import annotations

import gc
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from ising_nets import seeded
from torch import nn

import transform
from passes.methods.ising import Ising

SIDE, CLASSES, SEEDS = 8, 4, range(5)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def blobs(seed: int, count: int, noise: float = 1.1):
    """A blob in one of four quarters, with noise: images `(32, 1, 8, 8)` and classes."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        y = torch.randint(CLASSES, (32,), generator=generator)
        x = noise * torch.randn(32, 1, SIDE, SIDE, generator=generator)
        for row, label in enumerate(y.tolist()):
            at = torch.randint(3, (2,), generator=generator)
            top, left = int(at[0]) + 4 * (label // 2), int(at[1]) + 4 * (label % 2)
            x[row, 0, top : top + 2, left : left + 2] += 2.0
        batches.append((x, y))
    return batches


@cache
def trained(seed: int) -> nn.Sequential:
    model = seeded(net, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for x, y in 4 * blobs(100 + seed, 24):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@cache
def accuracies(method) -> list[float]:
    """In percent, of every seed: half the work is taken from a trained net, and it is tuned."""
    return [_accuracy(method, seed) for seed in SEEDS]


def _accuracy(method, seed: int) -> float:
    gc.freeze()
    try:
        result = transform.compress(
            trained(seed),
            "macs<=50%",
            blobs(100 + seed, 24),
            valid=blobs(999, 16),
            method=method,
            train=transform.TrainConfig(epochs=1, lr=0.01, momentum=0.9, select="last"),
            seed=seed,
            progress="none",
        )
    finally:
        gc.unfreeze()
    assert result.certificate.holds
    return 100 * float(result.metrics["after"])


def mean(numbers) -> float:
    return sum(numbers) / len(numbers)


@pytest.mark.slow
@pytest.mark.parametrize("energy", ["margin", "combined"])
def test_it_is_better_than_chance_and_near_pruning_by_norms(energy):
    """Masks by chance; of the same search with numbers by chance, six steps tell no difference."""
    found = accuracies(Ising(energy=energy))
    paired = [a - b for a, b in zip(found, accuracies("random"), strict=True)]
    assert mean(paired) >= 0, (found, accuracies("random"))
    assert mean(found) >= mean(accuracies(Ising(energy="random"))) - 1
    assert mean(found) >= mean(accuracies("l1")) - 1, (found, accuracies("l1"))
    assert mean(found) > 85  # of 25 by chance
