"""Gated nets, populations of random states, and what must not change."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import structure_nets as nets
import torch
from slicing import random_state, randomize
from torch import nn

from passes.inputs import as_call
from passes.ising.layout import Layout
from passes.rewrite.live_gates import attach_gates
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace

STRUCTURES = ("Residual", "Depthwise", "Concat", "Flat", "SqueezeExcite")


def seeded(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def built(name, seed=0):
    return randomize(seeded(getattr(nets, name), seed))


def gated(model, *inputs, dtype=torch.float64):
    """The gates of a traced model, its graph and the call."""
    model = model.to(dtype).eval()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    graph = trace(model, as_call(model, inputs))
    groups = channel_groups(graph)
    gates = attach_gates(graph, groups, Layout.of(groups))
    return gates, graph, as_call(model, inputs)


def population(gates, states=8):
    """Different random states."""
    groups = gates.groups
    rows = [gates.layout.bits(groups, random_state(groups, seed)) for seed in range(states)]
    return torch.stack(rows)


def fingerprint(module):
    """Everything that scoring must leave alone."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(str(tensor.grad is None).encode())
    flags = [(path, part.training) for path, part in module.named_modules()]
    attributes = [sorted(vars(part)) for part in module.modules()]
    generators = (torch.get_rng_state().numpy().tobytes(), random.getstate())
    numpy_state = str(np.random.get_state())  # noqa: NPY002
    return digest.hexdigest(), flags, attributes, generators, numpy_state


class Two(nn.Module):
    """Two inputs, one of them by keyword, and two outputs and a number."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 8)
        self.norm = nn.BatchNorm2d(8)
        self.mix, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x, y):
        shift = torch.relu(self.right(y))
        x = torch.relu(self.norm(self.left(x))) + shift[:, :, None, None]
        features = torch.relu(self.mix(x)).mean((2, 3))
        return {"logits": self.head(features), "plain": y * 2, "number": 3}


class Counting(nn.Module):
    """Writes into a buffer and an attribute in every forward, draws numbers, and may raise."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.norm = nn.BatchNorm2d(6)
        self.register_buffer("calls", torch.zeros(()))
        self.fails = Failing()

    def forward(self, x):
        self.calls.add_(1)
        x = torch.relu(self.norm(self.first(x)))
        x = x + torch.rand_like(x[:1, :1])
        return self.second(self.fails(x)).mean((2, 3))


class Failing(nn.Module):
    traced_as_layer = True
    fail = False

    def forward(self, x):
        np.random.rand()  # noqa: NPY002
        random.random()
        if self.fail:
            raise RuntimeError("the model fails")
        return x
