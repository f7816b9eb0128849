"""What a budget allows: how many weights every layer may have, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energy_model.cost import CostTable
from energy_model.errors import InfeasibleBudget
from energy_model.resolved import ResolvedLimit
from passes.dynamic.start import SparseShape, start_counts
from passes.graph import ModelGraph, Site
from passes.methods.problem import Problem, build_problem
from passes.methods.sparse_training.config import SparseTraining
from passes.methods.sparse_training.start import (
    output_units,
    required_counts,
    shape_of,
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A budget over the cells of all layers.

    Attributes:
        problem: The layers, and what their weights are charged under each limit.
        shapes: Their shapes and cells.
        floors: Least number of cells of each.
        required: Cells that a layer must have at first, where the configuration says so.
        law: Of the shares of the others.
    """

    problem: Problem
    shapes: tuple[SparseShape, ...]
    floors: tuple[int, ...]
    required: tuple[int | None, ...]
    law: str

    @property
    def sites(self) -> tuple[Site, ...]:
        """The layers."""
        return self.problem.sites

    @property
    def by_count(self) -> bool:
        """Whether the only limit counts weights."""
        return [limit.key for limit in self.problem.limits] == ["nonzeros"]

    def fits(self, weights: Sequence[int]) -> bool:
        """Whether layers may have so many weights, one number for each."""
        pairs = zip(self.problem.ladders, weights, strict=True)
        used = [sum(c) for c in zip(*(ladder.used(n) for ladder, n in pairs), strict=True)]
        return all(u <= most for u, most in zip(used, self.problem.capacities, strict=True))

    def reached(self, weights: Sequence[int]) -> dict[str, int | float]:
        """Use of each limit by so many weights of the layers, in its unit."""
        pairs = zip(self.problem.ladders, weights, strict=True)
        used = [sum(c) for c in zip(*(ladder.used(n) for ladder, n in pairs), strict=True)]
        keys = [limit.key for limit in self.problem.limits]
        return dict(zip(keys, self.problem.reached(used), strict=True))

    def require(self, cells: Sequence[int]) -> None:
        """Raise unless layers may have so many cells.

        Raises:
            InfeasibleBudget: They are too many.
        """
        weights = [n * shape.block for n, shape in zip(cells, self.shapes, strict=True)]
        if self.fits(weights):
            return
        reached = self.reached(weights)
        limit = next(x for x in self.problem.limits if reached[x.key] > x.maximum)
        raise InfeasibleBudget(
            f"{limit.limit} asks for {limit.maximum:,}, and what layers must have at first needs "
            f"{reached[limit.key]:,}",
            limit=limit.key,
            asked=limit.maximum,
            tightest=reached[limit.key],
            remedy="Raise the budget, or ask for less in single layers, or for sparser masks.",
        )

    @property
    def prices(self) -> tuple[float, ...]:
        """What a weight of each layer takes of the budget: the sum over limits of its share."""
        limits = self.problem.capacities
        return tuple(
            sum(c / max(1, most) for c, most in zip(ladder.charges_at(0), limits, strict=True))
            for ladder in self.problem.ladders
        )

    @property
    def least(self) -> int:
        """Weights that layers must have at first."""
        fixed = zip(self.floors, self.required, self.shapes, strict=True)
        return sum((n if r is None else r) * s.block for n, r, s in fixed)

    def split(self, total: int) -> tuple[int, ...]:
        """Cells of every layer when all have so many weights; see `start_counts`.

        Ties between layers are broken by their names, not by their order.
        """
        order = sorted(range(len(self.shapes)), key=lambda i: self.shapes[i].name)
        rows = list(zip(self.shapes, self.floors, self.required, strict=True))
        shapes, floors, required = zip(*(rows[i] for i in order), strict=True)
        found = start_counts(shapes, floors, total, self.law, required)
        back = dict(zip(order, found, strict=True))
        return tuple(back[i] for i in range(len(order)))

    def counts(self) -> tuple[int, ...]:
        """Cells of every layer at first: as many as fit.

        Raises:
            InfeasibleBudget: What layers must have does not fit.
        """
        most = sum(shape.parameters for shape in self.shapes)
        if self.by_count:
            return self.split(min(self.problem.capacities[0], most))
        blocks = [shape.block for shape in self.shapes]
        low, high = self.least, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            weights = [n * b for n, b in zip(self.split(middle), blocks, strict=True)]
            low, high = (middle, high) if self.fits(weights) else (low, middle)
        self.require(self.split(low))
        return self.split(low)


def allowed(
    config: SparseTraining,
    graph: ModelGraph,
    costs: CostTable,
    limits: Sequence[ResolvedLimit],
) -> Allowed:
    """Read a budget.

    Args:
        config: The configuration.
        graph: The traced model; read only.
        costs: Costs of its sites.
        limits: The budget in absolute terms.

    Raises:
        InfeasibleBudget: A limit is below what layers must keep.
    """
    least = config.min_per_layer
    parts = {"min_per_layer": least, "min_density": 0.0}
    problem = build_problem(graph, costs, limits, **parts)  # type: ignore[arg-type]
    shapes = tuple(shape_of(graph, site, config.granularity) for site in problem.sites)
    floors = tuple(
        max(-(-_floor(graph, site, least) // shape.block), _units(config, graph, site, shape))
        for site, shape in zip(problem.sites, shapes, strict=True)
    )
    required = required_counts(config, problem.sites, shapes, floors)
    return Allowed(problem, shapes, floors, required, config.law)


def _units(config: SparseTraining, graph: ModelGraph, site: Site, shape: SparseShape) -> int:
    """Cells that a layer keeps where pruning from dense must leave every unit one."""
    if not config.keep_units or config.steps is None:
        return 0
    units = output_units(graph, site, shape)
    return 0 if units is None else int(units.max()) + 1


def _floor(graph: ModelGraph, site: Site, least: int) -> int:
    """Weights that a layer keeps at least: by the method, and by the rule for this layer."""
    rule = graph.rules.get(site.name)
    return max(min(least, site.size), 0 if rule is None else rule.least(site.size))
