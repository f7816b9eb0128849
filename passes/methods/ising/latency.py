"""A keep-state that is fast enough: predicted in the search, really measured in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from energy_model.hardware import Hardware
from energy_model.latency import LatencyModel
from energy_model.resolved import ResolvedLimit, limit_on
from passes.graph import Decision, ModelGraph
from passes.methods import latency_fit
from passes.methods.base import Run
from passes.methods.ising.config import Ising
from passes.methods.ising.setting import Setting, everything, multiple_of
from passes.methods.latency_fit import LatencyFit, Timed
from passes.structure.costs import LATENCY
from passes.structure.select import Selection, select_smallest

# Sums of the same predictions differ by less than this share.
_ROUNDING = 1e-9


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


def reachable(graph: ModelGraph, setting: Setting, run: Run) -> Setting:
    """The setting of a search that states can meet as predicted, if one does as measured.

    What is predicted of the smallest state decides nothing: its file does. Where that is fast
    enough, and was predicted not to be, the limit of the search is what is predicted of the largest
    state that was measured to meet the limit itself.

    Args:
        graph: The model; only copied.
        setting: The nodes and the budget.
        run: Measures.

    Raises:
        InfeasibleBudget: The smallest state is too slow as measured.
    """
    repair = setting.repair
    limit = limit_on(setting.limits, LATENCY)
    if limit is None or run.latency is None or not setting.layout.nodes:
        return setting
    alike = torch.ones(setting.layout.nodes, dtype=torch.float64)
    least = _smallest(setting, alike).reached[LATENCY]
    if least <= limit.maximum:
        return setting
    found = _fit(graph, setting, everything(setting.layout), alike, run)
    # As small differences are predicted badly, the smallest state may not be the fastest one.
    predicted = max(least, found.selection.reached[LATENCY]) * (1 + _ROUNDING)
    limits = [replace(x, maximum=predicted) if x is limit else x for x in setting.limits]
    return replace(setting, repair=repair.under(limits))


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
    if limit_on(setting.limits, LATENCY) is None or run.latency is None:
        return bits, {}
    found = _fit(graph, setting, bits, scores, run)
    return setting.layout.bits(setting.groups, found.selection.state), {LATENCY: found.details}


def _fit(graph: ModelGraph, setting: Setting, bits: Tensor, scores: Tensor, run: Run) -> Timed:
    def nearest(limits: Sequence[ResolvedLimit]) -> Selection:
        row = setting.repair.under(limits)(bits[None], scores)[0]
        return Selection(setting.layout.state(row), dict(setting.reached(row)))

    assert run.latency is not None
    measure = latency_fit.of_cut(graph, setting.groups, run.latency)
    fit = LatencyFit(nearest, partial(_smallest, setting, scores), measure)
    return fit.fit(setting.limits)


def _smallest(setting: Setting, scores: Tensor) -> Selection:
    repair, ranked = setting.repair, setting.layout.by_group(scores)
    return select_smallest(repair.costs, setting.groups, ranked, multiple=repair.multiple)


def told(details: Mapping[str, Any], limits: Sequence[ResolvedLimit]) -> list[Decision]:
    """What the decisions say of it.

    Args:
        details: Of `fast_enough`.
        limits: The budget.
    """
    limit, found = limit_on(limits, LATENCY), details.get(LATENCY)
    return [] if limit is None or found is None else [latency_fit.told(found, limit)]
