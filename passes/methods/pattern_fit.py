"""A pattern meets a layer: its layout, what its units are charged, and how many stay at least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from energy_model.shapes import LayerShape
from passes.graph import Decision, ModelGraph, Site
from passes.projection.ladder import Ladder
from passes.projection.pattern_units import Layout, SingleWeights
from passes.projection.patterns import ColumnGroups, Pattern, describe

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Their weights lie with the outputs first, whatever the call does with them.
_KNOWN = (nn.Linear, nn.MultiheadAttention, nn.RNNBase, *_CONVOLUTIONS)


def layout_of(pattern: Pattern | None, graph: ModelGraph, site: Site) -> Layout:
    """How a pattern cuts a layer's weight, seen as outputs by everything that one output reads.

    Args:
        pattern: The pattern; `None` is single weights.
        graph: The traced model.
        site: The layer.

    Returns:
        The layout; `SingleWeights` with `dense` set where the pattern does not fit.
    """
    rows = site.uses[0].shape.out_channels
    if pattern is None or site.size % rows:
        return SingleWeights(site.size, 1, "" if pattern is None else "it is no matrix of outputs")
    owners = [graph.module.get_submodule(path) for path, _ in site.owners]
    shapes = {use.shape for use in site.uses}
    why = ""
    if not all(isinstance(owner, _KNOWN) for owner in owners):
        kinds = ", ".join(sorted({type(owner).__name__ for owner in owners}))
        why = f"where the outputs lie in a weight of {kinds} is not known"
    elif any(shape.transposed or shape.out_channels != rows for shape in shapes):
        why = "its uses see its weight differently"
    elif isinstance(pattern, ColumnGroups):
        why = _no_product(owners, shapes)
    cols = site.size // rows
    return SingleWeights(rows, cols, why) if why else pattern.fit(rows, cols)


def _no_product(owners: list[nn.Module], shapes: set[LayerShape]) -> str:
    """Why a layer cannot be written as a gather and a batched product; empty if it can."""
    if any(isinstance(owner, nn.RNNBase) for owner in owners):
        return "a recurrent layer is not written as products"
    convolutions = [shape for shape in shapes if not shape.is_linear]
    if any(shape.groups > 1 or set(shape.kernel) != {1} for shape in convolutions):
        return "column groups need a linear layer or a 1 x 1 convolution without groups"
    if any(set(shape.stride) != {1} or set(shape.padding) != {(0, 0)} for shape in convolutions):
        return "column groups need a 1 x 1 convolution of stride 1 without padding"
    return ""


def fit_decisions(graph: ModelGraph, pattern: Pattern, name: str) -> list[Decision]:
    """Which layers get a pattern, and which stay dense and why."""
    decisions = []
    for site in graph.compressible:
        layout = layout_of(pattern, graph, site)
        if isinstance(layout, SingleWeights):
            decisions.append(Decision(site.name, f"left dense by pattern {name}", layout.dense))
        else:
            decisions.append(Decision(site.name, f"pattern {name}", describe(layout)))
    return decisions


def unit_charges(layout: Layout, weights: Ladder) -> list[tuple[int, tuple[int, ...]]]:
    """What the units of a layer are charged: the sum over their weights.

    Args:
        layout: The units.
        weights: What the single weights are charged, by rank.

    Returns:
        `(end, charges)` pairs with ascending ends, for `build_ladder`.
    """
    result, unit, weight = [], 0, 0
    for units, each in layout.runs:
        cuts = {units}
        for step in weights.steps:
            whole, part = divmod(step.end - weight, each)
            cuts |= {whole, whole + (part > 0)}
        done = 0
        for cut in sorted(cut for cut in cuts if 0 < cut <= units):
            start = weight + done * each
            pair = zip(weights.used(start + each), weights.used(start), strict=True)
            result.append((unit + cut, tuple(high - low for high, low in pair)))
            done = cut
        unit, weight = unit + units, weight + units * each
    return result


def at_least(layout: Layout, weight: Tensor, least: int) -> int:
    """Units to keep so that `least` nonzero weights stay, or all that there are.

    Units may hold weights that are zero already, so that counting their weights is not enough.
    """
    low, high = layout.units_of(least), layout.units
    if layout.unit_weights == 1 or least <= low:
        return low  # every unit that is kept holds a nonzero weight
    wanted = min(least, int(torch.count_nonzero(weight)))

    def enough(units: int) -> bool:
        kept = layout.mask(weight, units) & (weight.detach() != 0)
        return int(torch.count_nonzero(kept)) >= wanted

    if enough(low):
        return low
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
