"""Channel structure: finding the groups against tracing, and shrinking against a second."""

from __future__ import annotations

import statistics
import time
from functools import partial

from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.rounds import Settings, clocked, interleave, over_first
from bench.speed.subjects import Subject
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.structure.state import random_state
from passes.tracing.trace import trace

GROUPS_TARGET = 2.0
SHRINK_SECONDS = 1.0


def measure_groups(subject: Subject, settings: Settings) -> Outcome:
    """Time `channel_groups` of a traced model over tracing it.

    Args:
        subject: The model.
        settings: How to measure.
    """
    model, example = subject.model(), subject.example()
    call = as_call(model, example)
    graph = trace(model, call)
    turns = [clocked(partial(trace, model, call)), clocked(partial(channel_groups, graph))]
    interleave(turns, 1)  # the first trace imports what it needs
    rounds = interleave(turns, settings.light_rounds)
    name = f"channel groups of {subject.name}"
    return Outcome((Ratio(name, "tracing it", GROUPS_TARGET, over_first(rounds, 1)),))


def measure_shrink(subject: Subject, settings: Settings) -> Outcome:
    """Time the removal of half the channels from a copy that is traced already.

    Args:
        subject: The model.
        settings: How to measure.
    """
    seconds = []
    for seed in range(settings.rounds):
        graph = _graph(subject)
        groups = channel_groups(graph)
        state = random_state(groups, seed)
        start = time.perf_counter()
        shrink(graph, groups, state)
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    detail = f"median of {len(seconds)}: {middle:.3f} s, longest {max(seconds):.3f} s"
    name = f"removing half the channels of {subject.name} takes at most {SHRINK_SECONDS:g} s"
    return Outcome(checks=(Check(name, middle <= SHRINK_SECONDS, detail),))


def _graph(subject: Subject) -> ModelGraph:
    model = subject.model()
    return trace(model, as_call(model, subject.example()))
