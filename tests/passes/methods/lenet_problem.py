"""A LeNet-5 with formula-made weights, and budgets resolved on it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from energy_model.budget import Budget
from energy_model.cost import CostTable
from energy_model.hardware import load_hardware
from energy_model.resolved import ResolvedLimit
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")


def lenet() -> nn.Sequential:
    """Sites 0, 3, 7, 9 and 11; weights in float64, deterministic."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip
    return with_formula_weights(model.double())


def with_formula_weights(model: nn.Module) -> nn.Module:
    """Weights in [-1, 1) / sqrt(fan_in), from a multiplicative hash of layer and index."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers):
        weight = layer.weight
        index = np.arange(1, weight.numel() + 1, dtype=np.int64)
        unit = (index * 2654435761 + (number + 1) * 40503 * 65537) % 2**32 / 2**32 - 0.5
        values = torch.from_numpy(2 * unit / np.sqrt(weight[0].numel()))
        with torch.no_grad():
            weight.copy_(values.view(weight.shape))
    return model


def lenet_graph() -> ModelGraph:
    model = lenet()
    return trace(model, as_call(model, torch.zeros(2, 1, 32, 32, dtype=torch.float64)))


def traced(model: nn.Module, inputs: torch.Tensor) -> ModelGraph:
    return trace(model, as_call(model, inputs))


def costs_of(graph: ModelGraph) -> CostTable:
    return cost_table(graph, EYERISS)


def limits_of(graph: ModelGraph, budget: str) -> tuple[ResolvedLimit, ...]:
    """The budget in absolute terms, relative to every weight nonzero."""
    costs = costs_of(graph)
    rows = [costs[site.name] for site in graph.compressible]
    bases = {
        "energy": costs.total.dense,
        "nonzeros": sum(row.weights for row in rows),
        "weight_bits": sum(int(row.weights * row.bits) for row in rows),
        "sparse_macs": costs.total.macs,
    }
    return tuple(
        ResolvedLimit(limit, bases[limit.key], limit.resolve(bases[limit.key]))
        for limit in Budget.parse(budget)
    )


def values_of(graph: ModelGraph) -> dict[str, int]:
    """What the model uses of each limit now, recounted from its weights."""
    costs = costs_of(graph)
    rows = [costs[site.name] for site in graph.compressible]
    return {
        "energy": costs.total.energy.relaxed,
        "nonzeros": sum(row.nonzeros for row in rows),
        "weight_bits": sum(int(row.nonzeros * row.bits) for row in rows),
        "sparse_macs": sum(row.macs * row.nonzeros // row.weights for row in costs),
    }


def state_of(graph: ModelGraph) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in graph.module.state_dict().items()}


def kept_squares(graph: ModelGraph) -> float:
    return sum(float((graph.weight(site).double() ** 2).sum()) for site in graph.compressible)
