"""Tiny models and data for the tests of training, and a run with everything at a default."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

import transform
from transform.fingerprint import state_digest
from transform.training.losses import distillation
from transform.training.optimizers import LearningRate

CLASSES = 3
FEATURES = 8


def seeded(make, seed=0):
    """What `make()` returns, from a seed, without touching the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def plain(seed=0):
    """No norm, no dropout: input `(N, 8)`, 3 classes, 176 weights."""
    return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), seed)


def rich(seed=0, p=0.2):
    """With a norm and dropout."""

    def make():
        parts = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3)
        return nn.Sequential(*parts)

    return seeded(make, seed)


def examples(count=24, seed=1):
    """Inputs `(N, 8)` and classes that can be learnt from them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    return x, x[:, :CLASSES].argmax(1)


def batches(size=8, count=24, seed=1):
    """The examples in batches."""
    x, y = examples(count, seed)
    return list(zip(x.split(size), y.split(size), strict=True))


def run(model=None, data=None, budget="nonzeros<=50%", **options):
    """Compress with training; 2 epochs and a projection every second step by default."""
    options = {
        "train": {"epochs": 2, "lr": 0.05},
        "method": transform.EnergyProjection(interval=2),
        "progress": "none",
    } | options
    return transform.compress(
        plain() if model is None else model, budget, batches() if data is None else data, **options
    )


def digest(**options):
    """The state of the result of `run`."""
    return state_digest(run(**options).model)


def trained_rows(result):
    """The history's rows of training."""
    return [row for row in result.history if row["event"] == "trained"]


def nonzeros(model):
    """Nonzero weights of all layers."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return sum(int((layer.weight != 0).sum()) for layer in layers)


class Recorded:
    """Batches that note how they are read."""

    def __init__(self, items):
        self.items, self.epochs, self.served = items, 0, []

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        self.epochs += 1
        for number, item in enumerate(self.items):
            self.served.append(number)
            yield item


class Falling:
    """A metric that is worse at every evaluation; notes the outputs it was shown."""

    def __init__(self):
        self.seen = []

    def reset(self):
        self.seen.append([])

    def update(self, outputs, targets):
        self.seen[-1].append(outputs.clone())

    def compute(self):
        return 1 / len(self.seen)


def reference(model, data, config, teacher=None):
    """A plain torch training loop, for configurations without dropout, norm or budget."""
    model, rate = copy.deepcopy(model).train(), LearningRate(config)
    flat = [p for p in model.parameters() if p.dim() < 2]
    full = [p for p in model.parameters() if p.dim() > 1]
    kept = config.weight_decay if config.decay_norm_and_bias else 0.0
    groups = [{"params": full, "weight_decay": config.weight_decay}]
    groups.append({"params": flat, "weight_decay": kept})
    makers = {
        "sgd": lambda g: torch.optim.SGD(
            g, lr=1.0, momentum=config.momentum, nesterov=config.nesterov
        ),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adadelta": torch.optim.Adadelta,
    }
    optimizer = makers.get(config.optimizer, config.optimizer)(groups)
    data = data[: config.batches_per_epoch]
    for epoch in range(config.epochs):
        for start in range(0, len(data), config.accumulate):
            group = data[start : start + config.accumulate]
            optimizer.zero_grad()
            for x, y in group:
                outputs = model(x)
                loss = F.cross_entropy(outputs, y, label_smoothing=config.label_smoothing)
                if config.distillation is not None:
                    share = config.distillation.weight
                    taught = distillation(outputs, teacher(x), config.distillation)
                    loss = (1 - share) * loss + share * taught
                (loss / len(group)).backward()
            if config.clip_grad is not None:
                norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
                for p in model.parameters():
                    p.grad.mul_(min(1.0, config.clip_grad / norm))
            last = start + len(group) - 1
            for entry in optimizer.param_groups:
                entry["lr"] = rate.at(epoch + last / len(data))
            optimizer.step()
    return model
