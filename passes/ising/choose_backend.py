"""Which way of running candidates is the fastest here: measured once, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.inputs import Call
from passes.ising.compact_scoring import CompactScoring
from passes.ising.fold_scoring import FoldScoring
from passes.ising.loop_scoring import LoopScoring
from passes.ising.memory_cap import MEMORY
from passes.ising.scoring import Scoring
from passes.ising.vmap_scoring import VmapScoring
from passes.rewrite.live_gates import LiveGates

# The first is the reference of the others.
BACKENDS = ("loop", "fold", "vmap", "compact")
# Largest difference from the reference, as a share of its largest output. Norms that divide by the
# spread of a few samples make rounding larger.
_TOLERANCE = {"running": 1e-4, "batch": 1e-3}
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
    reference: list[Any] | None = None
    seconds: dict[str, float] = {}
    dropped: dict[str, str] = {}
    for name, scoring in scorings.items():
        run = partial(scoring.outputs, population, call, norms)
        try:
            found = run()
            why = "" if reference is None else _difference_told(found, reference, call, norms)
            if not why:
                seconds[name] = min(_seconds(run, call, clock) for _ in range(_RUNS))
        except Exception as error:
            if reference is None:
                raise
            why = _told(error)
        if why:
            dropped[name] = why
        elif reference is None:
            reference = found
    return BackendChoice(min(seconds, key=seconds.__getitem__), seconds, dropped)


def why_not(
    scoring: Scoring, reference: Scoring, population: Tensor, call: Call, *, norms: str = "running"
) -> str:
    """Why a back end cannot be used: how far it is from the reference, or its error; else empty.

    Args:
        scoring: The back end.
        reference: One that computes what is to be computed.
        population: Typical states, bool `(states, nodes)`.
        call: The samples.
        norms: See `Scoring.outputs`.
    """
    expected = reference.outputs(population, call, norms)
    try:
        found = scoring.outputs(population, call, norms)
    except Exception as error:
        return _told(error)
    return _difference_told(found, expected, call, norms)


def _difference_told(found: Any, expected: Any, call: Call, norms: str) -> str:
    error = relative_difference(found, expected)
    if error <= _tolerance(call, norms):
        return ""
    return f"differs from the reference by {error:.1e} of its largest output"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def relative_difference(found: Any, expected: Any) -> float:
    """The largest difference of any element, as a share of the largest of its tensor.

    Elements that are equal, both NaN too, do not differ; where one is not finite they differ by
    infinity, and so do outputs of another structure.
    """
    mine, theirs = list(_tensors(found)), list(_tensors(expected))
    if [t.shape for t in mine] != [t.shape for t in theirs]:
        return float("inf")
    return max(map(_difference, mine, theirs), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    a, b = found.detach().double(), expected.detach().double()
    differ = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(differ.any()):
        return 0.0
    largest = b[b.isfinite()].abs().max() if bool(b.isfinite().any()) else b.new_ones(())
    error = float((a - b)[differ].abs().max() / largest)
    return error if error == error else float("inf")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _tolerance(call: Call, norms: str) -> float:
    """What rounding may differ by: half precision and TensorFloat-32 know fewer digits."""
    types = {t.dtype for t in call.tensors() if t.is_floating_point()}
    least = max((torch.finfo(dtype).eps for dtype in types), default=0.0)
    if any(t.is_cuda for t in call.tensors()):
        least = max(least, torch.finfo(torch.float16).eps)
    return max(_TOLERANCE[norms], 8 * least)


def _seconds(run: Callable[[], Any], call: Call, clock: Callable[[], float]) -> float:
    cuda = [t.device for t in call.tensors() if t.is_cuda]
    start = clock()
    run()
    for device in cuda[:1]:
        torch.cuda.synchronize(device)
    return clock() - start
