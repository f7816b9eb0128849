"""Small models for the joint method under a limit on energy, and what is recounted on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from energy_model.budget import Budget
from energy_model.hardware import Hardware, load_hardware
from energy_model.resolved import ResolvedLimit
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.joint.fit import fit_codebook
from passes.methods.joint.config import Joint
from passes.methods.joint.energy_limit import EnergyLimit
from passes.methods.joint.energy_rate import EnergyRate, charged
from passes.methods.joint.rates import Layer
from passes.methods.joint.targets import Targets, find_targets
from passes.projection.magnitudes import top_mask
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
ODD = EYERISS.replace(dram_energy=201, rf_energy=3, word_bits=13, index_bits=3)


def net(seed: int = 0) -> nn.Sequential:
    """Sites 0, 3 and 7; activations are 47 % of the energy."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def tiny(seed: int = 0) -> nn.Sequential:
    """A convolution of 4 weights and a linear layer of 6."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.Flatten(), nn.Linear(6, 1, bias=False))


IMAGE, SMALL_IMAGE = torch.zeros(1, 3, 12, 12), torch.zeros(1, 1, 3, 4)


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Labelled batches for `net`."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 3, 12, 12, generator=generator),
            torch.randint(10, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def graph_of(model: nn.Module, inputs: Tensor) -> ModelGraph:
    return trace(model, as_call(model, inputs))


def limit_of(graph: ModelGraph, budget: str, hardware: Hardware = EYERISS) -> ResolvedLimit:
    """One limit on energy, relative to every weight nonzero in whole words."""
    [limit] = Budget.parse(budget)
    base = cost_table(graph, hardware).total.dense
    return ResolvedLimit(limit, base, limit.resolve(base, hardware))


def problem_of(
    graph: ModelGraph, budget: str, hardware: Hardware = EYERISS, config: Joint | None = None
) -> tuple[Targets, EnergyLimit, EnergyRate, list[Layer]]:
    targets = find_targets(graph, config or Joint(levels="uniform"), trained=False)
    limit = EnergyLimit.of(graph, targets, limit_of(graph, budget, hardware), hardware)
    rate = EnergyRate(tuple(t.site for t in targets.rows), hardware)
    return targets, limit, rate, [t.bounds for t in targets.rows]


@lru_cache
def traced_net() -> ModelGraph:
    """The graph of `net`, for tests that leave it as it was."""
    return graph_of(net(), IMAGE)


def relaxed(graph: ModelGraph, bits: dict[str, int], hardware: Hardware) -> float:
    """The energy model's own count, of the weights as they are at given widths."""
    before = graph.sites
    graph.sites = tuple(charged(s, bits[s.name]) if s.name in bits else s for s in before)
    total = cost_table(graph, hardware).total.energy.relaxed
    graph.sites = before
    return total


def rounding_error(
    weights: Sequence[Tensor], masks: Sequence[Tensor], bits: Sequence[int]
) -> float:
    """Squared change of weights that are masked and rounded to the best grid of zero and levels."""
    total = 0.0
    for weight, mask, width in zip(weights, masks, bits, strict=True):
        kept = weight.detach()[mask]
        total += float(weight.detach()[~mask].double().square().sum())
        if len(kept):
            total += fit_codebook(kept, width, reserved_zero=False, kind="uniform").sse
    return total


def optimum(
    weights: Sequence[Tensor], rate: EnergyRate, budget: int, widths: Sequence[int]
) -> float:
    """Least squared change of all widths and all numbers of largest weights, one by one."""
    masks = [[top_mask(w, k) for k in range(w.numel() + 1)] for w in weights]
    options = [
        [
            (int(rate.energy(i, b, k)), rounding_error([w], [mask], [b]))
            for b in widths
            for k, mask in enumerate(own)
        ]
        for i, (w, own) in enumerate(zip(weights, masks, strict=True))
    ]
    return min(
        sum(error for _, error in chosen)
        for chosen in itertools.product(*options)
        if sum(used for used, _ in chosen) <= budget
    )
