"""Latency as a sum of terms that follow a keep-state: predicted from the widths of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from energy_model.latency import LatencyModel
from energy_model.shapes import LayerShape
from passes.graph import ModelGraph
from passes.structure.cost_terms import Product, Term, View, lines_of, one_hot
from passes.structure.geometry import Arrangement, arrangement_of
from passes.structure.groups import ChannelGroups
from passes.structure.lines import Lines, Side
from passes.structure.state import State


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer whose widths may follow the state.

    Attributes:
        shape: Its first use, at full widths.
        sides: The first two dimensions of its weight; none where they are no plain channels.
        arrangement: How these are the channels.
    """

    shape: LayerShape
    sides: tuple[Side, ...] = ()
    arrangement: Arrangement | None = None

    def widths(self, lengths: list[int]) -> tuple[int, int]:
        """Input and output channels, given what is left of every line."""
        shape = self.shape
        if self.arrangement is not None:
            rows, columns = (side.length(lengths) for side in self.sides)
            shape = self.arrangement.cut(shape, rows, columns)
        return shape.in_channels, shape.out_channels


def _layers(graph: ModelGraph, lines: Lines) -> dict[str, _Layer]:
    """The layers that have widths, by name of the site; of several uses the first one tells."""
    found = {}
    for site in graph.sites:
        if not site.uses:
            continue
        use = site.uses[0]
        how = None if site.computed else arrangement_of(graph, lines, site, use)
        sides = (lines.of_site(site) or ())[:2]
        found[site.name] = _Layer(use.shape) if how is None else _Layer(use.shape, sides, how)
    return found


class Widths:
    """Input and output channels of every layer of a model, in any keep-state.

    Args:
        graph: The traced model.
        groups: Its channel groups.
    """

    def __init__(self, graph: ModelGraph, groups: ChannelGroups) -> None:
        lines = Lines(graph, groups)
        self._layers = _layers(graph, lines)
        self._lines = tuple(lines.all)

    def of(self, state: State) -> dict[str, tuple[int, int]]:
        """By name of the site; see `energy_model.latency`."""
        lengths = [line.kept(state) for line in self._lines]
        return {name: layer.widths(lengths) for name, layer in self._layers.items()}


@dataclass(frozen=True, slots=True, eq=False)
class LayerLatency:
    """Predicted seconds of a layer.

    Attributes:
        layer: Name of the site.
        own: Its widths.
        model: Predicts the time.
        weights: As `Term`.
    """

    layer: str
    own: _Layer
    model: LatencyModel
    weights: tuple[float, ...]
    _known: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def lines(self) -> tuple[int, ...]:
        """As `Term`."""
        return lines_of(self.own.sides)

    def value(self, view: View) -> float:
        """Seconds of one inference."""
        widths = self.own.widths(view.lengths)
        if widths not in self._known:
            self._known[widths] = self.model.layer_seconds(self.layer, *widths)
        return self._known[widths]


def latency_terms(
    graph: ModelGraph, lines: Lines, model: LatencyModel, keys: Sequence[str]
) -> list[Term]:
    """Seconds of every layer of a latency model, and the rest, as terms of the cost `"latency"`.

    Args:
        graph: The traced model.
        lines: Its lines.
        model: Fitted to networks of the same layers; one that the graph has not counts nothing.
        keys: Keys of all costs, in order.
    """
    weights = one_hot(keys, {"latency": 1})
    found = _layers(graph, lines)
    terms: list[Term] = [
        LayerLatency(name, found[name], model, weights) for name in model.layers if name in found
    ]
    return [*terms, Product("", (), one_hot(keys, {"latency": model.rest}))]
