"""Structured pruning: whole channels go, by a score, until the budget is met.

The channels go physically, so that the result is smaller and faster in any runtime. With
`steps=1` they go before training, which then is that of the small model; with more they go while it
is trained, and the optimizer's state goes with them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energy_model.cost import CostTable
from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.latency import LatencyModel
from energy_model.resolved import ResolvedLimit, limit_on
from passes.graph import Decision, ModelGraph
from passes.methods import latency_fit
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.kept_units import KeptUnits, kept_rows
from passes.methods.latency_fit import LatencyFit
from passes.methods.plan import Plan
from passes.methods.structured_config import (
    BatchNormChannels,
    L1Channels,
    L2Channels,
    RandomChannels,
    StructuredConfig,
    TaylorChannels,
)
from passes.rewrite.shrink import shrink
from passes.structure.costs import LATENCY, StructureCosts
from passes.structure.groups import ChannelGroup, ChannelGroups, channel_groups
from passes.structure.importance import (
    Scores,
    batch_norm_scores,
    norm_scores,
    normalized,
    random_scores,
    taylor_scores,
)
from passes.structure.select import (
    Selection,
    restricted,
    select_global,
    select_per_layer,
    select_smallest,
)
from passes.structure.state import full_state

SERVES = frozenset({"macs", "params", "energy", "size", "nonzeros", "weight_bits", "sparse_macs"})


class StructuredPruning(Method):
    """Removes the units with the lowest scores."""

    name = ""
    config: StructuredConfig

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._graph: ModelGraph | None = None
        self._run = Run()
        self._observed: dict[str, torch.Tensor] | None = None
        self._seed = 0
        # What the limits were counted at last: bytes of the file cannot be counted without one.
        self._reached: dict[str, float] = {}
        self._cuts: list[KeptUnits] = []
        self._known: tuple[ModelGraph, ChannelGroups] | None = None
        self._latency: LatencyModel | None = None
        self._whole_size: int | None = None

    @abstractmethod
    def scores(self, graph: ModelGraph, groups: ChannelGroups) -> Scores:
        """A number for each unit; groups that are absent cannot be scored and stay."""

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """Draw a seed for whatever is random."""
        self._run, self._latency, self._whole_size = run, None, None
        self._seed = int(torch.randint(2**31, (), generator=run.generator))

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Decide which units stay; see `Method.plan`.

        With several steps in training this is a forecast: later steps score the trained weights.
        A latency is predicted, and in the last step measured on the file of the chosen structure.
        """
        groups = self._groups(graph)
        last = one_shot or self.config.steps == 1
        selection, reached, details = self._choose(graph, groups, costs, limits, last)
        units = {g.name: np.flatnonzero(selection.state[g.name]).tolist() for g in groups.free}
        return Plan(
            self.name,
            kept_rows(groups, units),
            reached={limit.key: reached[limit.key] for limit in limits},
            allowed={limit.key: limit.maximum for limit in limits},
            details={"units": units, **details},
        )

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Remove what the plan does not keep, or the first part of it."""
        self._graph, self._run = graph, run
        graph.decisions += self._stay(graph)
        if run.one_shot or self.config.steps == 1:
            self._tell(graph, plan.details, run.limits)
            self._cut(plan.details["units"])
            self._reached = dict(plan.reached)
        else:
            self._reached = {x.key: x.base for x in run.limits} | self._bases(graph, run.limits)
            self._cut_now(1)

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Take the next step of the removal when its time has come."""
        done = len(self._cuts)
        if done < self.config.steps and step >= self._due(done):
            self._cut_now(done + 1, optimizer)

    def can_be_result(self) -> bool:
        """Whether the last step has been taken."""
        return self._run.one_shot or len(self._cuts) >= self.config.steps

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Remove what a training that was too short has left."""
        self._graph, self._run = graph, run
        if not self.can_be_result():
            self._cut_now(self.config.steps)

    def state_dict(self) -> dict[str, Any]:
        """Which units stayed at each step, and what was reached."""
        return {"cuts": [dict(cut) for cut in self._cuts], "reached": dict(self._reached)}

    def restore_shapes(self, state: dict[str, Any]) -> None:
        """Take the steps of the removal that were taken before."""
        for cut in state["cuts"][len(self._cuts) :]:
            self._cut({str(name): [int(i) for i in kept] for name, kept in cut.items()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._cuts = [{name: list(kept) for name, kept in cut.items()} for cut in state["cuts"]]
        self._reached = dict(state["reached"])

    def _due(self, done: int) -> int:
        """After how many optimizer steps the next removal comes; the first comes before all."""
        share = self.config.until * done / max(1, self.config.steps - 1)
        return max(1, round(share * self._run.total_steps))

    def _all_groups(self, graph: ModelGraph) -> ChannelGroups:
        if self._known is None or self._known[0] is not graph:
            self._known = graph, channel_groups(graph)
        return self._known[1]

    def _groups(self, graph: ModelGraph) -> ChannelGroups:
        """The groups, with the rules for single layers and what this method can score."""
        groups = restricted(self._all_groups(graph), graph)
        found = self.scores(graph, groups)
        least = self.config.max_removed
        return replace(
            groups, groups=tuple(_limited(group, found, 1 - least) for group in groups.groups)
        )

    def _stay(self, graph: ModelGraph) -> list[Decision]:
        return [
            Decision(group.name, "channels stay", group.why, f"{group.units} units")
            for group in self._groups(graph)
            if group.frozen
        ]

    def _select(
        self,
        graph: ModelGraph,
        groups: ChannelGroups,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        smallest: bool = False,
    ) -> Selection:
        bases = self._bases(graph, limits)
        keys = [limit.key for limit in limits]
        multiple = self.config.channel_multiple or costs.hardware.channel_multiple
        latency = self._latency_model(graph, multiple) if LATENCY in keys else None
        structure = StructureCosts(graph, groups, costs.hardware, keys, bases, latency)
        scores = normalized(self.scores(graph, groups), self.config.normalize)
        if smallest:
            return select_smallest(structure, groups, scores, multiple=multiple)
        if self.config.scope == "layer":
            return select_per_layer(structure, groups, scores, limits, multiple=multiple)
        per_cost = self.config.per_cost
        return select_global(
            structure, groups, scores, limits, multiple=multiple, per_cost=per_cost
        )

    def _bases(self, graph: ModelGraph, limits: Sequence[ResolvedLimit]) -> dict[str, int]:
        """Bytes of the file of the model as it is, if they are limited."""
        limit = limit_on(limits, "size")
        if limit is None:
            return {}
        if limit.key in self._reached:
            return {limit.key: int(self._reached[limit.key])}
        if not self._run.further or self._run.dense_size is None:
            return {limit.key: int(limit.base)}
        # The base of the limit is the file of the original, and this is not the original.
        if self._whole_size is None:
            self._whole_size = self._run.dense_size(graph)
        return {limit.key: self._whole_size}

    def _latency_model(self, graph: ModelGraph, multiple: int) -> LatencyModel:
        """What predicts the latency, measured once."""
        if self._latency is None:
            measured = self._run.latency_model
            if measured is None:
                raise PreconditionError(
                    "a limit on the latency needs a way to measure", where=f"method {self.name!r}"
                )
            self._latency = measured(graph, multiple)
        return self._latency

    def _choose(
        self,
        graph: ModelGraph,
        groups: ChannelGroups,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        last: bool,
    ) -> tuple[Selection, Mapping[str, float], dict[str, Any]]:
        """The structure, what it reaches, and details of how a latency was reached.

        Args:
            graph: The model; copies of it are measured.
            groups: Its groups.
            costs: Costs of its sites.
            limits: The budget.
            last: Whether this is the structure that will be measured in the end.
        """
        select = partial(self._select, graph, groups, costs)
        timed = self._run.latency if limit_on(limits, LATENCY) else None
        if timed is None or not last:
            try:
                selection = select(limits)
            except InfeasibleBudget as error:
                if timed is None or error.limit != LATENCY:
                    raise
                # A prediction says so; whether it is so, a file says.
            else:
                return selection, selection.reached, {}
        smallest = partial(select, limits, smallest=True)
        measure = latency_fit.of_cut(graph, self._all_groups(graph), timed)
        found = LatencyFit(select, smallest, measure).fit(limits)
        return found.selection, found.reached, {LATENCY: found.details}

    def _tell(
        self, graph: ModelGraph, details: Mapping[str, Any], limits: Sequence[ResolvedLimit]
    ) -> None:
        """Say how a latency was reached, and how well it was predicted."""
        limit = limit_on(limits, LATENCY)
        if limit is not None and LATENCY in details:
            graph.decisions.append(latency_fit.told(details[LATENCY], limit))

    def _cut_now(self, number: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Score the weights as they are, and remove as much as this step asks for."""
        if self._graph is None or self._run.costs is None:
            raise PreconditionError("prepare() was not called", where=f"method {self.name!r}")
        if number > 1:
            self.observe_again(self._graph)
        limits = self._limits_at(number)
        groups = self._groups(self._graph)
        last = number == self.config.steps
        selection, reached, details = self._choose(
            self._graph, groups, self._run.costs, limits, last
        )
        self._tell(self._graph, details, limits)
        units = {g.name: np.flatnonzero(selection.state[g.name]).tolist() for g in groups.free}
        while len(self._cuts) < number - 1:
            self._cuts.append({})  # steps that a training that was too short has skipped
        self._cut(units, optimizer)
        self._reached = {key: float(value) for key, value in reached.items()}

    def observe_again(self, graph: ModelGraph) -> None:
        """Gather anew what the scores need, in the middle of training."""

    def _limits_at(self, number: int) -> tuple[ResolvedLimit, ...]:
        """The budget of one step: it falls geometrically from the original to the target."""
        share = number / self.config.steps
        if share >= 1:
            return self._run.limits
        return tuple(
            replace(x, maximum=max(x.maximum, _between(x, share))) if 0 < x.maximum < x.base else x
            for x in self._run.limits
        )

    def _cut(self, units: Mapping[str, Sequence[int]], optimizer: Any = None) -> None:
        graph = self._graph
        if graph is None:
            raise PreconditionError("prepare() was not called", where=f"method {self.name!r}")
        groups = self._all_groups(graph)
        sizes = {group.name: group.units for group in groups}
        state = {name: _mask(kept, sizes[name]) for name, kept in units.items()}
        why = f"lowest score ({self.name})"
        graph.decisions += shrink(graph, groups, full_state(groups) | state, optimizer, why)
        self._known = None
        self._cuts.append({name: list(kept) for name, kept in units.items()})


def _between(limit: ResolvedLimit, share: float) -> float:
    """A limit on the way from the original to the target, geometrically."""
    value: float = limit.base * (limit.maximum / limit.base) ** share
    return value if limit.key == LATENCY else math.ceil(value)


def _mask(kept: Sequence[int], size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    mask[list(kept)] = True
    return mask


def _limited(group: ChannelGroup, scores: Scores, least: float) -> ChannelGroup:
    """The group with the least that this method leaves of it."""
    if group.frozen:
        return group
    if group.name not in scores:
        return replace(group, frozen=True, why="has nothing that this score is made of")
    minimum = math.ceil(round(least * group.units, 6))
    return replace(group, minimum=max(group.minimum, minimum))


class L1Pruning(StructuredPruning):
    """By the sum of magnitudes."""

    name = "l1"

    def scores(self, graph: ModelGraph, groups: ChannelGroups) -> Scores:
        """See `norm_scores`."""
        return norm_scores(graph, groups, 1)


class L2Pruning(StructuredPruning):
    """By the sum of squares."""

    name = "l2"

    def scores(self, graph: ModelGraph, groups: ChannelGroups) -> Scores:
        """See `norm_scores`."""
        return norm_scores(graph, groups, 2)


class BatchNormPruning(StructuredPruning):
    """By the scales of batch norms."""

    name = "bn_gamma"

    def scores(self, graph: ModelGraph, groups: ChannelGroups) -> Scores:
        """See `batch_norm_scores`."""
        return batch_norm_scores(graph, groups)


class TaylorPruning(StructuredPruning):
    """By the first-order change of the loss."""

    name = "taylor"
    config: TaylorChannels

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """Average the gradient over some batches."""
        super().observe(graph, run)
        if run.gradients is None:
            raise PreconditionError(
                "its score is made of gradients, and there is no labelled data",
                where=f"method {self.name!r}",
                remedy="Pass data= with labels, or use method='l2'.",
            )
        self._observed = run.gradients(graph.runnable, self.config.batches)

    def observe_again(self, graph: ModelGraph) -> None:
        """Average the gradient over some batches, at the weights as they are now."""
        if self._run.gradients is not None:
            self._observed = self._run.gradients(graph.runnable, self.config.batches)

    def scores(self, graph: ModelGraph, groups: ChannelGroups) -> Scores:
        """See `taylor_scores`."""
        if self._observed is None:
            raise PreconditionError("observe() was not called", where=f"method {self.name!r}")
        whole = self.config.whole_units
        return taylor_scores(graph, groups, self._observed, whole_units=whole)


class RandomPruning(StructuredPruning):
    """By chance."""

    name = "random"

    def scores(self, graph: ModelGraph, groups: ChannelGroups) -> Scores:
        """See `random_scores`; every step draws anew."""
        return random_scores(groups, self._seed + len(self._cuts))


def _spec(
    method: type[StructuredPruning], config: type[StructuredConfig], source: str
) -> MethodSpec:
    needs = frozenset({"labels"}) if method is TaylorPruning else frozenset()
    keeps = frozenset({"zeros"})
    serves = SERVES | {LATENCY}
    return MethodSpec(method.name, config, method, serves, source, keeps=keeps, needs=needs)


L1 = _spec(L1Pruning, L1Channels, "Li et al., ICLR 2017")
L2 = _spec(L2Pruning, L2Channels, "Li et al., ICLR 2017; Fang et al., CVPR 2023")
BN_GAMMA = _spec(BatchNormPruning, BatchNormChannels, "Liu et al., ICCV 2017")
TAYLOR = _spec(TaylorPruning, TaylorChannels, "Molchanov et al., CVPR 2019")
RANDOM = _spec(RandomPruning, RandomChannels, "the baseline")
