"""`import transform` against `import torch`, each in a fresh process with a warm file cache."""

from __future__ import annotations

from functools import partial

from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings, interleave, over_first
from bench.speed.subprocesses import run_python

TARGET = 1.3
_CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def import_seconds(module: str) -> float:
    """Seconds of one import statement in a fresh process; the interpreter's own start is left out.

    Raises:
        BenchError: The module cannot be imported.
    """
    return float(run_python("-c", _CODE.format(module)))


def measure_import(
    settings: Settings, module: str = "transform", base: str = "torch", target: float = TARGET
) -> Outcome:
    """Time the import of `module` over that of `base`.

    Args:
        settings: How to measure.
        module: What is measured.
        base: What it is compared with.
        target: What the ratio is to be at most.
    """
    turns = [partial(import_seconds, base), partial(import_seconds, module)]
    interleave(turns, 1)  # fills the file cache and writes bytecode
    rounds = interleave(turns, settings.light_rounds)
    ratio = Ratio(f"import {module}", f"import {base}", target, over_first(rounds, 1))
    return Outcome((ratio,))
