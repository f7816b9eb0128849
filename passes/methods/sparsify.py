"""What methods that set weights to zero, one by one or in a pattern, have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.graph import Decision, ModelGraph
from passes.methods.base import Method, Run
from passes.methods.config import MethodConfig
from passes.methods.pattern_fit import fit_decisions, layout_of
from passes.methods.phases import Phase
from passes.methods.plan import Plan, PlanRow
from passes.methods.problem import Problem, build_problem
from passes.projection.allocate import Allocation
from passes.projection.pattern_units import SingleWeights
from passes.projection.patterns import ALLOWED, Pattern, parse_pattern

# Without training, projection alone would delete whole layers.
ONE_SHOT_DENSITY = 0.02


@dataclass(frozen=True)
class SparsifyConfig(MethodConfig):
    """What all methods that zero weights can be told.

    Attributes:
        min_per_layer: Least number of weights that every layer keeps.
        min_density: Least share of weights that every layer keeps; `None` is 0.02 in one shot and
            0 when the model is trained.
        schedule: How the budget falls during training: `"geometric"`, `"linear"`, or `"none"` (at
            the target from the start).
        hold: Share of the steps, at the end, that run at the final budget.
        interval: Optimizer steps between projections; the end of an epoch always projects.
        pattern: Which weights live or die together; `None` is each by itself. The weight is seen as
            outputs by everything that one output reads.
            `(rows, cols)`: blocks. `"n:m"`, such as `"2:4"`: of every `m` consecutive weights of a
            row `n` stay, in as many layers as the budget needs. `"column_groups"`, with a number of
            rows `"column_groups:64"`: each group of rows keeps its own columns, equally many in
            all groups of a layer; for linear layers and 1 x 1 convolutions, and the finest pattern
            that ONNX Runtime runs faster. Layers that a pattern does not fit stay as they are, and
            minimums are rounded up to whole units.
    """

    min_per_layer: int = 1
    min_density: float | None = None
    schedule: Literal["geometric", "linear", "none"] = "geometric"
    hold: float = 0.3
    interval: int = 10
    pattern: str | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        density = self.min_density
        self._require("min_per_layer", _whole(self.min_per_layer, 0), "a whole number from 0")
        share = density is None or (_real(density) and 0 <= density <= 1)
        self._require("min_density", share, "None, or a share from 0 to 1")
        known = ("geometric", "linear", "none")
        self._require("schedule", self.schedule in known, f"one of {known}")
        self._require("hold", _real(self.hold) and 0 <= self.hold <= 1, "a share from 0 to 1")
        self._require("interval", _whole(self.interval, 1), "a whole number from 1")
        known_pattern = self.pattern is None or parse_pattern(self.pattern) is not None
        self._require("pattern", known_pattern, ALLOWED)
        if isinstance(self.pattern, list):  # as JSON and YAML have it
            object.__setattr__(self, "pattern", tuple(self.pattern))


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


class Sparsifier(Method):
    """Keeps the largest weights of every layer, as many as the allocation says.

    In training this is projected gradient descent: all weights are trained, pruned ones regrow, and
    every few steps the weights are projected onto a budget that falls towards the target.
    """

    name = ""
    config: SparsifyConfig

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._graph: ModelGraph | None = None
        self._run = Run()
        self._start: tuple[int | float, ...] = ()
        self._projected_at = 0
        self._step = 0
        self._settled = False

    @abstractmethod
    def allocation(self, problem: Problem) -> Allocation:
        """How many weights every layer keeps."""

    def problem(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool,
        saved: float = 0,
    ) -> Problem:
        """The budget over the weights as they are now; see `build_problem`."""
        density = self.config.min_density
        if density is None:
            density = ONE_SHOT_DENSITY if one_shot else 0.0
        return build_problem(
            graph,
            costs,
            limits,
            min_per_layer=self.config.min_per_layer,
            min_density=density,
            saved=saved,
            pattern=parse_pattern(self.config.pattern),
        )

    def saved(self, graph: ModelGraph, costs: CostTable) -> int | float:
        """Energy of activations that the method will save before weights are projected."""
        return 0

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Decide how many weights every layer keeps; see `Method.plan`."""
        saved = self.saved(graph, costs)
        problem = self.problem(graph, costs, limits, one_shot=one_shot, saved=saved)
        allocation = self.allocation(problem)
        keys = [limit.key for limit in limits]
        missed = allocation.next_charges
        return Plan(
            self.name,
            _rows(problem, allocation),
            reached=dict(zip(keys, problem.reached(allocation.used), strict=True)),
            allowed={limit.key: limit.maximum for limit in limits},
            gap=allocation.gap,
            details={
                "next_charges": [] if missed is None else list(problem.in_units(missed)),
                "saved": saved,
            },
        )

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """In one shot, zero what the plan does not keep."""
        self._graph, self._run = graph, run
        pattern = parse_pattern(self.config.pattern)
        if pattern is not None:
            graph.decisions += fit_decisions(graph, pattern, str(self.config.pattern))
        if run.one_shot:
            keep_largest(graph, plan.kept, pattern)
            graph.decisions += _optimality(graph, plan)

    def on_phase_start(self, phase: Phase) -> None:
        """Note where the budget starts to fall."""
        self._start = self._problem_now(self._run.limits).used()
        self._step = self._projected_at = 0

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Project every `interval` steps."""
        self._step = step
        if step % self.config.interval == 0:
            self._project_now()

    def on_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Project at the end of the epoch, so that what is evaluated is within its budget."""
        if self._projected_at != self._step:
            self._project_now()

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Project onto the final budget, whatever the loop did."""
        if not run.one_shot:
            self._graph, self._run = graph, run
            self._project(run.limits)

    def needs_shapes(self) -> str:
        """A pattern counts in rows and columns that are there."""
        return "their removal would break the pattern" if self.config.pattern else ""

    def limits_at(self, step: int) -> tuple[ResolvedLimit, ...]:
        """The budget after `step` optimizer steps, between where training starts and the target."""
        total = max(1, round(self._run.total_steps * (1 - self.config.hold)))
        done = min(1.0, step / total)
        if self._settled or self.config.schedule == "none":
            done = 1.0
        return tuple(
            replace(limit, maximum=self._between(start, limit.maximum, done))
            for limit, start in zip(self._run.limits, self._start, strict=True)
        )

    def _between(self, start: float, target: float, done: float) -> int | float:
        if done >= 1.0 or start <= target:
            return target
        if self.config.schedule == "linear":
            return math.floor(start + (target - start) * done)
        return max(math.floor(start * (target / start) ** done), target) if target else target

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        state = {"start": list(self._start), "step": self._step}
        return state | {"projected_at": self._projected_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._start = tuple(state["start"])
        self._step, self._projected_at = state["step"], state["projected_at"]

    def _problem_now(self, limits: Sequence[ResolvedLimit]) -> Problem:
        if self._graph is None or self._run.costs is None:
            raise PreconditionError("prepare() was not called", where=f"method {self.name!r}")
        saved = self.still_saved()
        return self.problem(self._graph, self._run.costs, limits, one_shot=False, saved=saved)

    def _project_now(self) -> None:
        """Project what is trained, as far as the schedule has come."""
        self._project(self.limits_at(self._step))

    def _project(self, limits: Sequence[ResolvedLimit]) -> None:
        problem = self._problem_now(limits)
        counts = self.allocation(problem).counts
        parts = (problem.weights, problem.layouts, counts, problem.histograms)
        for weight, layout, count, counted in zip(*parts, strict=True):
            _keep(weight, layout.mask(weight, count, counted))
        self._projected_at = self._step


def keep_largest(
    graph: ModelGraph, kept: Mapping[str, int], pattern: Pattern | None = None
) -> None:
    """Zero all but the largest weights, or units of a pattern, of every named site, in place.

    Args:
        graph: The graph; parameters keep their identity, so that ties and optimizers hold.
        kept: Number of weights to keep, per site.
        pattern: Which weights live or die together.
    """
    for name, count in kept.items():
        site = graph.by_name[name]
        weight, layout = graph.weight(site), layout_of(pattern, graph, site)
        _keep(weight, layout.mask(weight, layout.units_of(count)))


def _keep(weight: Tensor, mask: Tensor) -> None:
    with torch.no_grad():
        weight.masked_fill_(~mask, 0.0)


def _optimality(graph: ModelGraph, plan: Plan) -> list[Decision]:
    """How far the weights that were kept can be from the best that the budget allows."""
    if plan.gap is None:
        return []
    weights = (graph.weight(graph.by_name[name]) for name in plan.kept)
    kept = sum(float(weight.detach().double().square().sum()) for weight in weights)
    share = plan.gap / (kept + plan.gap) if plan.gap else 0.0
    what = f"within {100 * share:.2g} % of the best choice of weights"
    why = "sums of their squares; a bound proves it"
    return [Decision("", what if share else "the best choice of weights", why)]


def _rows(problem: Problem, allocation: Allocation) -> tuple[PlanRow, ...]:
    rows = []
    parts = (allocation.counts, problem.layouts, problem.minimums, problem.histograms)
    for site, count, layout, least, counted in zip(problem.sites, *parts, strict=True):
        why = "at its minimum" if count <= least else "by the budget"
        if count == counted.nonzeros:
            why = "all kept"
        if isinstance(layout, SingleWeights) and layout.dense:
            why = "left dense by the pattern"
        rows.append(PlanRow(site.name, site.size, layout.weights_of(count), why))
    return tuple(rows)
