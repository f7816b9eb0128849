"""Small networks with what quantizers of activations have to deal with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.tracing.trace import trace


def traced(model: nn.Module, inputs: Any) -> ModelGraph:
    return trace(model, as_call(model, inputs))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, and running statistics that a trained model might have."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.copy_(module.weight.abs() + 0.5)
                module.running_mean.copy_(
                    0.1 * torch.randn(module.running_mean.shape, generator=generator)
                )
                module.running_var.copy_(
                    0.5 + torch.rand(module.running_var.shape, generator=generator)
                )
    return model


def perceptron() -> nn.Module:
    """Sites 1, 3 and 6."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.2),
        nn.Linear(16, 5),
    )  # fmt: skip


class Residual(nn.Module):
    """A stem, a max pool, a block with a shortcut, the mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        y = self.norm2(self.second(F.relu6(self.norm1(self.first(x)))))
        x = F.relu(x + y)
        return self.head(x.mean([2, 3]))


class Dense(nn.Module):
    """Concatenation before a norm that no layer takes up, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grow = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow(torch.relu(self.norm(x)))], 1)
        x = F.hardswish(self.last(torch.relu(self.norm2(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Squeeze(nn.Module):
    """A squeeze-and-excite block between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.down = nn.Conv2d(8, 4, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        s = F.adaptive_avg_pool2d(x, 1)
        s = torch.sigmoid(self.up(F.relu(self.down(s))))
        return self.last(x * s)


class Encoder(nn.Module):
    """A transformer encoder block in plain torch, on token numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        a = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, dim=-1) @ v
        x = x + self.out(a)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x)


class Shared(nn.Module):
    """A layer that is called twice, so that no norm is folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.layer(x)))
        return self.last(torch.relu(self.layer(x)))
