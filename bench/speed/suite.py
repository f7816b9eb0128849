"""All speed benchmarks by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence

import torch

from bench.measure import machine_name
from bench.speed.deployed import measure_column_groups, measure_half_channels
from bench.speed.imports import measure_import
from bench.speed.memory import measure_memory
from bench.speed.projection import measure_projection
from bench.speed.ratio import Outcome
from bench.speed.report import Conditions, SpeedReport
from bench.speed.rounds import Settings
from bench.speed.structure import measure_groups, measure_shrink
from bench.speed.subjects import (
    ALEXNET,
    DENSENET121,
    MOBILENET_V3,
    RESNET18,
    RESNET18_32,
    RESNET50,
)
from bench.speed.training import measure_training
from bench.speed.verbs import measure_analyze, measure_compress
from energy_model.errors import ArgumentError

BENCHMARKS: dict[str, Callable[[Settings], Outcome]] = {
    "projection": lambda s: measure_projection(ALEXNET, s) + measure_projection(RESNET50, s),
    "memory": lambda s: measure_memory(ALEXNET, s) + measure_memory(RESNET50, s),
    "compress": lambda s: measure_compress(ALEXNET, s),
    "analyze": lambda s: measure_analyze(RESNET50, s),
    "training": lambda s: measure_training(RESNET18_32, s),
    "groups": lambda s: sum(
        (measure_groups(x, s) for x in (RESNET50, DENSENET121, MOBILENET_V3)), Outcome()
    ),
    "shrink": lambda s: measure_shrink(RESNET50, s),
    "channels": lambda s: measure_half_channels(RESNET18, s),
    "columns": measure_column_groups,
    "import": measure_import,
}


def run_suite(
    names: Sequence[str],
    settings: Settings,
    say: Callable[[str], None],
    known: dict[str, Callable[[Settings], Outcome]] = BENCHMARKS,
) -> SpeedReport:
    """Run benchmarks one after another; each interleaves what it compares.

    Args:
        names: Which ones; all when empty.
        settings: How to measure. The number of threads is torch's own afterwards again.
        say: Called with one line before each benchmark.
        known: Every benchmark by name.

    Raises:
        ArgumentError: A name is unknown.
        BenchError: A measuring process failed.
    """
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ArgumentError(
                "no such benchmark", where=name, remedy=f"{hint}There are {', '.join(known)}."
            )
    threads, before = torch.get_num_threads(), os.getloadavg()[0]
    outcome = Outcome()
    torch.set_num_threads(settings.threads)
    try:
        for name in names or tuple(known):
            say(f"measuring {name} (load {os.getloadavg()[0]:.1f})")
            outcome += known[name](settings)
    finally:
        torch.set_num_threads(threads)
    return SpeedReport(
        outcome,
        Conditions(
            machine=f"{machine_name()}, {os.cpu_count()} cores",
            torch=torch.__version__,
            threads=settings.threads,
            rounds=settings.rounds,
            light_rounds=settings.light_rounds,
            load=(before, os.getloadavg()[0]),
        ),
    )
