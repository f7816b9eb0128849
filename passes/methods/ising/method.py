"""Structured pruning by a search over keep-states, before training or while the model is trained.

While it is searched, the model is trained with its best state: closed gates stand where the dropped
channels are read, and their weights are held. Then the channels go for good, the optimizer's state
with them, and the rest of the training is that of the small model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from energy_model.cost import CostTable
from energy_model.errors import PreconditionError, StorageError
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.graph import Decision, ModelGraph
from passes.inputs import Batch, Call
from passes.ising.repair import annealed
from passes.methods.base import Method, MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.ising.config import Ising
from passes.methods.ising.latency import fast_enough, latency_model, reachable, told
from passes.methods.ising.live_search import LiveSearch
from passes.methods.ising.samples import fixed_samples, require_samples
from passes.methods.ising.setting import Setting, everything
from passes.methods.kept_units import KeptUnits, kept_rows
from passes.methods.plan import Plan
from passes.reconstruct.batch_norm import reestimate_batch_norms
from passes.rewrite.shrink import shrink
from passes.structure.costs import KEYS, LATENCY

# Share of the search during which the budget falls; then it can converge.
FALL = 0.7
# Times at least that importances and couplings follow the weights during a search.
_FOLLOWED = 10


def refresh_steps(config: Ising, search_steps: int) -> int:
    """Optimizer steps after which importances and couplings follow the weights."""
    return max(1, min(config.refresh, search_steps // _FOLLOWED))


class IsingPruning(Method):
    """Evolves keep-states towards a low energy, and removes what the best one drops."""

    name = "ising"
    config: Ising

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._run = Run()
        self._seed = 0
        self._known: tuple[ModelGraph, Setting] | None = None
        self._live: LiveSearch | None = None
        self._batch: Batch | None = None
        self._told: dict[str, Any] = {}
        # Once the channels are gone: which units stayed, and what was said of it.
        self._units: KeptUnits | None = None
        self._decided: list[Decision] = []
        # Once a search in training is over: whether the graph is the model in the end.
        self._rewritten: bool | None = None

    def observe(self, graph: ModelGraph, run: Run) -> None:
        """Draw a seed, and see whether there is what energy and importance are made of.

        Raises:
            PreconditionError: They need data or labels, and there are none.
        """
        self._run, self._known = run, None
        self._seed = int(torch.randint(2**31, (), generator=run.generator))
        require_samples(self.config, run)

    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Decide which units stay; see `Method.plan`.

        Without training, or with `search_share=0`, this is the whole search, on a copy. Otherwise
        it is a forecast, by importance alone: the search follows in training.
        """
        setting = self._new_setting(graph, costs.hardware, limits)
        searched: dict[str, Any] = {}
        timed: dict[str, Any] = {}
        if setting.layout.nodes and (one_shot or self.config.search_share == 0):
            bits, searched, timed = self._searched(graph, setting)
        else:
            scores = setting.scores(graph, self.config, self._run.gradients)
            bits = setting.repair(everything(setting.layout)[None], scores)[0]
        units = setting.units(bits)
        measured = {key: found["measured"] for key, found in timed.items()}
        return Plan(
            self.name,
            kept_rows(setting.groups, units),
            reached=setting.reached(bits) | measured,
            allowed={limit.key: limit.maximum for limit in limits},
            details={"units": units, "search": searched, **timed},
        )

    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Remove what the plan does not keep, or begin to search."""
        self._run = run
        setting = self._setting(graph)
        graph.decisions += setting.staying
        units = plan.details["units"]
        if run.one_shot or self.config.search_share == 0 or not setting.layout.nodes:
            graph.decisions += self._ended(plan.details["search"])
            graph.decisions += told(plan.details, run.limits)
            self._cut(graph, setting, units)
            return
        self._live = live = LiveSearch(graph, setting, self.config, run, self._seed)
        live.begin(self._calls(), self._limits(0), setting.bits(units))
        live.follow()

    def on_reconstructed(self, graph: ModelGraph, run: Run) -> None:
        """Hold the weights that the fit has left."""
        if self._live is not None:
            self._live.hold()

    def on_loss(self, loss: Tensor, batch: Any, outputs: Any) -> Tensor:
        """Note the samples that candidates are compared on next."""
        if self._live is not None:
            self._batch = batch
        return loss

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Hold what is dropped, take a generation, and end the search when it is over."""
        live = self._live
        if live is None:
            return
        live.held.restore()
        if step % self._refresh_steps == 0:
            calls = [] if self._batch is None else [self._batch.call]
            live.refresh(calls, self._limits(step))
        if step % self.config.every == 0:
            live.step(self._batch, self._limits(step))
            live.follow()
        why = live.over
        if step >= self._search_steps:
            why = why or f"{100 * self.config.search_share:g} % of the training are over"
        if why:
            self._commit(live, why, optimizer)

    def can_be_result(self) -> bool:
        """Whether the channels are gone."""
        return self._live is None

    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Remove the channels if a training that was too short has not."""
        if self._live is not None:
            self._commit(self._live, "the training is over", None)
        if self._rewritten is not None:
            graph.rewritten = self._rewritten

    def report(self) -> dict[str, Any]:
        """How the search stands; once more when it has ended."""
        told, self._told = self._told, {}
        if self._live is not None:
            told = self._live.report()
        return {"search": told} if told else {}

    def state_dict(self) -> dict[str, Any]:
        """Which units stayed, or the search as it stands."""
        decided = [list(decision.to_dict().values()) for decision in self._decided]
        state = {"units": self._units, "decided": decided, "rewritten": self._rewritten}
        return state if self._live is None else state | {"search": self._live.state_dict()}

    def restore_shapes(self, state: dict[str, Any]) -> None:
        """Remove the channels if they were gone.

        Raises:
            StorageError: A search before training has found another state than before.
        """
        if state["units"] is None:
            return
        units = {str(name): [int(i) for i in own] for name, own in state["units"].items()}
        live = self._live
        if live is None:
            self._check_same(units)
            return
        self._end(live)
        count = len(live.graph.decisions)
        self._remove(live.graph, live.setting, units)
        live.graph.decisions[count:] = [Decision(*row) for row in state["decided"]]
        live.graph.rewritten = True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._units, self._rewritten = state["units"], state["rewritten"]
        self._decided = [Decision(*row) for row in state["decided"]]
        if self._live is not None:
            self._live.load_state_dict(state["search"])

    @property
    def _search_steps(self) -> int:
        return max(1, round(self.config.search_share * self._run.total_steps))

    @property
    def _refresh_steps(self) -> int:
        return refresh_steps(self.config, self._search_steps)

    def _limits(self, step: int) -> tuple[ResolvedLimit, ...]:
        limits = self._run.limits if self._live is None else self._live.setting.repair.limits
        return self._limits_at(step / self._search_steps, limits)

    def _limits_at(
        self, share: float, limits: Sequence[ResolvedLimit]
    ) -> tuple[ResolvedLimit, ...]:
        """The budget when a share of the search is over."""
        fallen = min(1.0, share / FALL)
        return annealed(limits, fallen) if self.config.anneal else tuple(limits)

    def _setting(self, graph: ModelGraph) -> Setting:
        """That of the plan, if it was made for the same model."""
        if self._known is not None and self._known[0] is graph:
            return self._known[1]
        run = self._run
        if run.costs is None:
            raise PreconditionError("observe() was not called", where=f"method {self.name!r}")
        return self._new_setting(graph, run.costs.hardware, run.limits)

    def _new_setting(
        self, graph: ModelGraph, hardware: Hardware, limits: Sequence[ResolvedLimit]
    ) -> Setting:
        latency = latency_model(graph, hardware, limits, self.config, self._run)
        found = Setting.of(graph, hardware, limits, self.config, self._run, latency)
        setting = reachable(graph, found, self._run)
        self._known = graph, setting
        return setting

    def _calls(self) -> Iterator[Call]:
        return iter(()) if self._run.batches is None else self._run.batches(1)

    def _searched(
        self, graph: ModelGraph, setting: Setting
    ) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """The best state on the weights as they are, how the search went, and how fast it is."""
        live = LiveSearch(copy.deepcopy(graph), setting, self.config, self._run, self._seed)
        limits, count = setting.repair.limits, self.config.generations
        live.begin(self._calls(), self._limits_at(0, limits), None)
        budget = [self._limits_at(number / count, limits) for number in range(1, count + 1)]
        live.settle(fixed_samples(self.config, self._run), budget)
        why = live.over or f"{count} generations are over"
        bits, timed = fast_enough(graph, setting, live.chosen(), live.scores, self._run)
        return bits, live.report() | {"over": why}, timed

    def _commit(self, live: LiveSearch, why: str, optimizer: Any) -> None:
        """Remove the channels for good, within the budget itself."""
        graph, setting, bits = live.graph, live.setting, live.chosen()
        self._told = live.report() | {"over": why}
        count = len(graph.decisions)
        graph.decisions += self._ended(self._told)
        self._end(live)
        bits, timed = fast_enough(graph, setting, bits, live.scores, self._run)
        graph.decisions += told(timed, self._run.limits)
        self._cut(graph, setting, setting.units(bits), optimizer)
        self._decided = graph.decisions[count:]
        self._rewritten = graph.rewritten
        # The loop goes on with the graph that it began with.
        graph.rewritten = True

    def _end(self, live: LiveSearch) -> None:
        live.end()
        self._live, self._batch = None, None

    def _cut(
        self,
        graph: ModelGraph,
        setting: Setting,
        units: Mapping[str, Sequence[int]],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Remove the channels, and let the statistics of what is left follow."""
        self._remove(graph, setting, units, optimizer)
        batches = self._run.batches
        if batches is not None and self.config.bn_batches and not setting.bits(units).all():
            graph.decisions += reestimate_batch_norms(graph, batches, self.config.bn_batches)

    def _remove(
        self,
        graph: ModelGraph,
        setting: Setting,
        units: Mapping[str, Sequence[int]],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        state = setting.layout.state(setting.bits(units))
        why = f"lowest energy ({self.config.energy_name})"
        graph.decisions += shrink(graph, setting.groups, state, optimizer, why)
        self._units = {name: list(kept) for name, kept in units.items()}

    def _ended(self, told: Mapping[str, Any]) -> list[Decision]:
        """Why a search was over."""
        if not told:
            return []
        after = f"energy {told['energy_best']:.6g}" if "energy_best" in told else ""
        before = f"{told['generation']} generations"
        what = f"the search by {self.config.energy_name!r} ended"
        return [Decision("", what, told["over"], before, after)]

    def _check_same(self, units: KeptUnits) -> None:
        if self._units is not None and units != self._units:
            raise StorageError(
                "the search before training has found other channels than it did when the run was "
                "interrupted",
                where="out",
                remedy="Remove the folder 'checkpoints' in it; back ends that are chosen by the "
                "clock may differ in rounding: name one, e.g. Ising(backend='compact').",
            )


SPEC = MethodSpec(
    "ising",
    Ising,
    IsingPruning,
    frozenset((*KEYS, LATENCY)),
    "Salehinejad, Valaee, ICASSP 2021 and IEEE TNNLS 2022",
    keeps=frozenset({"zeros"}),
)
