"""What a keep-state costs: exact, from how many indices stay, without cutting or running anything.

Parameters, multiply-accumulates, nonzeros and energy depend on the number of kept units alone, and
are bilinear in it but for the energy; where weights hold zeros or inputs are masked, also on which
units they are. Bytes of the exported file are an upper bound that is nearly met, the latency is
predicted. Energies are multiples of 1/256, which floats hold exactly; all that is whole is an
integer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError, PreconditionError, UnsupportedBudget
from energy_model.hardware import Hardware
from energy_model.latency import LatencyModel
from energy_model.unit_prices import plain
from passes.graph import ModelGraph
from passes.structure.cost_terms import Product, Term, View, merged, one_hot
from passes.structure.file_bytes import file_terms
from passes.structure.geometry import uncounted
from passes.structure.groups import ChannelGroups
from passes.structure.latency_terms import latency_terms
from passes.structure.lines import Lines
from passes.structure.site_terms import parameter_terms, site_terms
from passes.structure.state import State, checked_state, full_state
from passes.structure.tally import Reach, Tally

KEYS = ("energy", "size", "weight_bits", "nonzeros", "params", "macs", "sparse_macs")
# Predicted by a model that was fitted to measurements; nobody knows it without one.
LATENCY = "latency"

# Costs of which a group can have a part that is not counted: see `geometry.uncounted`.
_BY_SHAPE = frozenset({"energy", "macs", "sparse_macs", LATENCY})


class StructureCosts:
    """Costs of every keep-state of a model.

    Args:
        graph: The traced model; not changed.
        groups: Its channel groups.
        hardware: The accelerator of the energy model.
        keys: Which costs, of `KEYS`; and `"latency"`, in seconds, which is predicted.
        bases: Bytes of the original's file, for `"size"`.
        latency: Predicts `"latency"` from the widths of the layers.

    Attributes:
        keys: The costs, in order.
        uncounted: Free groups whose width has effects on energy or multiply-accumulates that are
            not counted, by name, and why: they are to be frozen.

    Raises:
        UnsupportedBudget: A cost is not known.
        ArgumentError: The size is asked for without its base, or the latency without its model.
    """

    def __init__(
        self,
        graph: ModelGraph,
        groups: ChannelGroups,
        hardware: Hardware,
        keys: Sequence[str] = ("energy", "params", "macs"),
        bases: Mapping[str, int] | None = None,
        latency: LatencyModel | None = None,
    ) -> None:
        self.keys = tuple(keys)
        for key in self.keys:
            _check_key(key)
        lines = Lines(graph, groups)
        reasons = uncounted(graph, groups, lines)
        self.uncounted = reasons if _BY_SHAPE & set(self.keys) else {}
        self.groups = groups
        terms = site_terms(graph, lines, hardware, self.keys)
        if "params" in self.keys:
            terms += parameter_terms(graph, lines, self.keys)
        if "size" in self.keys:
            terms += _size_terms(graph, lines, self.keys, bases or {})
        if LATENCY in self.keys:
            terms += latency_terms(graph, lines, _required(latency), self.keys)
        self.lines = tuple(lines.all)
        terms = [term for term in terms if any(term.weights)]
        self._all = tuple(terms)
        self.terms = tuple(merged(terms))
        full = self._view(full_state(groups))
        self._reach = Reach(self.terms, self.lines, full.state)
        count = len(self.keys)
        whole, parts = _summed(self._all, full, count), _summed(self.terms, full, count)
        self.constant = tuple(a - b for a, b in zip(whole, parts, strict=True))

    def value(self, key: str, state: State) -> int | float:
        """One cost of a keep-state, in the unit of its limit.

        Raises:
            UnsupportedBudget: The cost was not asked for.
            ArgumentError: The state does not fit the groups.
            PreconditionError: The state cuts a group whose costs cannot be counted.
        """
        return self.tally(state).values[self.index(key)]

    def index(self, key: str) -> int:
        """The place of a key in `keys`.

        Raises:
            UnsupportedBudget: The cost was not asked for.
        """
        if key in self.keys:
            return self.keys.index(key)
        _check_key(key)
        raise UnsupportedBudget(
            f"the cost {key!r} was not asked for",
            where="costs",
            remedy=f"Name it in keys; they are {', '.join(self.keys)}.",
        )

    def values(self, state: State) -> dict[str, int | float]:
        """All costs of a keep-state; see `value`."""
        return dict(zip(self.keys, self.tally(state).values, strict=True))

    def tally(self, state: State) -> Tally:
        """Costs that follow a state that changes; see `value`."""
        found = checked_state(self.groups, state)
        for name, why in self.uncounted.items():
            if not found[name].all():
                raise PreconditionError(
                    f"its costs cannot be counted: {why}",
                    where=f"channel group {name!r}",
                    remedy="Freeze it, as restricted(groups, graph) does.",
                )
        view = self._view({name: keep.copy() for name, keep in found.items()})
        return Tally(self.terms, self.constant, self._reach, view)

    def by_layer(self, key: str, state: State) -> dict[str, int | float]:
        """One cost by layer; what no layer owns is under the empty name."""
        view, index = self._view(dict(state)), self.index(key)
        found: dict[str, int | float] = {}
        for term in self._all:
            if term.weights[index]:
                part = term.weights[index] * term.value(view)
                found[term.layer] = plain(found.get(term.layer, 0) + part)
        return found

    def _view(self, state: dict[str, NDArray[np.bool_]]) -> View:
        return View(self.lines, state, [line.kept(state) for line in self.lines])


def _check_key(key: str) -> None:
    if key not in (*KEYS, LATENCY):
        raise UnsupportedBudget(
            f"the limit {key!r} cannot be counted from which channels stay",
            where="budget",
            remedy=f"Limits that can are {', '.join((*KEYS, LATENCY))}.",
        )


def _required(model: LatencyModel | None) -> LatencyModel:
    if model is None:
        raise ArgumentError(
            "the latency is asked for without a model that predicts it",
            where="latency",
            remedy="Pass one that was fitted to measured networks: bench.latency_model.",
        )
    return model


def _summed(terms: Sequence[Term], view: View, count: int) -> tuple[float, ...]:
    sums: list[float] = [0] * count
    for term in terms:
        value = term.value(view)
        sums = [a + weight * value for a, weight in zip(sums, term.weights, strict=True)]
    return tuple(sums)


def _size_terms(
    graph: ModelGraph, lines: Lines, keys: Sequence[str], bases: Mapping[str, int]
) -> list[Term]:
    if "size" not in bases:
        raise ArgumentError(
            "the size is asked for without the bytes of the original's file",
            where="bases",
            remedy='Pass bases={"size": bytes}.',
        )
    terms = file_terms(graph, lines, keys)
    view = View(lines.all, {}, [line.size for line in lines.all])
    index = list(keys).index("size")
    stored = sum(term.weights[index] * term.value(view) for term in terms)
    rest = one_hot(keys, {"size": bases["size"] - stored})
    return [*terms, Product("", (), rest)]
