"""Extra memory of the projection: largest resident memory while it runs, less that before.

Run as a process of its own (`python -m bench.speed.memory FACTORY SHAPE BUDGET THREADS`), which
sets the problem up, returns freed memory to the system, projects once, and prints the bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from bench.speed.projection import BUDGETS, project
from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings
from bench.speed.subjects import Subject
from bench.speed.subprocesses import run_python

TARGET = 1.5
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.0005


def extra_bytes(action: Callable[[], object]) -> int:
    """Bytes of resident memory that `action` needs at its peak, beyond what is there before.

    The kernel keeps the peak itself (VmHWM, reset through clear_refs); where it does not, a thread
    samples the resident memory every half millisecond and can miss a shorter peak.
    """
    _return_freed()
    try:
        _CLEAR.write_text("5")  # resets VmHWM to the present resident memory
    except OSError:
        return _sampled(action)
    before = _status("VmRSS")
    result = action()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _return_freed() -> None:
    """Give freed memory back, so that the action cannot reuse it unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}")


def _sampled(action: Callable[[], object]) -> int:
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = before

    def sample() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        result = action()
        peak = max(peak, process.memory_info().rss)
        del result
    finally:
        done.set()
        thread.join()
    return max(0, peak - before)


def measure_memory(
    subject: Subject, settings: Settings, budgets: Sequence[str] = BUDGETS
) -> Outcome:
    """Extra memory of the projection over the bytes of the weights; each in a fresh process.

    Args:
        subject: The model.
        settings: How to measure; one round is enough, since bytes do not depend on the load.
        budgets: What it is projected onto.
    """
    shape = ",".join(map(str, subject.input_shape))
    ratios = []
    for budget in budgets:
        arguments = [subject.factory, shape, budget, str(settings.threads)]
        answer = json.loads(run_python("-m", "bench.speed.memory", *arguments))
        pair = (answer["extra"], answer["weights"])
        name = f"extra memory of projecting {subject.name}, {budget}"
        ratios.append(Ratio(name, "bytes of the weights", TARGET, (pair,), "bytes"))
    return Outcome(tuple(ratios))


def main(factory: str, shape: str, budget: str, threads: str) -> None:
    """Project once and print `{"extra": bytes, "weights": bytes}`."""
    torch.set_num_threads(int(threads))
    subject = Subject(factory, factory, tuple(int(size) for size in shape.split(",")))
    problem = subject.problem(budget)
    weights = sum(weight.numel() * weight.element_size() for weight in problem.weights)
    print(json.dumps({"extra": extra_bytes(lambda: project(problem)), "weights": weights}))


if __name__ == "__main__":
    main(*sys.argv[1:])
