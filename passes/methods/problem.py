"""A budget over single weights: what every weight is charged, and what each limit leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.graph import LayerRule, ModelGraph, Site
from passes.projection.ladder import Ladder, build_ladder
from passes.projection.magnitudes import Histogram, histogram

SERVES = frozenset({"energy", "nonzeros", "weight_bits"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A budget over single weights.

    Attributes:
        sites: The layers, in order.
        weights: Their weights, read only.
        ladders: What their weights are charged.
        histograms: Magnitudes of their weights.
        minimums: Weights that each layer keeps at least.
        limits: The budget.
        fixed: Use of each limit that no weight can change.
    """

    sites: tuple[Site, ...]
    weights: tuple[Tensor, ...]
    ladders: tuple[Ladder, ...]
    histograms: tuple[Histogram, ...]
    minimums: tuple[int, ...]
    limits: tuple[ResolvedLimit, ...]
    fixed: tuple[int, ...]

    def used(self) -> tuple[int, ...]:
        """Use of each limit by the weights as they are."""
        each = [
            ladder.used(counted.nonzeros)
            for ladder, counted in zip(self.ladders, self.histograms, strict=True)
        ]
        return tuple(f + sum(c) for f, c in zip(self.fixed, zip(*each, strict=True), strict=True))

    @property
    def capacities(self) -> tuple[int, ...]:
        """What each limit leaves for weights."""
        pairs = zip(self.limits, self.fixed, strict=True)
        return tuple(int(limit.maximum) - fixed for limit, fixed in pairs)


def build_problem(
    graph: ModelGraph,
    costs: CostTable,
    limits: Sequence[ResolvedLimit],
    *,
    min_per_layer: int,
    min_density: float,
    saved: int = 0,
) -> Problem:
    """Set the problem up, and check that it has a solution.

    Args:
        graph: The traced model; read only.
        costs: Costs of its sites.
        limits: The budget in absolute terms.
        min_per_layer: Weights that every layer keeps at least.
        min_density: Share of its weights that every layer keeps at least.
        saved: Energy of activations that will be saved by the time the budget must hold.

    Raises:
        InfeasibleBudget: What cannot be removed exceeds a limit.
        PreconditionError: A weight is not finite.
    """
    sites = graph.compressible
    if not sites:
        raise PreconditionError(
            "every weight is computed in forward (weight normalisation or the like), so that none "
            "can be compressed",
            where=type(graph.module).__name__,
            remedy="Merge the reparametrization first: remove_parametrizations(layer, 'weight').",
        )
    weights = tuple(graph.weight(site) for site in sites)
    histograms = tuple(histogram(w, s.name) for w, s in zip(weights, sites, strict=True))
    minimums = tuple(
        min(_least(graph, site, min_per_layer, min_density), h.nonzeros)
        for site, h in zip(sites, histograms, strict=True)
    )
    ladders = tuple(
        build_ladder(site.size, _charges(site, weight, costs, limits), forced=least)
        for site, weight, least in zip(sites, weights, minimums, strict=True)
    )
    fixed = tuple(
        _fixed(graph, costs, limit.key) - (saved if limit.key == "energy" else 0)
        for limit in limits
    )
    problem = Problem(sites, weights, ladders, histograms, minimums, tuple(limits), fixed)
    _check_feasible(problem, costs)
    return problem


def _least(graph: ModelGraph, site: Site, min_per_layer: int, min_density: float) -> int:
    """Weights that a layer keeps at least: by the method, and by the rule for this layer."""
    rule = graph.rules.get(site.name, LayerRule())
    return max(min_per_layer, math.ceil(min_density * site.size), rule.least(site.size))


def _charges(
    site: Site, weight: Tensor, costs: CostTable, limits: Sequence[ResolvedLimit]
) -> list[tuple[int, tuple[int, ...]]]:
    """Charges of the weights that fit the weight cache, and of those beyond it."""
    price = site.price(costs.hardware)
    bits = weight.element_size() * 8

    def row(energy: int) -> tuple[int, ...]:
        each = {"energy": energy, "nonzeros": 1, "weight_bits": bits}
        return tuple(each[limit.key] for limit in limits)

    return [(price.capacity, row(price.first)), (site.size, row(price.beyond))]


def _fixed(graph: ModelGraph, costs: CostTable, key: str) -> int:
    """Energy of activations, and of weights that are computed and cannot be compressed."""
    if key != "energy":
        return 0
    floors = sum(site.activation_energy(costs.hardware) for site in graph.compressible)
    return floors + sum(costs[s.name].energy.relaxed for s in graph.sites if s.computed)


def _check_feasible(problem: Problem, costs: CostTable) -> None:
    pairs = list(zip(problem.ladders, problem.minimums, strict=True))
    for index, limit in enumerate(problem.limits):
        forced = [ladder.used(least)[index] for ladder, least in pairs]
        tightest = problem.fixed[index] + sum(forced)
        if tightest <= limit.maximum:
            continue
        own = [
            part + (site.activation_energy(costs.hardware) if limit.key == "energy" else 0)
            for part, site in zip(forced, problem.sites, strict=True)
        ]
        binding = problem.sites[own.index(max(own))].name
        activations = problem.fixed[index] / tightest
        lower = "a smaller min_density or min_per_layer"
        if limit.key == "energy":
            lower += " (activations alone are "
            lower += f"{limit.share(problem.fixed[index])}, {100 * activations:.0f} % of that), "
            lower += "a smaller input, fewer channels, trained input masks "
            lower += "(EnergyProjection(input_mask=True, start='masks'))"
        raise InfeasibleBudget(
            f"{limit.limit} asks for {limit.maximum:,} ({limit.share(limit.maximum)} of the "
            f"original), but {tightest:,} ({limit.share(tightest)}) is the least that can be "
            f"reached; layer {binding!r} needs most of it",
            limit=limit.key,
            asked=limit.maximum,
            tightest=tightest,
            binding_layer=binding,
            remedy=f"Raise the limit; what would lower the least: {lower}.",
        )
