"""Several methods as one: each keeps what those before it have reached.

    method=["l2", Quantize(weights=8, activations=8)]

Widths are announced first, so that a method that prunes charges every weight at the width that it
will have in the end; one energy budget is then met by zeros and bits together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import ArgumentError
from energy_model.resolved import ResolvedLimit
from energy_model.widths import Widths
from passes.analysis.costs import cost_table
from passes.graph import ModelGraph, Site
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.embedding.record import SearchRecord
from passes.methods.ising.config import Ising
from passes.methods.phases import Phase, PhaseEnd
from passes.methods.plan import Plan
from passes.methods.registry import find_method
from passes.methods.sparsify import SparsifyConfig
from passes.methods.structured_config import StructuredConfig
from passes.quantize.widths import with_widths


@dataclass(frozen=True)
class Chain(MethodConfig):
    """Configuration of several methods, in the order in which they work.

    Attributes:
        stages: Their configurations.
    """

    stages: tuple[MethodConfig, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object: those of the stages in a list."""
        stages = [stage.to_dict() for stage in self.stages]
        return {"config": "Chain", "version": self.version, "stages": stages}


def chain_spec(methods: Sequence[str | MethodConfig]) -> tuple[MethodSpec, Chain]:
    """What a list of methods is registered as, and its configuration.

    Raises:
        ArgumentError: Fewer than two methods, one that stands twice, or an order in which a later
            one would break what an earlier one guarantees.
    """
    found = [find_method(method) for method in methods]
    specs = [spec for spec, _ in found]
    names = [spec.name for spec in specs]
    if len(set(names)) < max(2, len(names)):
        raise ArgumentError(
            f"{names} are not several different methods",
            where="method",
            remedy="Give each method once, e.g. ['l2', 'quantize'].",
        )
    for index, spec in enumerate(specs):
        for earlier, config in found[:index]:
            _check_order(earlier, config, spec)
    config = Chain(tuple(config for _, config in found))
    spec = MethodSpec(
        "+".join(names),
        Chain,
        ChainMethod,
        frozenset().union(*(spec.serves for spec in specs)),
        "; ".join(spec.source for spec in specs),
        keeps=frozenset.intersection(*(spec.keeps for spec in specs)),
        needs=frozenset().union(*(spec.needs for spec in specs)),
        gives=frozenset().union(*(spec.gives for spec in specs)),
    )
    return spec, config


def _check_order(earlier: MethodSpec, config: MethodConfig, later: MethodSpec) -> None:
    """Raise if a method would break what one before it guarantees."""
    gives = set(earlier.gives)
    if isinstance(config, SparsifyConfig) and config.pattern is not None:
        gives.add("shapes")  # a pattern counts in rows and columns that are there
    if broken := gives - later.keeps:
        raise ArgumentError(
            f"{later.name!r} after {earlier.name!r} would not keep its "
            f"{' and '.join(sorted(broken))}",
            where="method",
            remedy=f"Put {later.name!r} before {earlier.name!r}.",
        )
    if getattr(config, "input_mask", False):
        raise ArgumentError(
            f"{earlier.name!r} with input masks cuts layers in the end, when {later.name!r} has "
            "prepared them",
            where="method",
            remedy=f"Leave input_mask out, or compress the result with {later.name!r} afterwards.",
        )
    if isinstance(config, StructuredConfig) and config.steps > 1:
        raise ArgumentError(
            f"{earlier.name!r} with steps={config.steps} removes channels while the model is "
            f"trained, when {later.name!r} has prepared its layers",
            where="method",
            remedy="Leave steps at 1.",
        )
    if isinstance(config, Ising) and config.search_share > 0:
        raise ArgumentError(
            f"{earlier.name!r} removes channels while the model is trained, when {later.name!r} "
            "has prepared its layers",
            where="method",
            remedy="Search before training: Ising(search_share=0).",
        )


class ChainMethod(Method):
    """Calls every hook of its stages, in their order.

    A limit is met by the first stage that serves it, unless a later one claims it; the widths of
    all stages are announced before.
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        stages = config.stages if isinstance(config, Chain) else ()
        found = [find_method(stage) for stage in stages]
        self.specs = [spec for spec, _ in found]
        self.stages = [spec.build(config) for spec, config in found]
        self._graph: ModelGraph | None = None
        self._widths: dict[str, Widths] = {}
        self._sites: tuple[Site, ...] = ()

    @property
    def name(self) -> str:
        """Names of the stages."""
        return "+".join(spec.name for spec in self.specs)

    def announced_widths(self, graph: ModelGraph) -> dict[str, Widths]:
        """Those of all stages; a later one wins."""
        found: dict[str, Widths] = {}
        for stage in self.stages:
            found |= stage.announced_widths(graph)
        return found

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """See `Method.observe`."""
        for stage in self.stages:
            stage.observe(graph, run)

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """The plans of all stages; limits of later ones are checked when earlier ones have run."""
        priced = replace(graph, sites=with_widths(graph.sites, self.announced_widths(graph)))
        costs = cost_table(priced, costs.hardware)
        shares = self._shares(limits)
        plans = [
            stage.plan(priced, costs, own if number == 0 else (), one_shot=one_shot)
            for number, (stage, own) in enumerate(zip(self.stages, shares, strict=True))
        ]
        reached = {key: value for plan in plans for key, value in plan.reached.items()}
        return Plan(
            self.name,
            tuple(row for plan in plans for row in plan.rows),
            reached,
            {limit.key: limit.maximum for limit in limits if limit.key in reached},
            plans[0].gap,
            {"stages": [plan.to_dict() for plan in plans]},
        )

    def _shares(self, limits: Sequence[ResolvedLimit]) -> list[tuple[ResolvedLimit, ...]]:
        """The limits of every stage: each goes to one that claims it, or the first serving."""
        owner = {limit.key: self._owner(limit.key) for limit in limits}
        return [
            tuple(limit for limit in limits if owner[limit.key] == number)
            for number in range(len(self.specs))
        ]

    def _owner(self, key: str) -> int:
        serving = [i for i, spec in enumerate(self.specs) if key in spec.serves]
        return next((i for i in serving if self.stages[i].claims(key)), serving[0])

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Prepare every stage, those after the first by a plan of the model as it is then."""
        self._graph = graph
        self._widths = self.announced_widths(graph)
        shares = self._shares(run.limits)
        for number, (stage, own) in enumerate(zip(self.stages, shares, strict=True)):
            self._announce()
            costs = cost_table(graph, run.costs.hardware) if run.costs else None
            part = Plan.from_dict(plan.details["stages"][number])
            if number and costs is not None:
                part = stage.plan(graph, costs, own, one_shot=run.one_shot)
            # Sparsifiers take what cannot change from the costs of the model that they were given.
            stage.prepare(graph, part, replace(run, limits=own, costs=costs))
        self._announce()

    def _announce(self) -> None:
        """Write the widths into the sites, also when a stage has observed these anew."""
        graph = self._graph
        if graph is not None and graph.sites is not self._sites:
            graph.sites = self._sites = with_widths(graph.sites, self._widths)

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Finalize every stage in order."""
        shares = self._shares(run.limits)
        for stage, own in zip(self.stages, shares, strict=True):
            self._announce()
            costs = cost_table(graph, run.costs.hardware) if run.costs else None
            stage.finalize(graph, replace(run, limits=own, costs=costs))

    def on_reconstructed(self, graph: ModelGraph, run: Run) -> None:
        """See `Method.on_reconstructed`."""
        for stage in self.stages:
            stage.on_reconstructed(graph, run)

    def next_phase(self, ended: Sequence[PhaseEnd]) -> Phase | None:
        """The phases of the stage that has its own; one common phase if none has.

        Raises:
            ArgumentError: Two stages want to train in stretches of their own.
        """
        own = [stage for stage in self.stages if stage.next_phase(()) != Phase()]
        if len(own) > 1:
            raise ArgumentError(
                f"two of the methods {self.name} train in phases of their own",
                where="method",
                remedy="Run one of them first, and compress its result with the other.",
            )
        return (own[0] if own else self.stages[0]).next_phase(ended)

    def on_phase_start(self, phase: Phase) -> None:
        """See `Method.on_phase_start`."""
        for stage in self.stages:
            stage.on_phase_start(phase)

    def on_phase_end(self, phase: Phase) -> None:
        """See `Method.on_phase_end`."""
        for stage in self.stages:
            stage.on_phase_end(phase)

    def on_loss(self, loss: Tensor, batch: Any, outputs: Any) -> Tensor:
        """See `Method.on_loss`."""
        for stage in self.stages:
            loss = stage.on_loss(loss, batch, outputs)
        return loss

    def on_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """See `Method.on_gradients`."""
        for stage in self.stages:
            stage.on_gradients(optimizer)

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """See `Method.on_step`."""
        for stage in self.stages:
            stage.on_step(step, optimizer)
            self._announce()

    def on_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """See `Method.on_epoch`."""
        for stage in self.stages:
            stage.on_epoch(epoch, optimizer)
            self._announce()

    def can_be_result(self) -> bool:
        """Whether every stage says so."""
        return all(stage.can_be_result() for stage in self.stages)

    def needs_shapes(self) -> str:
        """The first reason that a stage has."""
        return next((why for stage in self.stages if (why := stage.needs_shapes())), "")

    def claims(self, key: str) -> bool:
        """Whether any stage says so."""
        return any(stage.claims(key) for stage in self.stages)

    def still_saved(self) -> int | float:
        """The sum over the stages."""
        return sum(stage.still_saved() for stage in self.stages)

    def report(self) -> dict[str, Any]:
        """What all stages tell; of one key the last has its say."""
        return {key: value for stage in self.stages for key, value in stage.report().items()}

    def events(self) -> list[dict[str, Any]]:
        """Those of all stages."""
        return [row for stage in self.stages for row in stage.events()]

    def search_record(self) -> SearchRecord | None:
        """That of the first stage that has one."""
        found = (stage.search_record() for stage in self.stages)
        return next((record for record in found if record is not None), None)

    def state_dict(self) -> dict[str, Any]:
        """Those of the stages."""
        return {"stages": [stage.state_dict() for stage in self.stages]}

    def restore_shapes(self, state: dict[str, Any]) -> None:
        """See `Method.restore_shapes`."""
        for stage, own in zip(self.stages, state["stages"], strict=True):
            stage.restore_shapes(own)
            self._announce()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        for stage, own in zip(self.stages, state["stages"], strict=True):
            stage.load_state_dict(own)
