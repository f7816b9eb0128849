"""A limit on the bytes of the file: how many weights it allows, and a trim to the byte."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from energy_model.budget import Limit
from energy_model.errors import InfeasibleBudget, PostconditionError, PreconditionError
from energy_model.resolved import ResolvedLimit, limit_on
from passes.dynamic.drop import smallest_of_all
from passes.graph import Decision, ModelGraph
from passes.methods.sparse_training.budget import Allowed

Measure = Callable[[ModelGraph], int]
Place = Callable[[Sequence[int]], Mapping[str, Tensor]]
# Trials of how many weights fit. Bytes are close to linear in them, so that few are needed.
_TRIALS = 8
# Share of the bytes that is left free, for positions that are less even after rewiring.
_SPARE = 0.002
# What may be left unused of it: every trial writes a file.
_NEAR = 0.01
# About what a weight takes in the file: four bytes, and its position.
_BYTES = 5


def by_count(limits: Sequence[ResolvedLimit], most: int | None) -> tuple[ResolvedLimit, ...]:
    """The limits, with one on nonzeros in place of that on the size.

    Args:
        limits: The budget.
        most: Weights that the size allows.

    Raises:
        PreconditionError: There is a limit on the size, and nobody has counted what it allows.
    """
    if limit_on(limits, "size") is None:
        return tuple(limits)
    if most is None:
        raise PreconditionError(
            "a limit on the size needs a way to write files", where="method 'dsr_plus'"
        )
    others = [limit for limit in limits if limit.key != "size"]
    counts = [limit for limit in others if limit.key == "nonzeros"]
    if any(limit.maximum <= most for limit in counts):
        return tuple(others)
    count = ResolvedLimit(Limit("nonzeros", Fraction(most), "weight"), 0, most)
    return (*(limit for limit in others if limit not in counts), count)


def affordable(
    graph: ModelGraph, budget: Allowed, limit: ResolvedLimit, place: Place, measure: Measure
) -> tuple[int, int]:
    """How many weights a limit on the size allows, by trials.

    Args:
        graph: The traced model; only copied.
        budget: With all weights allowed.
        limit: That on the size.
        place: Function of the cells of every layer: masks, as in the first step of the training.
        measure: Bytes of the file of a finished model.

    Returns:
        Weights, and the bytes of the file that has so many.

    Raises:
        InfeasibleBudget: It is too little for what layers must have.
    """
    allowed = int(limit.maximum * (1 - _SPARE))

    def written(total: int) -> int:
        return measure(_masked(graph, budget, place(budget.split(total))))

    high = sum(shape.parameters for shape in budget.shapes)
    dense = measure(copy.deepcopy(graph))
    if dense <= limit.maximum:
        return high, dense
    low = budget.least
    least = written(low)
    if least > allowed:
        raise InfeasibleBudget(
            f"{limit.limit} allows {limit.maximum:,} bytes, and a file with the {low:,} weights "
            f"that layers must have takes {least:,}",
            limit="size",
            asked=limit.maximum,
            tightest=int(least / (1 - _SPARE)) + 1,
            remedy="Raise the limit, or remove channels first: biases and norms stay.",
        )
    slope: float = _BYTES
    for _ in range(_TRIALS):
        middle = min(max(low + int((allowed - least) / slope), low + 1), high - 1)
        if middle <= low:
            break
        found = written(middle)
        slope = max(1e-3, (found - least) / (middle - low)) if found != least else _BYTES
        if found > allowed:
            high = middle
        else:
            low, least = middle, found
        if high - low <= 1 or allowed - least < _NEAR * allowed:
            break
    return low, least


def _masked(graph: ModelGraph, budget: Allowed, masks: Mapping[str, Tensor]) -> ModelGraph:
    graph = copy.deepcopy(graph)
    remove_inactive(graph, budget, masks)
    return graph


def remove_inactive(graph: ModelGraph, budget: Allowed, masks: Mapping[str, Tensor]) -> None:
    """Zero all weights outside masks.

    Args:
        graph: Its weights change.
        budget: For the cells.
        masks: Active cells by name of the site, boolean, flat.
    """
    for site, shape in zip(budget.sites, budget.shapes, strict=True):
        weight = graph.weight(site)
        keep = masks[site.name].repeat_interleave(shape.block).reshape(weight.shape)
        weight.masked_fill_(~keep, 0)


def trim(graph: ModelGraph, budget: Allowed, limit: ResolvedLimit, measure: Measure) -> None:
    """Zero the smallest weights of a finished model until its file fits; none if it does.

    Args:
        graph: The model, its masks written into the weights.
        budget: For the weights that layers must keep.
        limit: That on the size.
        measure: Bytes of the file of a finished model.

    Raises:
        PostconditionError: It does not fit with all that may go gone.
    """
    removed = 0
    while (over := measure(graph) - limit.maximum) > 0:
        weights = [graph.weight(site).reshape(-1) for site in budget.sites]
        active = [weight != 0 for weight in weights]
        floors = [n * shape.block for n, shape in zip(budget.floors, budget.shapes, strict=True)]
        # Gaps that grow longer give a little back: a few more than the bytes ask for.
        count = int(over) // (_BYTES - 1) + 2
        gone = smallest_of_all(
            [weight.abs() for weight in weights],
            active,
            count,
            floors,
            names=[site.name for site in budget.sites],
        )
        for site, drop in zip(budget.sites, gone, strict=True):
            weight = graph.weight(site)
            weight.masked_fill_(drop.reshape(weight.shape), 0)
        now = sum(int(torch.count_nonzero(drop)) for drop in gone)
        if not now:
            raise PostconditionError(
                f"{limit.limit} allows {limit.maximum:,} bytes, and the file has {over:,} more",
                where="method 'dsr_plus'",
                remedy="Raise the limit.",
            )
        removed += now
    if removed:
        graph.decisions.append(Decision("", f"{removed} weights removed", f"for {limit.limit}"))
