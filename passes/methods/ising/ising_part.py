"""The Ising energy of a model whose weights change: couplings that follow them now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph
from passes.inputs import Call
from passes.ising.activity import unit_activity
from passes.ising.couplings import Block, Couplings, Edge, couplings, ema
from passes.ising.ising_energy import IsingEnergy
from passes.ising.repair import Repair
from passes.ising.spin_search import tabu_search
from passes.ising.swaps import descend_swaps
from passes.methods.ising.candidates import rows_of
from passes.methods.ising.setting import Setting, everything
from passes.rewrite.live_gates import LiveGates

# Of the running mean of couplings what stays at most: the first ones, of which few are known yet,
# count alike.
_KEPT = 0.9
# Samples that the activity of feature maps is measured on.
_SAMPLES = 32


class IsingPart:
    """The Ising energy, after `refresh`.

    Args:
        graph: The model, with gates.
        setting: The nodes and the budget.
        gates: The gates in the model.
        inter: Weight of the couplings between groups.
    """

    def __init__(self, graph: ModelGraph, setting: Setting, gates: LiveGates, inter: float) -> None:
        self._graph, self._setting, self._gates, self._inter = graph, setting, gates, inter
        self._couplings: Couplings | None = None
        self._known: IsingEnergy | None = None
        self._measured = 0
        self._repair = setting.repair

    @property
    def energy(self) -> IsingEnergy:
        """Maps populations to energies.

        Raises:
            PreconditionError: Nothing was measured yet.
        """
        if self._known is None:
            raise PreconditionError("refresh() was not called", where="Ising energy")
        return self._known

    def aim(self, repair: Repair) -> None:
        """Let the bias favour states near a budget, as it is now."""
        self._repair = repair
        if self._couplings is not None and self._known is not None:
            bias = self._bias()
            self._couplings = replace(self._couplings, bias=bias)
            self._known = self._known.biased(bias)

    def refresh(self, calls: Iterable[Call]) -> None:
        """Follow the weights: a running mean of couplings.

        Args:
            calls: Batches that the activity of feature maps is measured on, with all gates open;
                without any, groups are coupled within only.
        """
        setting = self._setting
        samples = [rows_of(call, _SAMPLES).to(self._gates.device) for call in calls]
        activity = None
        if samples:
            with self._gates.acting(self._gates.rows(everything(setting.layout)[None])[0]):
                activity = unit_activity(self._graph, setting.groups, samples)
        found = couplings(
            self._graph,
            setting.groups,
            setting.layout,
            activity,
            inter=self._inter,
            bias=self._bias(),
        )
        before = self._couplings
        if before is not None and bool(before.edges) == bool(found.edges):
            found = ema(before, found, min(_KEPT, self._measured / (self._measured + 1)))
            self._measured += 1
        else:
            self._measured = 1
        self._set(found)

    def _bias(self) -> dict[str, float]:
        """The bias 2 rho favours states that keep the share rho: the budget's."""
        shares = self._repair.keep_rates().tolist()
        return {n: 2 * rho for n, rho in zip(self._setting.layout.names, shares, strict=True)}

    def lowest(self, start: Tensor, scores: Tensor, generator: Generator) -> Tensor:
        """A state of low energy within the budget, as it is now, bool `(nodes,)`.

        Found by tabu search without the budget, repaired, and improved by swaps: which of two alike
        units goes is nothing that a repair by importance knows.

        Args:
            start: Where to begin, bool `(nodes,)`.
            scores: How much each node matters, `(nodes,)`.
            generator: On the CPU.
        """
        least = {group.name: group.minimum for group in self._setting.groups.free}
        found = tabu_search(self.energy, start[None], generator=generator, least=least)
        return descend_swaps(self.energy, self._repair(found, scores)[0])

    def state_dict(self) -> dict[str, Any]:
        """The couplings."""
        found = self._couplings
        if found is None:
            return {}
        blocks = {name: [block.spins, block.weight] for name, block in found.blocks.items()}
        edges = [[e.source, e.target, e.spins, e.weight] for e in found.edges]
        bias = dict(found.bias)
        return {"blocks": blocks, "edges": edges, "bias": bias, "measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if not state:
            self._couplings = self._known = None
            self._measured = 0
            return
        blocks = {str(n): Block(spins, float(w)) for n, (spins, w) in state["blocks"].items()}
        edges = tuple(Edge(str(a), str(b), e, float(w)) for a, b, e, w in state["edges"])
        bias = {str(name): float(value) for name, value in state["bias"].items()}
        self._measured = int(state["measured"])
        self._set(Couplings(blocks, edges, bias))

    def _set(self, found: Couplings) -> None:
        self._couplings, self._known = found, IsingEnergy(self._setting.layout, found)
