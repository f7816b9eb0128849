"""A small net, its data, and searches over its students."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import transform
from transform import EmbeddingSearch

CLASSES = 3


class Residual(nn.Module):
    """A stem, one block with a branch that can go, a strided layer, a linear one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.inner_norm(self.inner(x)))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


def data(batches, seed):
    """Batches of noise `(12, 2, 6, 6)`, the class in one column of it."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        x = torch.randn(12, 2, 6, 6, generator=generator)
        y = torch.randint(CLASSES, (12,), generator=generator)
        x[torch.arange(12), 0, :, 2 * y] += 2
        found.append((x, y))
    return found


@cache
def _trained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for x, y in data(60, 1):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def trained():
    """A `Residual` that knows the classes."""
    model = Residual()
    model.load_state_dict(_trained().state_dict())
    return model.eval()


SMALL = {
    "steps": 3,
    "batch": 3,
    "keep": 2,
    "fidelity": (1, 2),
    "probes": 3,
    "kernels": 2,
    "pool": 24,
    "surrogate": "random",
}


def searched(budget="params<=60%", *, model=None, search=None, train=1, **options):
    """`compress` by a small search."""
    config = EmbeddingSearch(**SMALL | (search or {}))
    return transform.compress(
        trained() if model is None else model,
        budget,
        options.pop("data", data(4, 2)),
        valid=options.pop("valid", data(4, 3)),
        method=config,
        train=train,
        progress="none",
        **options,
    )
