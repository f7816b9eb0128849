"""The measuring process: one ONNX model, one runtime, commands and answers as lines of JSON.

`bench.measure` starts it as `python -m bench.worker` and speaks to it through standard input and
output. A crash of the runtime kills this process and nothing else.

    {"command": "load", "path": ..., "threads": 1, "batch": 1, "seed": 0}
        -> {"load_ms": ..., "runtime": ...}
        also, if wanted: "runtime": "openvino-cpu", "options": {...}, "profile": [prefix, optimized]
    {"command": "round", "runs": 100}
        -> {"median_ms": ..., "minimum_ms": ..., "cpu_ms": ...}      all per inference
    {"command": "memory"}
        -> {"peak_rss_bytes": ...}
    {"command": "finish"}                                       after a load with "profile"
        -> {"profile": ...}                                     path of the kernels' times

Any failure is answered by {"error": ...}. The process ends with its standard input.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.runtimes import DEFAULT, OnnxRuntime, Profile, Runner, import_package, open_runner

_INTEGERS = {
    "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
}
_FLOATS = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


def input_shape(name: str, dims: list[Any], batch: int) -> list[int]:
    """Shape to feed: the first dimension is the batch, other dynamic dimensions are 1.

    Args:
        name: The input, for the error.
        dims: Sizes as the runtime reports them; anything but an integer is dynamic.
        batch: Batch size asked for.

    Raises:
        ValueError: The model fixes its first dimension to something else than `batch`.
    """
    if not dims:
        return []
    if isinstance(dims[0], int) and dims[0] != batch:
        raise ValueError(
            f"input {name!r} has a fixed batch of {dims[0]}, but a batch of {batch} is asked for; "
            f"measure with batch {dims[0]} or export with a dynamic batch"
        )
    return [batch, *(dim if isinstance(dim, int) else 1 for dim in dims[1:])]


def make_inputs(inputs: Sequence[Any], batch: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs by name: standard normal for floats, zeros for integers (valid as an index).

    Args:
        inputs: Objects with `name`, `type` (`"tensor(float)"`, ...) and `shape`.
        batch: Size of the first dimension.
        seed: Seed of the values.

    Raises:
        ValueError: A fixed batch contradicts `batch`, or a type is neither float nor integer.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for item in inputs:
        shape = input_shape(item.name, list(item.shape), batch)
        if item.type in _FLOATS:
            feed[item.name] = generator.standard_normal(shape).astype(_FLOATS[item.type])
        elif item.type in _INTEGERS:
            feed[item.name] = np.zeros(shape, dtype=_INTEGERS[item.type])
        else:
            raise ValueError(f"input {item.name!r} has the type {item.type}, which cannot be fed")
    return feed


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, bytes (VmHWM where the kernel tells it)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Worker:
    """Answers the commands of one measuring process."""

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.feed: dict[str, np.ndarray[Any, Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command.

        Args:
            request: The command and its arguments, see the module.

        Raises:
            ValueError: Unknown command, inputs that cannot be made, or nothing is loaded.
        """
        command = request["command"]
        if command == "load":
            return self._load(request)
        if command == "round":
            return self._round(int(request["runs"]))
        if command == "memory":
            return {"peak_rss_bytes": peak_rss_bytes()}
        if command == "finish":
            return self._finish()
        raise ValueError(f"unknown command {command!r}")

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        runtime, options = request.get("runtime", DEFAULT), request.get("options", {})
        path, threads, profile = request["path"], request["threads"], request.get("profile")
        import_package(runtime)  # its time is none of the model's
        begin = time.perf_counter_ns()
        if profile is None:
            self.runner = open_runner(runtime, path, threads, options)
        else:
            self.runner = OnnxRuntime(path, threads, options, Profile(*profile))
        load_ms = (time.perf_counter_ns() - begin) / 1e6
        self.feed = make_inputs(self.runner.inputs, request["batch"], request["seed"])
        return {"load_ms": load_ms, "runtime": self.runner.name}

    def _finish(self) -> dict[str, Any]:
        if not isinstance(self.runner, OnnxRuntime):
            raise ValueError("'finish' without a profile")  # noqa: TRY004 (of the protocol)
        return {"profile": self.runner.finish()}

    def _round(self, runs: int) -> dict[str, Any]:
        if self.runner is None:
            raise ValueError("'round' before 'load'")
        run, feed = self.runner.run, self.feed
        walls = []
        cpu_begin = time.process_time()
        for _ in range(runs):
            begin = time.perf_counter_ns()
            run(feed)
            walls.append(time.perf_counter_ns() - begin)
        cpu = time.process_time() - cpu_begin
        return {
            "median_ms": statistics.median(walls) / 1e6,
            "minimum_ms": min(walls) / 1e6,
            "cpu_ms": cpu * 1e3 / runs,
        }


def main() -> None:
    """Answer commands from standard input until it ends."""
    # The runtime may print: it gets the error stream, and the answers a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            # The border of the process: whatever the runtime raises is the parent's to report.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
