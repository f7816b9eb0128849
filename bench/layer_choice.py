"""Which layers of an integer model are faster left in float, conversions between them counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from energy_model.errors import ArgumentError

MARGIN = 0.05
"""How much faster a layer must be in float: below it times of one kernel differ by chance."""


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor that layers hand on, and what it costs to convert it.

    Attributes:
        producer: The layer that it comes from.
        consumers: The other layers that read it.
        quantize_ms: Float to integers, milliseconds; paid once, however many layers read it.
        dequantize_ms: Integers to float.
    """

    producer: str
    consumers: tuple[str, ...]
    quantize_ms: float
    dequantize_ms: float


def choose_floating(
    float_times: Mapping[str, float],
    integer_times: Mapping[str, float],
    borders: Iterable[Border] = (),
    *,
    margin: float = MARGIN,
) -> frozenset[str]:
    """The layers that should stay in float, so that the whole takes the least time.

    Minimizes, over all sets of float layers, the sum of the layers' times and of a conversion
    wherever a float layer reads what an integer layer made, or the other way round. This is a
    minimum cut between the float and the integer layers (as of two labels in Greig, Porteous,
    Seheult, J. R. Stat. Soc. B 51, 1989), so the answer is exact. Of equal sets the smallest is
    taken. The change of memory layout that a runtime may add at a border is not counted.

    Args:
        float_times: Milliseconds of every layer in float, as `bench.layer_times` measures them.
        integer_times: Milliseconds of the layers that have an integer form. Layers that only
            `float_times` has are in float in any case.
        borders: What is handed on between layers; others are free.
        margin: Share by which a layer's float time is raised before it is compared.

    Raises:
        ArgumentError: A time is negative or not finite, or a layer has no float time.
    """
    borders = tuple(borders)
    _check(float_times, integer_times, borders)
    graph = nx.DiGraph()
    graph.add_nodes_from(("integer", "float"))
    for layer, time in float_times.items():
        # A layer on the side of "integer" pays the edge to "float", and the other way round.
        graph.add_edge("integer", ("layer", layer), capacity=time * (1 + margin))
        integer = {"capacity": integer_times[layer]} if layer in integer_times else {}
        graph.add_edge(("layer", layer), "float", **integer)  # without a capacity it is never cut
    for number, border in enumerate(borders):
        producer = ("layer", border.producer)
        quantized, floating = ("quantized", number), ("dequantized", number)
        graph.add_edge(quantized, producer, capacity=border.quantize_ms)
        graph.add_edge(producer, floating, capacity=border.dequantize_ms)
        for consumer in border.consumers:
            graph.add_edge(("layer", consumer), quantized)
            graph.add_edge(floating, ("layer", consumer))
    # Of equal cuts this one has the fewest nodes behind it, on the side of "float".
    _, (_, side) = nx.minimum_cut(graph, "integer", "float")
    return frozenset(layer for layer in float_times if ("layer", layer) in side)


def total_time(
    floating: frozenset[str],
    float_times: Mapping[str, float],
    integer_times: Mapping[str, float],
    borders: Iterable[Border] = (),
) -> float:
    """What a choice takes by the measured times, milliseconds.

    Args:
        floating: The float layers; those without an integer time are float in any case.
        float_times: As for `choose_floating`.
        integer_times: As for `choose_floating`.
        borders: As for `choose_floating`.
    """
    floating = floating | (float_times.keys() - integer_times.keys())
    total = sum(t if n in floating else integer_times[n] for n, t in float_times.items())
    for border in borders:
        inside = {name in floating for name in border.consumers}
        if border.producer in floating:
            total += border.quantize_ms if False in inside else 0.0
        else:
            total += border.dequantize_ms if True in inside else 0.0
    return total


def _check(
    float_times: Mapping[str, float],
    integer_times: Mapping[str, float],
    borders: tuple[Border, ...],
) -> None:
    read = {name for border in borders for name in (border.producer, *border.consumers)}
    unknown = sorted((integer_times.keys() | read) - float_times.keys())
    if unknown:
        raise ArgumentError(
            f"no float time of {', '.join(unknown)}",
            where="float_times",
            remedy="Measure both files with the same names of layers.",
        )
    costs = [cost for border in borders for cost in (border.quantize_ms, border.dequantize_ms)]
    for time in (*float_times.values(), *integer_times.values(), *costs):
        if not 0 <= time < math.inf:
            raise ArgumentError(f"a time of {time} ms", remedy="Times are finite and not negative.")
