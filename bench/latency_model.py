"""Fit the latency of a model's keep-states to networks that are measured here.

Networks of random widths are written, profiled layer by layer and measured as a whole in ONNX
Runtime at batch 1 with one thread; `energy_model.latency` is fitted to them. How well it predicts
others, `python -m bench.latency_check` shows.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.layer_times import paired_layer_times
from bench.measure import measure
from bench.network_files import NetworkFile, NetworkFiles
from energy_model.errors import ArgumentError
from energy_model.latency import LatencyModel, LayerWidths
from energy_model.latency_fit import TimedNetwork, fit_latency
from passes.graph import ModelGraph
from passes.structure.groups import ChannelGroups, channel_groups
from passes.structure.latency_terms import Widths
from passes.structure.ranking import allowed_counts
from passes.structure.restrict import restricted
from passes.structure.state import State, full_state

NETWORKS = 32
_LEAST = 2
# Groups that a network leaves whole, as those that a method chooses do.
_WHOLE = 0.2
# Networks that take turns: as many processes are alive at once.
_TOGETHER = 8
# Many short rounds: whatever disturbs some of them does not change the median.
_ROUNDS, _SECONDS = 15, 0.03
_PROFILED, _RUNS = 9, 10

Progress = Callable[[int, int], None]
"""Called with networks done, and in all."""


def measure_latency_model(
    graph: ModelGraph,
    *,
    networks: int = NETWORKS,
    multiple: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyModel:
    """Measure networks of random widths and fit a latency model: batch 1, one thread, ONNX Runtime.

    Args:
        graph: The traced model, which is left alone; its layers keep their names.
        networks: How many networks are measured, the whole and the smallest one among them.
        multiple: Channel counts are multiples of this.
        seed: Of the widths.
        progress: Called before every few networks.

    Raises:
        ArgumentError: Fewer than two networks.
        ExportError: The model has no ONNX form.
        BenchError: The runtime refuses a file or fails.
    """
    subject = MeasuredNetworks(graph, multiple, seed)
    timed = subject.measure(subject.draw(networks), progress)
    return fit_latency(timed, about=subject.about, seed=seed)


class MeasuredNetworks:
    """Networks of random widths of one model, each written, profiled and measured.

    The whole network takes its turn among every few others, and their times are multiples of its:
    whatever else the machine does meanwhile then meets all of them alike.

    Args:
        graph: The traced model; only copied.
        multiple: Channel counts are multiples of this.
        seed: Of the widths.

    Attributes:
        about: Machine, runtime, threads and batch of the last measurements.
    """

    def __init__(self, graph: ModelGraph, multiple: int = 1, seed: int = 0) -> None:
        self._groups = restricted(channel_groups(graph), graph)
        self._graph, self._seed = graph, seed
        self._files: NetworkFiles | None = None
        self._whole: _Taken | None = None  # typical of the first measurements
        self._widths = Widths(graph, self._groups)
        self._multiple = multiple
        self._generator = np.random.default_rng(seed)
        self.about: dict[str, Any] = {}

    def draw(self, count: int) -> list[dict[str, Any]]:
        """Keep-states to measure: the whole, the smallest, and random ones.

        Raises:
            ArgumentError: `count` is below 2.
        """
        if count < _LEAST:
            raise ArgumentError(f"{count} networks", where="networks", remedy="Measure at least 2.")
        drawn = [self.draw_one() for _ in range(count - _LEAST)]
        return [full_state(self._groups), smallest_state(self._groups, self._multiple), *drawn]

    def draw_one(self) -> dict[str, Any]:
        """A random keep-state; see `random_widths_state`."""
        return random_widths_state(self._groups, self._generator, self._multiple)

    def widths(self, state: State) -> dict[str, tuple[int, int]]:
        """Input and output channels of every layer."""
        return self._widths.of(state)

    def measure(
        self, states: Sequence[State], progress: Progress | None = None
    ) -> list[TimedNetwork]:
        """Write, profile and measure the networks of keep-states, a few of them in turns."""
        if self._files is None:
            self._files = NetworkFiles(self._graph, self._groups, self._seed)
        found: list[list[_Taken]] = []
        for start in range(0, len(states), _TOGETHER):
            if progress is not None:
                progress(start, len(states))
            found.append(self._measured(self._files, states[start : start + _TOGETHER]))
        if self._whole is None and found:
            self._whole = _typical([whole for whole, *_ in found])
        return [
            _relative(network, whole, self._whole or whole)
            for whole, *networks in found
            for network in networks
        ]

    def _measured(self, writer: NetworkFiles, states: Sequence[State]) -> list[_Taken]:
        """The whole network, and those of keep-states, measured in turns."""
        states = [full_state(self._groups), *states]
        with tempfile.TemporaryDirectory(prefix="transform-latency-") as folder:
            files = [
                writer.write(state, Path(folder) / f"{number}.onnx")
                for number, state in enumerate(states)
            ]
            return self._timed(states, files)

    def _timed(self, states: Sequence[State], files: Sequence[NetworkFile]) -> list[_Taken]:
        paths = [file.path for file in files]
        names = [file.names for file in files]
        layers = paired_layer_times(paths, names=names, rounds=_PROFILED, runs=_RUNS)
        report = measure(paths, rounds=_ROUNDS, seconds_per_round=_SECONDS)
        first = report.measurements[0]
        self.about = {n: getattr(first, n) for n in ("machine", "runtime", "threads", "batch")}
        return [
            _Taken(
                self.widths(state),
                {name: time / 1e3 for name, time in times.items()},
                [time / 1e3 for time in measured.round_ms],
            )
            for state, times, measured in zip(states, layers, report.measurements, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a network took: every layer in a profile, and the whole in every round; seconds."""

    widths: LayerWidths
    layers: Mapping[str, float]
    rounds: Sequence[float]


def _typical(wholes: Sequence[_Taken]) -> _Taken:
    """One network out of several measurements of it, by medians."""
    layers = {n: statistics.median(x.layers[n] for x in wholes) for n in wholes[0].layers}
    rounds = [statistics.median(x.rounds) for x in wholes]
    return _Taken(wholes[0].widths, layers, [statistics.median(rounds)])


def _relative(network: _Taken, beside: _Taken, typical: _Taken) -> TimedNetwork:
    """A network's times, were the whole network as fast as it typically is.

    Args:
        network: The network.
        beside: The whole network, as measured in the same rounds.
        typical: The whole network, as it typically is.
    """
    profile = sum(typical.layers.values()) / sum(beside.layers.values())
    layers = {name: time * profile for name, time in network.layers.items()}
    pairs = zip(network.rounds, beside.rounds, strict=True)
    ratio = statistics.median(mine / base for mine, base in pairs)
    return TimedNetwork(network.widths, layers, ratio * statistics.median(typical.rounds))


def random_widths_state(
    groups: ChannelGroups, generator: np.random.Generator, multiple: int = 1
) -> dict[str, Any]:
    """A state whose groups have any of the widths that they may have, a fifth of them the full one.

    Args:
        groups: The model's groups.
        generator: Source of the randomness.
        multiple: Channel counts are multiples of this.
    """
    state = {}
    for group in groups.free:
        counts = allowed_counts(group, multiple)
        whole = generator.random() < _WHOLE
        count = group.units if whole else int(generator.choice(counts))
        keep = np.zeros(group.units, dtype=bool)
        keep[generator.permutation(group.units)[:count]] = True
        state[group.name] = keep
    return state


def smallest_state(groups: ChannelGroups, multiple: int = 1) -> dict[str, Any]:
    """The state that keeps the fewest units of every group."""
    return {
        group.name: np.arange(group.units) < min(allowed_counts(group, multiple))
        for group in groups.free
    }
