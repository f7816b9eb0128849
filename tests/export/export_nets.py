"""Small models for the tests of the exporter, and a way to thin them out."""

from __future__ import annotations

import torch
from torch import nn

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.tracing.trace import trace


class ConvNet(nn.Sequential):
    """Convolutions with batch norms that do something, a strided and a grouped one; 4 classes."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, groups=2),
            nn.BatchNorm2d(8),
            nn.Flatten(),
            nn.Linear(8 * 3 * 3, 4),
        )
        for norm in (self[1], self[4]):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)


class DeadChannel(nn.Sequential):
    """A batch norm whose second scale is zero: folded, that channel's weights are zero."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 3)
        )
        with torch.no_grad():
            self[1].weight[1] = 0


class TransposedNet(nn.Module):
    """A one-dimensional convolution and a grouped transposed one, both followed by a norm."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv1d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm1d(4)
        self.up = nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2)
        self.last = nn.BatchNorm1d(6)
        for norm in (self.norm, self.last):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)

    def forward(self, x):
        return self.last(self.up(torch.relu(self.norm(self.down(x)))))


class Tokens(nn.Sequential):
    """Linear layers on tokens: the exporter lays their weights out transposed."""

    def __init__(self):
        super().__init__(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))


class TiedNet(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7)
        self.second.weight = self.first.weight
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Recurrent(nn.Module):
    """A bidirectional LSTM: its directions lie in one initialiser, its gates reordered."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """Self-attention: three products share one parameter."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class TwoInputs(nn.Module):
    """Two inputs, a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, y):
        hidden = torch.relu(self.left(x) + self.right(y))
        return {"hidden": hidden, "scores": self.head(hidden)}


class Branching(nn.Module):
    """Python control flow that depends on values: no ONNX form."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.layer(x)
        return hidden * 2 if hidden.sum() > 0 else hidden


def built(model, inputs) -> tuple[nn.Module, object]:
    """A model and random inputs, seeded without touching the global state.

    `inputs` is one shape, or a tuple or dict of shapes, that begin with the batch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model().eval()
        if isinstance(inputs, dict):
            return made, {name: torch.randn(shape) for name, shape in inputs.items()}
        if isinstance(inputs[0], tuple):
            return made, tuple(torch.randn(shape) for shape in inputs)
        return made, torch.randn(inputs)


CASES = {
    "conv": (ConvNet, (2, 2, 8, 8)),
    "transposed": (TransposedNet, (2, 3, 9)),
    "tokens": (Tokens, (2, 5, 6)),
    "tied": (TiedNet, (3, 7)),
    "attention": (Attention, (2, 5, 8)),
    "two inputs": (TwoInputs, {"x": (2, 6), "y": (2, 4)}),
}


def thinned_graph(model, inputs) -> ModelGraph:
    """Trace a model and set every weight to zero that is below its layer's median magnitude."""
    module, example = built(model, inputs)
    graph = trace(module, as_call(module, example))
    with torch.no_grad():
        for site in graph.compressible:
            weight = graph.weight(site)
            weight[weight.abs() < weight.abs().median()] = 0
    return trace(module, as_call(module, example))
