"""Dynamic sparse training as a method: the rewiring engine under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.resolved import ResolvedLimit, limit_on
from passes.dynamic.engine import Member, RewireEngine
from passes.dynamic.schedule import Clock
from passes.graph import Decision, ModelGraph
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.phases import Phase
from passes.methods.plan import Plan, PlanRow
from passes.methods.problem import SERVES
from passes.methods.sparse_training.budget import Allowed, allowed
from passes.methods.sparse_training.config import SparseTraining
from passes.methods.sparse_training.overrides import rule_for
from passes.methods.sparse_training.penalty import penalty
from passes.methods.sparse_training.size_limit import affordable, by_count, remove_inactive, trim
from passes.methods.sparse_training.start import (
    first_masks,
    output_units,
    rescale,
    transferred_masks,
)
from passes.rewrite.masks import bake_masks


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
        self._affordable: tuple[int, int] | None = None

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """Count by trials how many weights a limit on the size allows."""
        limit = limit_on(run.limits, "size")
        if limit is None or run.size is None or run.costs is None:
            return
        others = [other for other in run.limits if other is not limit]
        budget = allowed(self.config, graph, run.costs, others)
        if self.config.masks is not None:  # taken over as they are; what is too much goes at last
            most = sum(self._counts(graph, budget))
            self._affordable = most, int(limit.maximum)
            return
        seed = None if run.one_shot else 0

        def place(cells: Sequence[int]) -> dict[str, Tensor]:
            return self._first(graph, budget, cells, seed)

        self._affordable = affordable(graph, budget, limit, place, run.size)

    def _budget(
        self, graph: ModelGraph, costs: CostTable, limits: Sequence[ResolvedLimit]
    ) -> Allowed:
        most = None if self._affordable is None else self._affordable[0]
        return allowed(self.config, graph, costs, by_count(limits, most))

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """How many weights every layer has at first; see `Method.plan`."""
        budget = self._budget(graph, costs, limits)
        counts = self._counts(graph, budget)
        told = "largest" if one_shot else f"{self.config.rule}, {self._when}"
        rows = tuple(
            PlanRow(site.name, site.size, n, told)
            for site, n in zip(budget.sites, counts, strict=True)
        )
        most = {limit.key: limit.maximum for limit in limits}
        used = budget.reached(counts)
        if self._affordable is not None:
            used["size"] = self._affordable[1]
        return Plan(self.config.rule, rows, {key: used[key] for key in most}, most)

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Put the first masks on the weights; in one shot only remove."""
        assert run.costs is not None  # a run of `compress` has them
        budget = self._budget(graph, run.costs, run.limits)
        seed = int(torch.randint(2**62, (), generator=run.generator))
        cells = budget.counts() if self.config.masks is None else None
        masks = self._first(graph, budget, cells, None if run.one_shot else seed)
        if run.one_shot:
            remove_inactive(graph, budget, masks)
            return
        epoch_steps = max(run.epoch_steps, 1)
        clock = Clock(max(1, run.total_steps // epoch_steps), epoch_steps)
        rule = rule_for(self.config, clock, by_count=budget.by_count)
        finals = [int(masks[site.name].sum()) for site in budget.sites]
        if rule.prune is not None:
            masks = {name: torch.ones_like(mask) for name, mask in masks.items()}
        if self.config.rescaled:
            for site, shape, n in zip(budget.sites, budget.shapes, finals, strict=True):
                rescale(graph, site, n / shape.cells)
        members = self._members(graph, budget, finals)
        place = {member.site.name: i for i, member in enumerate(members)}
        order = [place[site.name] for site in budget.sites]

        def fits(counts: Sequence[int]) -> bool:
            return budget.fits([counts[i] for i in order])

        fitting = None if budget.by_count else fits
        self._engine = RewireEngine(graph, members, rule, clock, seed, fitting)
        self._engine.attach(masks)
        if self.config.masks is not None:
            graph.decisions.append(Decision("", "first masks", f"those of {self.config.masks}"))

    @property
    def _when(self) -> str:
        return "at first" if self.config.steps is None else "in the end"

    def _counts(self, graph: ModelGraph, budget: Allowed) -> tuple[int, ...]:
        """Weights of every layer at first, or in the end of rules that prune."""
        if self.config.masks is None:
            cells: Sequence[int] = budget.counts()
        else:
            masks = self._first(graph, budget, None, None)
            cells = [int(masks[site.name].sum()) for site in budget.sites]
        return tuple(n * shape.block for n, shape in zip(cells, budget.shapes, strict=True))

    def _first(
        self, graph: ModelGraph, budget: Allowed, cells: Sequence[int] | None, seed: int | None
    ) -> dict[str, Tensor]:
        parts = (graph, budget.sites, budget.shapes)
        if self.config.masks is not None:
            masks = transferred_masks(self.config.masks, *parts)
            budget.require([int(masks[site.name].sum()) for site in budget.sites])
            return masks
        assert cells is not None
        return first_masks(*parts, cells, seed=None if self.config.law == "magnitude" else seed)

    def _members(self, graph: ModelGraph, budget: Allowed, finals: Sequence[int]) -> list[Member]:
        members = []
        parts = zip(budget.sites, budget.shapes, budget.floors, finals, strict=True)
        for (site, shape, floor, final), price in zip(parts, budget.prices, strict=True):
            units = output_units(graph, site, shape) if self.config.keep_units else None
            trained = graph.parameter(site).requires_grad
            members.append(
                Member(
                    site,
                    shape,
                    final,
                    max(1, floor),
                    movable=final < shape.cells and (trained or self.config.steps is not None),
                    cost=price,
                    units=None if units is None else units.to(graph.parameter(site).device),
                )
            )
        # Ties between layers are broken by their names, not by their order.
        return sorted(members, key=lambda member: member.site.name)

    def on_phase_start(self, phase: Phase) -> None:
        """Gather gradients from the first step on, if its event asks for them."""
        self._step = 0
        if self._engine is not None:
            self._engine.watch(0)

    def on_loss(self, loss: Tensor, batch: Any, outputs: Any) -> Tensor:
        """Add the penalty, if there is one."""
        if self._engine is None or not self.config.l1:
            return loss
        members = [m for m in self._engine.members if m.movable]
        graph, lasso = self._engine.graph, self.config.group_lasso
        return loss + self.config.l1 * penalty(graph, members, group_lasso=lasso)

    def on_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Add noise to the gradients, if the rule wants it."""
        if self._engine is not None:
            self._engine.before_step(self._step, optimizer)

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Rewire, if an event is due."""
        engine = self._engine
        if engine is None:
            return
        row = engine.after_step(step - 1, optimizer)
        if row is not None:
            self._rows.append(row)
        self._step = step
        engine.watch(step)

    def events(self) -> list[dict[str, Any]]:
        """One row for every rewiring event; of rules that walk, see `RewireEngine.after_step`."""
        rows, self._rows = self._rows, []
        return rows

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Write the zeros into the weights; a limit on the size is met to the byte."""
        bake_masks(graph)
        limit = limit_on(run.limits, "size")
        if limit is not None and run.size is not None and run.costs is not None:
            trim(graph, self._budget(graph, run.costs, run.limits), limit, run.size)

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


SPEC = MethodSpec(
    name="dsr_plus",
    config=SparseTraining,
    method=DynamicSparseTraining,
    serves=SERVES | {"size"},
    source="Mostafa, Wang, ICML 2019; Evci et al., ICML 2020 (dynamic sparse training)",
    keeps=frozenset({"zeros", "shapes"}),
    gives=frozenset({"zeros"}),
)
