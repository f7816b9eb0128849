"""Small models to quantize, unlabelled batches, and budgets resolved on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from lenet_problem import EYERISS, costs_of, traced
from torch import nn

from energy_model.budget import Budget
from energy_model.resolved import ResolvedLimit
from passes.graph import ModelGraph
from passes.inputs import Call
from passes.methods.base import Run
from passes.methods.plan import Plan
from passes.methods.quantize import SPEC, Quantization
from passes.methods.quantize_config import Quantize

__all__ = ["EYERISS", "costs_of", "traced"]

FLOAT_FILE = 40_000
"""Stands for the bytes of the float model's file."""


class Net(nn.Module):
    """A convolution with its norm, a tied pair of linear layers, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.second(nn.functional.gelu(self.first(x)))))


def net(seed: int = 0) -> Net:
    """A net with random weights; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net()
    with torch.no_grad():
        model.norm.running_var.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def inputs(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def graph_of(model: nn.Module) -> ModelGraph:
    return traced(model, inputs(3))


def batches(count: int) -> Iterator[Call]:
    return (Call((inputs(8, seed=10 + i),)) for i in range(count))


def limits_of(graph: ModelGraph, budget: str) -> tuple[ResolvedLimit, ...]:
    costs = costs_of(graph)
    bases = {
        "energy": costs.total.dense,
        "nonzeros": sum(site.size for site in graph.sites),
        "weight_bits": 32 * sum(site.size for site in graph.sites),
        "size": FLOAT_FILE,
    }
    return tuple(
        ResolvedLimit(limit, bases[limit.key], limit.resolve(bases[limit.key]))
        for limit in Budget.parse(budget)
    )


def method_of(**options: object) -> Quantization:
    method = SPEC.build(Quantize(**options))
    assert isinstance(method, Quantization)
    return method


def plan_of(graph: ModelGraph, budget: str = "weight_bits<=100%", **options: object) -> Plan:
    return method_of(**options).plan(graph, costs_of(graph), limits_of(graph, budget))


def quantized(graph: ModelGraph, run: Run | None = None, **options: object) -> Plan:
    """Quantize a graph in one shot."""
    method = method_of(**options)
    run = replace(run or Run(), batches=batches)
    plan = method.plan(graph, costs_of(graph), limits_of(graph, "weight_bits<=100%"))
    method.prepare(graph, plan, run)
    method.finalize(graph, run)
    return plan
