"""Times of exported files, measured until the noise allows it, and kept for a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from energy_model.errors import StorageError
from energy_model.latency import LatencyModel
from energy_model.timing import Timing
from passes.storage.atomic import json_bytes, read_json, storage_errors, write_file

# Rounds whose medians vary by more than this are measured again, longer each time.
_STEADY = 0.15
_ROUNDS, _ATTEMPTS = 9, 3


def measure_file(path: Path) -> Timing:
    """Median seconds of one inference: batch 1, one thread, ONNX Runtime on the CPU.

    Where the rounds vary too much they are measured again; the steadiest measurement counts, not
    the fastest.

    Raises:
        BenchError: The runtime refuses the file or fails.
    """
    from bench.measure import measure  # bench stands above this floor: only when it is asked for

    found: list[Timing] = []
    for attempt in range(_ATTEMPTS):
        [measured] = measure([path], threads=1, batch=1, rounds=_ROUNDS << attempt).measurements
        names = ("median_ms", "threads", "batch", "runtime", "machine")
        details = {name: getattr(measured, name) for name in names}
        found.append(Timing(measured.median_ms / 1000, measured.spread, details))
        if measured.spread <= _STEADY:
            break
    return min(found, key=lambda timing: timing.spread)


def other_machine(details: Mapping[str, Any]) -> str:
    """The machine that a time was measured on, if it is not this one; else empty.

    Args:
        details: Of a `Timing`.
    """
    from bench import measure

    here = measure.machine_name()
    there = str(details.get("machine", here))
    return "" if there == here else there


class Stopwatch:
    """Measures, and tells a resumed run what was measured before it was interrupted.

    A second measurement is never the first one again: a run that is to go on as it began must not
    choose another structure. The original, the prediction and the candidates are remembered by what
    they are; what certifies the result is always measured anew.

    Args:
        folder: Where checkpoints lie; `None` remembers nothing.
        run: Identity of the run; what another one measured is not used.
        resume: Whether to use what an earlier run measured.

    Raises:
        StorageError: The earlier run measured on another machine.
    """

    def __init__(self, folder: Path | None, run: str, *, resume: bool = True) -> None:
        self._file = None if folder is None else folder / "measured.json"
        self._run = run
        self._known: dict[str, Any] = {}
        if resume and self._file is not None and self._file.is_file():
            found = read_json(self._file)
            if found.get("run") == run:
                self._known = dict(found["measured"])
                self._require_here(self._file)

    def _require_here(self, file: Path) -> None:
        """Raise if times of another machine would be compared to times of this one."""
        machines = (other_machine(value.get("details", {})) for value in self._known.values())
        if there := next(filter(None, machines), ""):
            raise StorageError(
                f"the interrupted run has measured latencies on another machine ({there})",
                where=str(file),
                remedy="Go on there, or begin anew with resume=False.",
            )

    def timing(self, key: str, measure: Callable[[], Timing]) -> Timing:
        """The time of a file, by what the file holds.

        Args:
            key: Digest of it.
            measure: Measures it.
        """
        if key not in self._known:
            self._keep(key, measure().to_dict())
        return Timing(**self._known[key])

    def model(self, key: str, measure: Callable[[], LatencyModel]) -> LatencyModel:
        """A latency model; see `timing`."""
        if key not in self._known:
            self._keep(key, measure().to_dict())
        return LatencyModel.from_dict(self._known[key])

    def _keep(self, key: str, value: Mapping[str, Any]) -> None:
        self._known[key] = dict(value)
        if self._file is None:
            return
        with storage_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._file, json_bytes({"run": self._run, "measured": self._known}))
