"""A budget over weights: what every weight is charged, and what each limit leaves.

What is allocated are units: single weights, or the sets of weights that a pattern keeps together.
The projection works with integers. Energies of narrow operands need not be whole, and are then
charged in 1/256 of the hardware's unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from energy_model.unit_prices import PARTS, plain
from passes.graph import LayerRule, ModelGraph, Site
from passes.methods.pattern_fit import at_least, layout_of, unit_charges
from passes.projection.ladder import Ladder, build_ladder
from passes.projection.magnitudes import Histogram, histogram
from passes.projection.pattern_units import Layout, SingleWeights
from passes.projection.patterns import Pattern
from passes.quantize.widths import weight_bits

SERVES = frozenset({"energy", "nonzeros", "weight_bits", "sparse_macs"})

# Weights of a rank below the first number are charged the second, of each limit.
_Charge = tuple[int, tuple[int | float, ...]]


@dataclass(frozen=True, slots=True)
class Problem:
    """A budget over units of weights.

    Attributes:
        sites: The layers, in order.
        weights: Their weights, read only.
        layouts: How their weights are cut into units.
        norms: What their units are ranked by; the weight itself for single weights.
        ladders: What their units are charged: integers, see `parts`.
        histograms: Norms of their units.
        minimums: Units that each layer keeps at least.
        limits: The budget.
        fixed: Use of each limit that no weight can change, in the limit's unit.
        parts: Into how many parts the unit of each limit is divided in charges and capacities: 1,
            or 256 for energies that are not whole.
    """

    sites: tuple[Site, ...]
    weights: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    norms: tuple[Tensor, ...]
    ladders: tuple[Ladder, ...]
    histograms: tuple[Histogram, ...]
    minimums: tuple[int, ...]
    limits: tuple[ResolvedLimit, ...]
    fixed: tuple[int | float, ...]
    parts: tuple[int, ...]

    def used(self) -> tuple[int | float, ...]:
        """Use of each limit by the weights as they are, in its unit; a unit counts as a whole."""
        each = [
            ladder.used(counted.nonzeros)
            for ladder, counted in zip(self.ladders, self.histograms, strict=True)
        ]
        return self.reached([sum(column) for column in zip(*each, strict=True)])

    def reached(self, charges: Sequence[int]) -> tuple[int | float, ...]:
        """Use of each limit, in its unit, by weights that are charged so much.

        Args:
            charges: Of each limit, as `ladders` count.
        """
        pairs = zip(self.fixed, self.in_units(charges), strict=True)
        return tuple(plain(fixed + weights) for fixed, weights in pairs)

    def in_units(self, charges: Sequence[int]) -> tuple[int | float, ...]:
        """Charges in the units of the limits."""
        pairs = zip(charges, self.parts, strict=True)
        return tuple(plain(charge / parts) if parts > 1 else charge for charge, parts in pairs)

    @property
    def capacities(self) -> tuple[int, ...]:
        """What each limit leaves for weights, counted as in `ladders`."""
        each = zip(self.limits, self.fixed, self.parts, strict=True)
        return tuple(
            math.floor((Fraction(limit.maximum) - Fraction(fixed)) * parts)
            for limit, fixed, parts in each
        )

    def per_weight(self) -> tuple[tuple[Tensor, ...], tuple[Histogram, ...]]:
        """Root mean squares of the units, and their histograms.

        By norm alone, layers with large units would come before all others. For single weights
        both are `norms` and `histograms`.
        """
        sizes = [layout.unit_weights for layout in self.layouts]
        if set(sizes) == {1}:
            return self.norms, self.histograms
        means = tuple(
            norms if size == 1 else norms / math.sqrt(size)
            for norms, size in zip(self.norms, sizes, strict=True)
        )
        return means, tuple(histogram(m, s.name) for m, s in zip(means, self.sites, strict=True))


def build_problem(
    graph: ModelGraph,
    costs: CostTable,
    limits: Sequence[ResolvedLimit],
    *,
    min_per_layer: int,
    min_density: float,
    saved: float = 0,
    pattern: Pattern | None = None,
) -> Problem:
    """Set the problem up, and check that it has a solution.

    Args:
        graph: The traced model; read only.
        costs: Costs of its sites.
        limits: The budget in absolute terms.
        min_per_layer: Weights that every layer keeps at least.
        min_density: Share of its weights that every layer keeps at least.
        saved: Energy of activations that will be saved by the time the budget must hold.
        pattern: Which weights live or die together; layers that it does not fit stay as they are.

    Raises:
        InfeasibleBudget: What cannot be removed exceeds a limit.
        PreconditionError: A weight is not finite, or the pattern fits no layer.
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
    layouts = tuple(layout_of(pattern, graph, site) for site in sites)
    _require_fit(sites, layouts)
    parts = list(zip(sites, weights, layouts, strict=True))
    norms = tuple(_norms(*part) for part in parts)
    histograms = tuple(histogram(n, s.name) for n, s in zip(norms, sites, strict=True))
    minimums = tuple(
        min(_minimum(graph, *part, min_per_layer, min_density), h.nonzeros)
        for part, h in zip(parts, histograms, strict=True)
    )
    charges = [_charges(graph, site, costs, limits) for site in sites]
    scales = tuple(_scale(charges, index) for index in range(len(limits)))
    ladders = tuple(
        _ladder(layout, _scaled(each, scales), least)
        for each, layout, least in zip(charges, layouts, minimums, strict=True)
    )
    unchanged = [_unchanged(graph, costs, limit.key) for limit in limits]
    fixed = tuple(
        plain(sum(each.values()) - (saved if limit.key == "energy" else 0))
        for limit, each in zip(limits, unchanged, strict=True)
    )
    problem = Problem(
        sites, weights, layouts, norms, ladders, histograms, minimums, tuple(limits), fixed, scales
    )
    _check_feasible(problem, unchanged)
    return problem


def _require_fit(sites: Sequence[Site], layouts: Sequence[Layout]) -> None:
    reasons = [x.dense if isinstance(x, SingleWeights) else "" for x in layouts]
    if all(reasons):
        told = "; ".join(f"{s.name}: {why}" for s, why in zip(sites, reasons, strict=True))
        raise PreconditionError(
            f"the pattern fits no layer ({told:.300})",
            where="pattern",
            remedy="Choose another pattern, or leave it out.",
        )


def _norms(site: Site, weight: Tensor, layout: Layout) -> Tensor:
    norms = layout.norms(weight)
    if norms is not weight and not bool(norms.isfinite().all()):
        histogram(weight, site.name)  # tells how many weights are not finite
    return norms


def _minimum(
    graph: ModelGraph,
    site: Site,
    weight: Tensor,
    layout: Layout,
    min_per_layer: int,
    min_density: float,
) -> int:
    """Units that a layer keeps at least."""
    least = _least(graph, site, min_per_layer, min_density)
    return max(at_least(layout, weight, least), layout.forced)


def _ladder(layout: Layout, charges: Sequence[tuple[int, tuple[int, ...]]], least: int) -> Ladder:
    """What the units of a layer are charged, by rank."""
    if isinstance(layout, SingleWeights):
        return build_ladder(layout.units, charges, forced=least)
    single = build_ladder(layout.weights_of(layout.units), charges)
    return build_ladder(layout.units, unit_charges(layout, single), forced=least)


def _least(graph: ModelGraph, site: Site, min_per_layer: int, min_density: float) -> int:
    """Weights that a layer keeps at least: by the method, and by the rule for this layer."""
    rule = graph.rules.get(site.name, LayerRule())
    return max(min_per_layer, math.ceil(min_density * site.size), rule.least(site.size))


def _charges(
    graph: ModelGraph, site: Site, costs: CostTable, limits: Sequence[ResolvedLimit]
) -> list[_Charge]:
    """Charges of the weights that fit the weight cache, and of those beyond it, in real units."""
    price = site.price(costs.hardware)
    alike = {
        "nonzeros": 1,
        "weight_bits": weight_bits(graph, site),
        "sparse_macs": site.macs_per_weight(),
    }

    def row(energy: float) -> tuple[float, ...]:
        each = {"energy": energy, **alike}
        return tuple(each[limit.key] for limit in limits)

    return [(price.capacity, row(price.first)), (site.size, row(price.beyond))]


def _scale(charges: Sequence[list[_Charge]], index: int) -> int:
    """Parts of a limit's unit in which all its charges are integers."""
    each = (row[index] for layer in charges for _, row in layer)
    return 1 if all(isinstance(plain(charge), int) for charge in each) else PARTS


def _scaled(charges: list[_Charge], scales: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (end, tuple(int(charge * scale) for charge, scale in zip(row, scales, strict=True)))
        for end, row in charges
    ]


def _unchanged(graph: ModelGraph, costs: CostTable, key: str) -> dict[str, int | float]:
    """By layer, what no zero lowers: energy of activations, and all of computed weights."""
    computed = [site for site in graph.sites if site.computed]
    if key == "energy":
        floors = {s.name: s.activation_energy(costs.hardware) for s in graph.compressible}
        return floors | {s.name: costs[s.name].energy.relaxed for s in computed}
    if key == "sparse_macs":
        return {s.name: costs[s.name].nonzeros * s.macs_per_weight() for s in computed}
    return {}


def _check_feasible(problem: Problem, unchanged: Sequence[Mapping[str, int | float]]) -> None:
    pairs = list(zip(problem.ladders, problem.minimums, strict=True))
    for index, limit in enumerate(problem.limits):
        forced = [problem.in_units(ladder.used(least))[index] for ladder, least in pairs]
        tightest = plain(problem.fixed[index] + sum(forced))
        if tightest <= limit.maximum:
            continue
        own = dict(unchanged[index])
        for site, part in zip(problem.sites, forced, strict=True):
            own[site.name] = own.get(site.name, 0) + part
        binding = max(own, key=lambda name: own[name])
        lower = _what_lowers(problem, limit, problem.fixed[index], tightest)
        raise InfeasibleBudget(
            f"{limit.limit} asks for {limit.maximum:,} ({limit.share(limit.maximum)} of the "
            f"original), but {tightest:,} ({limit.share(tightest)}) is the least that can be "
            f"reached by zeroing weights; layer {binding!r} needs most of it",
            limit=limit.key,
            asked=limit.maximum,
            tightest=tightest,
            binding_layer=binding,
            remedy=f"Raise the limit; what would lower the least: {lower}.",
        )


def _what_lowers(problem: Problem, limit: ResolvedLimit, fixed: float, tightest: float) -> str:
    """What a user can do about a limit that cannot be met."""
    lower = "a smaller min_density or min_per_layer"
    if any(layout.forced for layout in problem.layouts):
        lower += ", another pattern (what it does not fit stays dense)"
    alone = f"{limit.share(fixed)}, {100 * fixed / tightest:.0f} % of that"
    if limit.key == "energy":
        lower += f" (activations alone are {alone}), a smaller input, trained input masks "
        lower += "(method 'energy' with input_mask=True, start='masks'), and fewer channels: they "
        lower += "take their activations along (methods 'l1', 'l2', 'ising')"
    if limit.key == "sparse_macs":
        lower += ", a smaller input"
        if fixed:
            lower += ", merging the weights that are computed in forward (they alone are "
            lower += f"{alone}): remove_parametrizations(layer, 'weight')"
    return lower
