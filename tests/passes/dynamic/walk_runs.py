"""Small nets with an engine whose connections walk, trained by made-up gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from passes.dynamic.engine import Member, RewireEngine
from passes.dynamic.random_keys import key_of, normals
from passes.dynamic.rule import RULES, Rule
from passes.dynamic.schedule import Clock
from passes.dynamic.start import SparseShape, uniform_exact
from passes.dynamic.start_masks import start_masks
from passes.dynamic.walk import Walk
from passes.graph import ModelGraph
from passes.inputs import Call
from passes.tracing.trace import trace

SEED = 3


def rule_of(walk: Walk | None = None, **changed: Any) -> Rule:
    return replace(RULES["deepr"], walk=walk or Walk(), **changed)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(128, 5)
    )


def linear(inputs: int, outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False))


def built(
    rule: Rule,
    density: float = 0.3,
    *,
    model: nn.Module | None = None,
    example: Tensor | None = None,
    clock: Clock | None = None,
    turned: bool = False,
    fixed: tuple[str, ...] = (),
) -> tuple[ModelGraph, RewireEngine]:
    example = torch.zeros(2, 2, 6, 6) if example is None else example
    graph = trace(model or net(), Call((example,)))
    sites = graph.compressible[::-1] if turned else graph.compressible
    shapes = [SparseShape(s.name, tuple(graph.parameter(s).shape)) for s in sites]
    total = int(density * sum(shape.parameters for shape in shapes))
    counts = uniform_exact(shapes, total)
    members = [
        Member(site, shape, count, movable=site.name not in fixed)
        for site, shape, count in zip(sites, shapes, counts, strict=True)
    ]
    engine = RewireEngine(graph, members, rule, clock or Clock(5, 1000), SEED)
    engine.attach(start_masks(counts, shapes, SEED))
    return graph, engine


def sgd(graph: ModelGraph, lr: float = 0.05, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(graph.module.parameters(), lr=lr, momentum=momentum)


def push(graph: ModelGraph, engine: RewireEngine, step: int, size: float) -> None:
    """Gradients of one step: random, at active weights, and a pull towards zero."""
    for parameter in graph.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for member in engine.members:
        weight, gradient = graph.weight(member.site), graph.parameter(member.site).grad
        key = key_of(11, step, member.site.name)
        noise = normals(key, weight.numel()).reshape(weight.shape)
        keep = engine.mask(member).reshape(weight.shape)
        gradient.copy_(torch.where(keep, size * noise + 0.1 * weight, torch.zeros(())))


def steps(
    graph: ModelGraph,
    engine: RewireEngine,
    optimizer: torch.optim.Optimizer,
    numbers: range,
    size: float = 0.1,
) -> Iterator[dict[str, Any] | None]:
    """Train, and give what every step tells the history."""
    for step in numbers:
        push(graph, engine, step, size)
        engine.before_step(step, optimizer)
        optimizer.step()
        yield engine.after_step(step, optimizer)


def masks(engine: RewireEngine) -> dict[str, Tensor]:
    return {m.site.name: engine.mask(m) for m in engine.members}


def weights(engine: RewireEngine) -> dict[str, Tensor]:
    return {m.site.name: engine.graph.weight(m.site).reshape(-1).clone() for m in engine.members}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and len(one) == len(other)
