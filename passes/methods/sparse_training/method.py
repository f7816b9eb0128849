"""Dynamic sparse training as a method: the rewiring engine under a budget of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from energy_model.cost import CostTable
from energy_model.resolved import ResolvedLimit
from passes.dynamic.engine import Member, RewireEngine
from passes.dynamic.schedule import Clock
from passes.dynamic.start import SparseShape
from passes.graph import ModelGraph, Site
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.phases import Phase
from passes.methods.plan import Plan, PlanRow
from passes.methods.problem import build_problem
from passes.methods.sparse_training.config import SparseTraining
from passes.methods.sparse_training.start import first_masks, rescale, shape_of, start_counts
from passes.rewrite.masks import bake_masks

SERVES = frozenset({"nonzeros"})


@dataclass(frozen=True, slots=True)
class _Split:
    """How many weights every layer has."""

    sites: tuple[Site, ...]
    shapes: tuple[SparseShape, ...]
    floors: tuple[int, ...]
    counts: tuple[int, ...]


class DynamicSparseTraining(Method):
    """Trains sparse from the start, and rewires by a rule; see `passes.dynamic`.

    In one shot, where nothing trains, the largest weights stay.
    """

    config: SparseTraining

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._engine: RewireEngine | None = None
        self._rows: list[dict[str, Any]] = []
        self._step = 0

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """How many weights every layer has at first; see `Method.plan`."""
        split = self._split(graph, costs, limits)
        rule = self.config.rule
        rows = tuple(
            PlanRow(site.name, site.size, count, "largest" if one_shot else f"{rule}, at first")
            for site, count in zip(split.sites, split.counts, strict=True)
        )
        allowed = {limit.key: limit.maximum for limit in limits}
        return Plan(rule, rows, dict.fromkeys(allowed, sum(split.counts)), allowed)

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Put the first masks on the weights; in one shot only remove."""
        assert run.costs is not None  # a run of `compress` has them
        split = self._split(graph, run.costs, run.limits)
        epoch_steps = max(run.epoch_steps, 1)
        clock = Clock(max(1, run.total_steps // epoch_steps), epoch_steps)
        seed = int(torch.randint(2**62, (), generator=run.generator))
        chosen = None if run.one_shot or self.config.law == "magnitude" else seed
        masks = first_masks(graph, split.sites, split.shapes, split.counts, seed=chosen)
        if run.one_shot:
            for site in split.sites:
                weight = graph.weight(site)
                weight.masked_fill_(~masks[site.name].reshape(weight.shape), 0)
            return
        if self.config.rescaled:
            for site, count in zip(split.sites, split.counts, strict=True):
                rescale(graph, site, count)
        parts = zip(split.sites, split.shapes, split.floors, split.counts, strict=True)
        members = [
            Member(site, shape, max(1, floor), movable=count < site.size)
            for site, shape, floor, count in parts
        ]
        self._engine = RewireEngine(graph, members, self.config.rule_for(clock), clock, seed)
        self._engine.attach(masks)

    def on_phase_start(self, phase: Phase) -> None:
        """Gather gradients from the first step on, if its event asks for them."""
        self._step = 0
        if self._engine is not None:
            self._engine.watch(0)

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Rewire, if an event is due."""
        engine = self._engine
        if engine is None:
            return
        due = engine.due(step - 1)
        if due is not None:
            self._rows.append(engine.rewire(step - 1, due, optimizer))
        self._step = step
        engine.watch(step)

    def events(self) -> list[dict[str, Any]]:
        """One row for every rewiring event."""
        rows, self._rows = self._rows, []
        return rows

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Write the zeros into the weights."""
        bake_masks(graph)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        engine = self._engine
        return {} if engine is None else {"step": self._step, "engine": engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        if self._engine is not None:
            self._step = int(state["step"])
            self._engine.load_state_dict(state["engine"])
            self._engine.watch(self._step)

    def _split(
        self, graph: ModelGraph, costs: CostTable, limits: Sequence[ResolvedLimit]
    ) -> _Split:
        least = self.config.min_per_layer
        parts = {"min_per_layer": least, "min_density": 0.0}
        problem = build_problem(graph, costs, limits, **parts)  # type: ignore[arg-type]
        shapes = tuple(shape_of(graph, site) for site in problem.sites)
        floors = tuple(
            max(min(least, site.size), graph.rules[site.name].least(site.size))
            if site.name in graph.rules
            else min(least, site.size)
            for site in problem.sites
        )
        total = min(problem.capacities, default=sum(site.size for site in problem.sites))
        counts = start_counts(shapes, floors, total, self.config.law)
        return _Split(problem.sites, shapes, floors, counts)


SPEC = MethodSpec(
    name="dsr_plus",
    config=SparseTraining,
    method=DynamicSparseTraining,
    serves=SERVES,
    source="Mostafa, Wang, ICML 2019; Evci et al., ICML 2020 (dynamic sparse training)",
    keeps=frozenset({"zeros", "shapes"}),
    gives=frozenset({"zeros"}),
)
