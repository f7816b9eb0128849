"""Small models for the tests of the verb."""

from __future__ import annotations

import torch
from torch import nn


class SmallConv(nn.Module):
    """A convolution, a norm and a linear layer: input `(N, 2, 8, 8)`, 5 classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 64, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


class TiedNet(nn.Module):
    """Two layers with one weight: input `(N, 8)`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class TwoInputs(nn.Module):
    """Two inputs and a dict of outputs: inputs `(N, 6)` and `(N, 4)`."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, y):
        return {"scores": self.head(torch.relu(self.left(x) + self.right(y)))}


class DictInput(nn.Module):
    """One argument, a dict of tensors."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 3), nn.Linear(4, 3)

    def forward(self, batch):
        return self.left(batch["a"]) + self.right(batch["b"])


class Recurrent(nn.Module):
    """An LSTM and a head: input `(N, T, 5)`."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Branching(nn.Module):
    """Control flow that depends on values, at the root: input `(N, 6)`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden * 2 if hidden.sum() > 0 else hidden)


class OwnLeaf(nn.Module):
    """A layer of the user's own class that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.inner(x)
        return -hidden if hidden.sum() > 0 else hidden


class HoldsOwnLeaf(nn.Module):
    """Traceable but for one leaf: input `(N, 6)`."""

    def __init__(self):
        super().__init__()
        self.first, self.leaf, self.head = nn.Linear(6, 6), OwnLeaf(), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.leaf(torch.relu(self.first(x))))


INPUTS = {
    SmallConv: (2, 2, 8, 8),
    TiedNet: (3, 8),
    TwoInputs: ((3, 6), (3, 4)),
    DictInput: {"a": (3, 6), "b": (3, 4)},
    Recurrent: (2, 4, 5),
    Branching: (2, 6),
    HoldsOwnLeaf: (2, 6),
}


def made(model, seed=0):
    """An instance and an example, seeded without touching the global state."""
    shapes = INPUTS[model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        instance = model()
        if isinstance(shapes, dict):
            return instance, {name: torch.randn(shape) for name, shape in shapes.items()}
        if isinstance(shapes[0], tuple):
            return instance, tuple(torch.randn(shape) for shape in shapes)
        return instance, torch.randn(shapes)


def weights_of(model):
    """The weight tensors of convolutions, linear and recurrent layers, each once."""
    layers = (nn.Conv2d, nn.Linear, nn.LSTM)
    found = {}
    for layer in model.modules():
        if isinstance(layer, layers):
            for name, parameter in layer.named_parameters(recurse=False):
                if name.startswith("weight"):
                    found[id(parameter)] = parameter
    return list(found.values())


def nonzeros_of(model):
    """Nonzero weights of a model, counted by hand."""
    return sum(int((weight != 0).sum()) for weight in weights_of(model))
