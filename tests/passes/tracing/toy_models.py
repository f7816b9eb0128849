"""Small models, each with one thing that is hard to trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energy_model.shapes import LayerShape
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.tracing.trace import trace


class Apply(nn.Module):
    """Runs a function of itself and its inputs; keywords become its members."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, nn.Parameter(member) if isinstance(member, Tensor) else member)

    def forward(self, x):
        return self.function(self, x)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, query, key, value):
        return self.attention(query, key, value)[0]


class Branch(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x):
        if x.abs().sum() > 0:
            x = self.up(x)
        return x


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.inner(x)) + x


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 64)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5, training=self.training)


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x):
        return F.batch_norm(self.fc(x), self.mean, self.variance, training=self.training)


class DropPath(nn.Module):
    """Has another structure in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((x.shape[0], 1), 0.5))


class Auxiliary(nn.Module):
    """Returns a second output in training, from its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x):
        x = self.fc(x)
        return (x, self.auxiliary(x)) if self.training else x


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 4)
        self.right = nn.Linear(5, 4)

    def forward(self, a, b=None, *, scale=1.0):
        y = self.left(a) * scale
        if b is not None:
            y = y + self.right(b)
        return {"sum": y, "parts": [y.mean(), (y.abs(), None)]}


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, batch):
        return self.fc(batch["x"]) + batch["y"]


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def tied_linears() -> nn.Sequential:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def traced(model: nn.Module, inputs: Any) -> ModelGraph:
    return trace(model, as_call(model, inputs))


def seeded(seed: int, model: Callable[..., Any], x: Any) -> Any:
    """Run a model under a given state of the global generator, which is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(x)


def uses(graph: ModelGraph) -> dict[str, list[tuple[LayerShape, int]]]:
    """Every site with its shapes and how often each is used."""
    return {site.name: [(u.shape, u.count) for u in site.uses] for site in graph.sites}


def opaque(graph: ModelGraph) -> list[str]:
    return [leaf.path for leaf in graph.leaves]
