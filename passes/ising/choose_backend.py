"""Which way of running candidates is the fastest here: measured once, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.inputs import Call
from passes.ising.agreement import Trial, told
from passes.ising.compact_scoring import CompactScoring
from passes.ising.fold_scoring import FoldScoring
from passes.ising.loop_scoring import LoopScoring
from passes.ising.memory_cap import MEMORY
from passes.ising.scoring import Scoring
from passes.ising.vmap_scoring import VmapScoring
from passes.rewrite.live_gates import LiveGates

# The first is the reference of the others.
BACKENDS = ("loop", "fold", "vmap", "compact")
# Runs after the first; the fastest counts.
_RUNS = 2


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The back end that is used, and why.

    Attributes:
        name: Its name.
        seconds: What a population took with each that computes the same; empty if it was forced.
        dropped: Of the others, why they cannot be used.
    """

    name: str
    seconds: Mapping[str, float]
    dropped: Mapping[str, str]


def make_scorings(gates: LiveGates, memory: int = MEMORY) -> dict[str, Scoring]:
    """Every back end by its name, the reference first.

    Args:
        gates: Those of the model.
        memory: Bytes that the activations of several states at once may take.
    """
    return {
        "loop": LoopScoring(gates),
        "fold": FoldScoring(gates, memory=memory),
        "vmap": VmapScoring(gates, memory=memory),
        "compact": CompactScoring(gates),
    }


def choose_backend(
    scorings: Mapping[str, Scoring],
    population: Tensor,
    call: Call,
    *,
    norms: str = "running",
    forced: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BackendChoice:
    """Run a population with every back end, and choose the fastest of those that agree.

    Args:
        scorings: By name; the first is the reference and cannot fail.
        population: Typical states, bool `(states, nodes)`.
        call: The samples.
        norms: See `Scoring.outputs`.
        forced: Choose this one and measure nothing: what a run has chosen that goes on, or what the
            user wants.
        clock: Tells seconds.

    Raises:
        ArgumentError: There is no back end of the forced name, or the population does not fit.
    """
    if forced is not None:
        if forced not in scorings:
            raise ArgumentError(
                f"there is no back end {forced!r}",
                where="backend",
                remedy=f"Use one of {', '.join(scorings)}.",
            )
        return BackendChoice(forced, {}, {})
    trial = Trial(population, call, norms)
    seconds: dict[str, float] = {}
    dropped: dict[str, str] = {}
    first: tuple[Scoring, list[Any]] | None = None
    for name, scoring in scorings.items():
        run = partial(trial.outputs, scoring)
        try:
            found = run()
            why = "" if first is None else trial.difference(scoring, first[0], found, first[1])
            if not why:
                seconds[name] = min(_seconds(run, call, clock) for _ in range(_RUNS))
        except Exception as error:
            if first is None:
                raise
            why = told(error)
        if why:
            dropped[name] = why
        elif first is None:
            first = scoring, found
    return BackendChoice(min(seconds, key=seconds.__getitem__), seconds, dropped)


def _seconds(run: Callable[[], Any], call: Call, clock: Callable[[], float]) -> float:
    cuda = [t.device for t in call.tensors() if t.is_cuda]
    start = clock()
    run()
    for device in cuda[:1]:
        torch.cuda.synchronize(device)
    return clock() - start
