"""A keep-state that is fast enough: predicted in the search, really measured in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from energy_model.errors import PreconditionError
from energy_model.hardware import Hardware
from energy_model.latency import LatencyModel
from energy_model.resolved import ResolvedLimit, limit_on
from passes.graph import Decision, ModelGraph
from passes.methods import latency_fit
from passes.methods.base import Run
from passes.methods.ising.config import Ising
from passes.methods.ising.setting import Setting, multiple_of
from passes.methods.latency_fit import LatencyFit
from passes.structure.costs import LATENCY
from passes.structure.select import Selection, select_smallest


def latency_model(
    graph: ModelGraph,
    hardware: Hardware,
    limits: Sequence[ResolvedLimit],
    config: Ising,
    run: Run,
) -> LatencyModel | None:
    """What predicts the latency of keep-states; `None` if that is not limited.

    Raises:
        PreconditionError: Nothing can be measured.
    """
    if limit_on(limits, LATENCY) is None:
        return None
    if run.latency_model is None:
        raise PreconditionError(
            "a limit on the latency needs a way to measure", where="method 'ising'"
        )
    return run.latency_model(graph, multiple_of(config, hardware))


def fast_enough(
    graph: ModelGraph, setting: Setting, bits: Tensor, scores: Tensor, run: Run
) -> tuple[Tensor, dict[str, Any]]:
    """The state nearest to one whose file meets the limit on the latency.

    A state that is too slow as measured is repaired under a stricter prediction, one that leaves
    much of the limit unused under a looser one; see `LatencyFit`.

    Args:
        graph: The model without gates; only copied.
        setting: The nodes and the budget.
        bits: The state, bool `(nodes,)`, within the budget as predicted.
        scores: How much each node matters, `(nodes,)`.
        run: Measures.

    Returns:
        The state, and how it was found, by `latency`; nothing where the latency is not limited, or
        cannot be measured.

    Raises:
        InfeasibleBudget: The smallest state is too slow as measured.
    """
    repair, groups = setting.repair, setting.groups
    if limit_on(repair.limits, LATENCY) is None or run.latency is None:
        return bits, {}

    def nearest(limits: Sequence[ResolvedLimit]) -> Selection:
        row = repair.under(limits)(bits[None], scores)
        return Selection(setting.layout.state(row[0]), dict(setting.reached(row[0])))

    ranked = setting.layout.by_group(scores)
    smallest = partial(select_smallest, repair.costs, groups, ranked, multiple=repair.multiple)
    measure = latency_fit.of_cut(graph, groups, run.latency)
    found = LatencyFit(nearest, smallest, measure).fit(repair.limits)
    return setting.layout.bits(groups, found.selection.state), {LATENCY: found.details}


def told(details: Mapping[str, Any], limits: Sequence[ResolvedLimit]) -> list[Decision]:
    """What the decisions say of it.

    Args:
        details: Of `fast_enough`.
        limits: The budget.
    """
    limit, found = limit_on(limits, LATENCY), details.get(LATENCY)
    return [] if limit is None or found is None else [latency_fit.told(found, limit)]
