"""How long every layer of an ONNX file takes in ONNX Runtime, by the runtime's own profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx

from bench.layer_marks import find_layers, layers_of_kernels, marked, read_model
from bench.process import WorkerProcess
from energy_model.errors import ArgumentError

_SUFFIX = "_kernel_time"
_WARMUP = 5


def layer_times(
    path: Path | str,
    *,
    names: Mapping[str, str] | None = None,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 7,
    runs: int = 20,
    seed: int = 0,
    options: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> dict[str, float]:
    """Time of each layer of one file, see `paired_layer_times`.

    Args:
        path: The file.
        names: Layer by name of its weight.
        threads: As `paired_layer_times`, like the rest.
        batch: Samples in one inference.
        rounds: Turns.
        runs: Inferences in a turn.
        seed: Seed of the inputs.
        options: Session options.
        timeout: Seconds to wait for one step.

    Returns:
        Milliseconds of one inference by layer, in the order in which they run.

    Raises:
        ArgumentError: As `paired_layer_times`.
        BenchError: As `paired_layer_times`.
    """
    (times,) = paired_layer_times(
        [path],
        names=None if names is None else [names],
        threads=threads,
        batch=batch,
        rounds=rounds,
        runs=runs,
        seed=seed,
        options=options,
        timeout=timeout,
    )
    return times


def paired_layer_times(
    paths: Sequence[Path | str],
    *,
    names: Sequence[Mapping[str, str] | None] | None = None,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 7,
    runs: int = 20,
    seed: int = 0,
    options: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> tuple[dict[str, float], ...]:
    """Time of each layer of several files that take turns, so that noise meets all of them.

    A layer is a product or convolution with a constant weight. Everything that runs between it and
    the next one is charged to it (`bench.layer_marks.find_layers`), so that the layers' times add
    up to those of all kernels: a residual addition counts whether or not it is fused, and so does
    every conversion between float and integers.

    Args:
        paths: The files, e.g. the float and the integer form of one model.
        names: For each file, layer by name of its weight; see `find_layers`.
        threads: Threads inside an operator.
        batch: Samples in one inference.
        rounds: Turns of each file.
        runs: Inferences in a turn.
        seed: Seed of the inputs.
        options: Session options for all files.
        timeout: Seconds to wait for one step of one file.

    Returns:
        For each file milliseconds of one inference by layer, in the order in which they run: the
        median over the rounds of the mean of the middle half of a round.

    Raises:
        ArgumentError: A count below 1, or not one `names` per file.
        BenchError: A file has no weighted layer, or the runtime refuses it.
    """
    if names is not None and len(names) != len(paths):
        raise ArgumentError(f"{len(names)} names for {len(paths)} files", remedy="One per file.")
    known = names if names is not None else [None] * len(paths)
    settings = _Settings(threads, batch, rounds, runs, seed, dict(options or {}), timeout)
    with tempfile.TemporaryDirectory(prefix="transform-marked-") as folder:
        copies = [
            _Marked(Path(path), Path(folder) / f"{number}.onnx", mapping)
            for number, (path, mapping) in enumerate(zip(paths, known, strict=True))
        ]
        found = _profile([copy.path for copy in copies], settings)
    return tuple(c.times(*result) for c, result in zip(copies, found, strict=True))


def kernel_times(
    path: Path | str, *, threads: int = 1, rounds: int = 7, runs: int = 20
) -> dict[str, float]:
    """Time of each kernel of a file at batch 1, by the name of its node in the optimized graph.

    Args:
        path: The file.
        threads: Threads inside an operator.
        rounds: Turns.
        runs: Inferences in a turn.

    Returns:
        Milliseconds of one inference.

    Raises:
        ArgumentError: As `paired_layer_times`.
        BenchError: The runtime refuses the file.
    """
    settings = _Settings(threads, 1, rounds, runs, 0, {}, 600.0)
    ((times, _),) = _profile([Path(path)], settings)
    return times


@dataclass(frozen=True, slots=True)
class _Settings:
    threads: int
    batch: int
    rounds: int
    runs: int
    seed: int
    options: dict[str, str]
    timeout: float


class _Marked:
    """The copy of a file in which names tell the layer."""

    def __init__(self, path: Path, copy: Path, names: Mapping[str, str] | None) -> None:
        self.path = copy
        model = read_model(path)
        layers = find_layers(model, names)
        self.layers = layers.names
        onnx.save(marked(model, layers), copy)

    def times(self, kernels: Mapping[str, float], optimized: onnx.ModelProto) -> dict[str, float]:
        """The kernels' times by layer."""
        layer_of = layers_of_kernels(optimized)
        result = dict.fromkeys(self.layers, 0.0)
        for kernel, time in kernels.items():
            result[self.layers[layer_of.get(kernel, 0)]] += time
        return result


def _profile(
    paths: Sequence[Path], settings: _Settings
) -> list[tuple[dict[str, float], onnx.ModelProto]]:
    """Times of the kernels of each file, and the graph that they run in."""
    for what in ("rounds", "runs"):
        if getattr(settings, what) < 1:
            raise ArgumentError(f"{what} is {getattr(settings, what)}", remedy="Give at least 1.")
    with tempfile.TemporaryDirectory(prefix="transform-profile-") as folder, ExitStack() as stack:
        workers = []
        for number, path in enumerate(paths):
            worker = stack.enter_context(WorkerProcess(str(path), settings.timeout))
            worker.ask(
                "load",
                path=str(path),
                threads=settings.threads,
                batch=settings.batch,
                seed=settings.seed,
                options=settings.options,
                profile=[f"{folder}/{number}", f"{folder}/{number}.onnx"],
            )
            worker.ask("round", runs=_WARMUP)
            workers.append(worker)
        for turn in range(settings.rounds):
            for worker in workers if turn % 2 == 0 else workers[::-1]:
                worker.ask("round", runs=settings.runs)
        files = [Path(worker.ask("finish")["profile"]) for worker in workers]
        return [
            (
                {name: _per_inference(micros, settings) / 1e3 for name, micros in _kernels(file)},
                onnx.load(f"{folder}/{number}.onnx", load_external_data=False),
            )
            for number, file in enumerate(files)
        ]


def _per_inference(times: list[float], settings: _Settings) -> float:
    """Time of a kernel in one inference: the median over the rounds of `_middle` of a round."""
    runs, total = settings.runs, _WARMUP + settings.rounds * settings.runs
    if len(times) % total:  # in a branch or a loop that depends on the data
        return sum(times) / total
    each = len(times) // total
    inferences = [sum(times[i : i + each]) for i in range(0, len(times), each)]
    starts = [_WARMUP + number * runs for number in range(settings.rounds)]
    return statistics.median(_middle(inferences[start : start + runs]) for start in starts)


def _middle(times: list[float]) -> float:
    """Mean of the middle half: the clock counts whole microseconds, and the machine may stall."""
    cut = len(times) // 4
    return statistics.fmean(sorted(times)[cut : len(times) - cut])


def _kernels(profile: Path) -> Iterator[tuple[str, list[float]]]:
    """Every kernel with its times in the order of the runs, microseconds."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text(encoding="utf-8")):
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            times[name.removesuffix(_SUFFIX)].append(float(event["dur"]))
    yield from times.items()
