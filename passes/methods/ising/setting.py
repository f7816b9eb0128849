"""What is searched over: which nodes there are, and what the budget leaves of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energy_model.hardware import Hardware
from energy_model.latency import LatencyModel
from energy_model.resolved import ResolvedLimit
from passes.graph import Decision, ModelGraph
from passes.ising.layout import Layout
from passes.ising.repair import Repair
from passes.methods.base import Run
from passes.methods.ising.config import Ising
from passes.methods.ising.trained_values import as_trained
from passes.methods.kept_units import KeptUnits
from passes.rewrite.live_gates import gateable
from passes.structure.costs import StructureCosts
from passes.structure.groups import ChannelGroups, channel_groups
from passes.structure.importance import Scores, norm_scores, normalized, taylor_scores
from passes.structure.restrict import keeping_at_least, restricted

# Batches that gradients are averaged over.
_GRADIENT_BATCHES = 4

# From a model and a number of batches to gradients by name of the parameter: `Run.gradients`.
Gradients = Callable[[nn.Module, int], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The nodes of a search, and its budget.

    Attributes:
        groups: All channel groups; those that cannot be searched are frozen, with the reason.
        repair: The budget of the search.
        limits: The budget itself. It is that of the search, but where a latency is limited of which
            the prediction is known to be wrong.
    """

    groups: ChannelGroups
    repair: Repair
    limits: tuple[ResolvedLimit, ...]

    @classmethod
    def of(
        cls,
        graph: ModelGraph,
        hardware: Hardware,
        limits: Sequence[ResolvedLimit],
        config: Ising,
        run: Run | None = None,
        latency: LatencyModel | None = None,
    ) -> Setting:
        """Find the groups of a model, and what they cost.

        Args:
            graph: The traced model; not changed.
            hardware: The accelerator of the energy model.
            limits: The budget in absolute terms.
            config: What is left of each group at least.
            run: Tells what will become of the model: weights and biases that will move are counted
                as ones that are not zero. With `None` nothing moves.
            latency: Predicts the latency, if that is limited.
        """
        run = Run() if run is None else run
        found = gateable(graph, restricted(channel_groups(graph), graph))
        groups = keeping_at_least(found, 1 - config.max_removed)
        keys = [limit.key for limit in limits]
        counted = graph
        if not run.one_shot:
            counted = as_trained(graph)
        elif "size" in keys and config.bn_batches and run.batches is not None:
            counted = as_trained(graph, weights=False)
        bases = _bases(counted, limits, run, moves=counted is not graph)
        costs = StructureCosts(counted, groups, hardware, keys, bases, latency)
        multiple = multiple_of(config, hardware)
        repair = Repair(costs, groups, Layout.of(groups), tuple(limits), multiple)
        return cls(groups, repair, repair.limits)

    @property
    def layout(self) -> Layout:
        """Where the nodes are."""
        return self.repair.layout

    @property
    def staying(self) -> list[Decision]:
        """A decision for each group that cannot be searched."""
        return [
            Decision(group.name, "channels stay", group.why, f"{group.units} units")
            for group in self.groups
            if group.frozen
        ]

    def scores(self, graph: ModelGraph, config: Ising, gradients: Gradients | None) -> Tensor:
        """How much each node matters, float64 `(nodes,)`, with a mean of 1 in each group.

        Args:
            graph: The model as it is.
            config: Says what importance is.
            gradients: Of the loss, for `"taylor"`.
        """
        if config.importance == "taylor" and gradients is not None:
            found: Scores = taylor_scores(
                graph, self.groups, gradients(graph.runnable, _GRADIENT_BATCHES)
            )
        else:
            found = norm_scores(graph, self.groups, 1 if config.importance == "l1" else 2)
        scores = normalized(found, "mean")
        # A group of which this says nothing loses by chance.
        whole = {g.name: scores.get(g.name, np.ones(g.units)) for g in self.groups.free}
        return self.layout.flat(whole)

    def units(self, bits: Tensor) -> KeptUnits:
        """Which units of each free group a row keeps."""
        state = self.layout.state(bits)
        return {name: np.flatnonzero(keep).tolist() for name, keep in state.items()}

    def bits(self, units: Mapping[str, Sequence[int]]) -> Tensor:
        """The row that keeps these units."""
        state: dict[str, NDArray[np.bool_]] = {}
        for name, size in zip(self.layout.names, self.layout.sizes, strict=True):
            state[name] = np.zeros(size, dtype=bool)
            state[name][list(units[name])] = True
        return self.layout.bits(self.groups, state)

    def reached(self, bits: Tensor) -> dict[str, float]:
        """What a row costs, by limit."""
        return {key: float(v[0]) for key, v in self.repair.values(bits[None]).items()}


def multiple_of(config: Ising, hardware: Hardware) -> int:
    """What channel counts are to be multiples of."""
    return config.channel_multiple or hardware.channel_multiple


def everything(layout: Layout) -> Tensor:
    """The row that keeps all."""
    return torch.ones(layout.nodes, dtype=torch.bool)


def _bases(
    graph: ModelGraph, limits: Sequence[ResolvedLimit], run: Run, *, moves: bool
) -> dict[str, int]:
    """Bytes of the file of the model as it is counted, if they are limited."""
    size = next((limit for limit in limits if limit.key == "size"), None)
    if size is None:
        return {}
    # The base of the limit is the file of the original, before anything moved or was cut.
    if run.dense_size is None or not (moves or run.further):
        return {"size": int(size.base)}
    # Costs are counted from it in dense bytes: no zero is left out yet, and nothing that is dead.
    return {"size": run.dense_size(graph)}
