"""Measure ONNX models in ONNX Runtime or OpenVINO, each in its own process, in interleaved rounds.

All models are loaded first; then they take turns, in rounds of equal length whose order is
reversed every other time, while the others wait. Whatever the machine does meanwhile then meets
all models alike, and the ratio of two models within one round means more than either time.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from bench.archives import Loadable, loadable
from bench.certificate_archive import is_archive
from bench.errors import BenchError
from bench.joules import JouleMeter, open_meter
from bench.measurement import Measurement, Report, relative_spread
from bench.process import WorkerProcess
from bench.runtimes import DEFAULT, require_runtime
from energy_model.errors import ArgumentError

ZSTD_LEVEL = 10

_Value = TypeVar("_Value")
Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


def measure(
    paths: Sequence[Path | str],
    *,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 7,
    warmup: int = 5,
    seconds_per_round: float = 0.15,
    seed: int = 0,
    energies: Sequence[float | None] | None = None,
    runtime: str = DEFAULT,
    runtimes: Sequence[str] | None = None,
    options: Sequence[Mapping[str, str] | None] | None = None,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Report:
    """Measure latency, CPU time, memory and size of ONNX models side by side.

    Float inputs are standard normal, integer inputs zero; the first dimension is the batch, other
    dynamic dimensions are 1.

    Args:
        paths: The models, ONNX files or archives; the first is the one that the others are compared
            with. One file may stand there more than once, with other runtimes or options. Archives
            are unpacked before they are loaded, in a time of its own.
        threads: Threads inside an operator.
        batch: Samples in one inference.
        rounds: Turns of each model; six or more are needed for a conclusion.
        warmup: Inferences before anything is measured; they also set the runs of a round.
        seconds_per_round: Length of one turn, seconds.
        seed: Seed of the inputs.
        energies: Modelled energy of one sample per model in MAC energies, shown beside.
        runtime: Where all models run: `"onnxruntime-cpu"` or `"openvino-cpu"`.
        runtimes: Where each model runs, instead of `runtime`.
        options: Of each model, session options or properties by the runtime's own names, e.g.
            `{"session.disable_quant_qdq": "1"}`; None for none.
        timeout: Seconds to wait for one step of one model.
        progress: Called before every step.

    Returns:
        One measurement per model, in their order.

    Raises:
        ArgumentError: An argument is out of range, or a runtime is not installed.
        BenchError: A model is missing, refused by the runtime, crashes it, hangs, or fixes another
            batch size.
    """
    files = [Path(path) for path in paths]
    _check_arguments(files, threads, batch, rounds, warmup, seconds_per_round, timeout)
    known = _one_each("energies", energies, None, files)
    places = _one_each("runtimes", runtimes, runtime, files)
    settings = _one_each("options", options, None, files)
    for place in dict.fromkeys(places):
        require_runtime(place)
    unpacked = sum(map(is_archive, files))
    steps = _Steps(len(files) * (rounds + 3) + unpacked, progress)
    with ExitStack() as stack:
        # Packing needs a CPU: it is over before the first turn.
        packed = [steps.run(f"packing {file.name}", _zstd_bytes, file) for file in files]
        sources = [_opened(stack, file, steps) for file in files]
        turns = [
            _Turns(
                stack.enter_context(WorkerProcess(str(file), timeout)),
                open_meter(),
                {"runtime": place, "options": dict(chosen or {})},
            )
            for file, place, chosen in zip(files, places, settings, strict=True)
        ]
        for turn, file, source in zip(turns, files, sources, strict=True):
            steps.run(f"loading {file.name}", turn.load, source.path, threads, batch, seed)
        for turn, file in zip(turns, files, strict=True):
            steps.run(f"warming up {file.name}", turn.calibrate, warmup, seconds_per_round)
        for number in range(rounds):
            for turn in turns if number % 2 == 0 else turns[::-1]:
                steps.run(f"round {number + 1} of {rounds}", turn.take)
        return Report(
            tuple(
                turn.measurement(size, source.unpack_ms, threads, batch, energy)
                for turn, size, source, energy in zip(turns, packed, sources, known, strict=True)
            )
        )


def _opened(stack: ExitStack, file: Path, steps: _Steps) -> Loadable:
    """The file as a runtime can load it, until the stack is left."""
    if not is_archive(file):
        return Loadable(file)
    opened: Loadable = steps.run(f"unpacking {file.name}", stack.enter_context, loadable(file))
    return opened


class _Turns:
    """One model taking turns: its process, and the answers of its rounds."""

    def __init__(
        self, worker: WorkerProcess, meter: JouleMeter | None, place: dict[str, Any]
    ) -> None:
        self.worker = worker
        self.meter = meter
        self.place = place
        self.loaded: dict[str, Any] = {}
        self.runs = 1
        self.answers: list[dict[str, Any]] = []
        self.joules: list[float | None] = []

    def load(self, file: Path, threads: int, batch: int, seed: int) -> None:
        self.loaded = self.worker.ask(
            "load", path=str(file), threads=threads, batch=batch, seed=seed, **self.place
        )

    def calibrate(self, warmup: int, seconds: float) -> None:
        median_ms = self.worker.ask("round", runs=warmup)["median_ms"]
        self.runs = max(1, round(seconds * 1e3 / median_ms))

    def take(self) -> None:
        if self.meter is not None:
            self.meter.begin()
        self.answers.append(self.worker.ask("round", runs=self.runs))
        spent = None if self.meter is None else self.meter.end()
        self.joules.append(None if spent is None else spent / self.runs)

    def measurement(
        self,
        bytes_zstd: int,
        unpack_ms: float | None,
        threads: int,
        batch: int,
        energy: float | None,
    ) -> Measurement:
        round_ms = tuple(answer["median_ms"] for answer in self.answers)
        counted = [joules for joules in self.joules if joules is not None]
        return Measurement(
            path=self.worker.model,
            bytes=Path(self.worker.model).stat().st_size,
            bytes_zstd=bytes_zstd,
            load_ms=self.loaded["load_ms"],
            median_ms=statistics.median(round_ms),
            minimum_ms=min(answer["minimum_ms"] for answer in self.answers),
            spread=relative_spread(round_ms),
            cpu_ms=statistics.median(answer["cpu_ms"] for answer in self.answers),
            peak_rss_bytes=self.worker.ask("memory")["peak_rss_bytes"],
            threads=threads,
            batch=batch,
            runtime=self.loaded["runtime"],
            machine=machine_name(),
            round_ms=round_ms,
            runs_per_round=self.runs,
            energy=energy,
            # With counts of some rounds only, the median would be that of other rounds.
            joules=statistics.median(counted) if len(counted) == len(self.joules) else None,
            options=self.place["options"],
            unpack_ms=unpack_ms,
        )


class _Steps:
    """Counts steps and tells the caller's progress function of each."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress

    def run(self, what: str, action: Callable[..., _Value], *arguments: Any) -> _Value:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += 1
        return action(*arguments)


def machine_name() -> str:
    """Model of the CPU as the system names it; the architecture where it does not."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _zstd_bytes(file: Path) -> int:
    import zstandard

    try:
        with file.open("rb") as source:
            reader = zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_reader(source)
            return sum(len(block) for block in iter(lambda: reader.read(1 << 20), b""))
    except OSError as error:
        raise BenchError(
            f"cannot be read ({error.strerror or error})",
            model=str(file),
            remedy="Give the path of an existing .onnx file.",
        ) from error


def _check_arguments(
    files: Sequence[Path],
    threads: int,
    batch: int,
    rounds: int,
    warmup: int,
    seconds_per_round: float,
    timeout: float,
) -> None:
    if not files:
        raise ArgumentError("no model to measure", where="paths", remedy="Give at least one .onnx.")
    counts = {"threads": threads, "batch": batch, "rounds": rounds, "warmup": warmup}
    for name, value in counts.items():
        if value < 1:
            raise ArgumentError(f"{name} is {value}", remedy="Give an integer of at least 1.")
    for name, seconds in (("seconds_per_round", seconds_per_round), ("timeout", timeout)):
        if not seconds > 0:
            raise ArgumentError(f"{name} is {seconds}", remedy="Give a positive time in seconds.")


def _one_each(
    name: str, given: Sequence[_Value] | None, default: _Value, files: Sequence[Path]
) -> list[_Value]:
    """One value per model."""
    if given is None:
        return [default] * len(files)
    if isinstance(given, str) or len(given) != len(files):
        count = 1 if isinstance(given, str) else len(given)
        raise ArgumentError(
            f"{count} {name} for {len(files)} models",
            where=name,
            remedy="Give one per model, in a list.",
        )
    return list(given)
