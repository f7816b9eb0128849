"""How many weights every layer has at first, and which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from energy_model.errors import InfeasibleBudget
from passes.dynamic.start import SparseShape, erdos_renyi, uniform_exact
from passes.dynamic.start_masks import by_magnitude, rescaled, start_masks
from passes.graph import ModelGraph, Site


def shape_of(graph: ModelGraph, site: Site) -> SparseShape:
    """The shape of a site's weight, as laws of density read it."""
    geometry = site.uses[0].shape
    per_group = geometry.in_channels // geometry.groups
    shape = (geometry.out_per_group * geometry.groups, per_group, *geometry.kernel)
    if torch.Size(shape).numel() != site.size:  # other uses see other parts of it
        shape = (site.size, 1)
        return SparseShape(site.name, shape)
    return SparseShape(site.name, shape, groups=geometry.groups)


def start_counts(
    shapes: Sequence[SparseShape], floors: Sequence[int], total: int, law: str
) -> tuple[int, ...]:
    """Active weights of every layer, `total` in all.

    Args:
        shapes: Of the layers.
        floors: Least number of weights of each.
        total: Of all layers.
        law: `"uniform"`, `"er"`, `"erk"` or `"magnitude"`, which has the shares of ERK.

    Raises:
        InfeasibleBudget: The floors come to more than the total.
    """
    most = sum(shape.cells for shape in shapes)
    total = min(total, most)
    if sum(floors) > total:
        raise InfeasibleBudget(
            f"{total:,} weights are asked for, and layers must keep {sum(floors):,}",
            limit="nonzeros",
            asked=total,
            tightest=sum(floors),
            remedy="Raise the budget, or loosen the rules for single layers.",
        )
    held = [floor == shape.cells for floor, shape in zip(floors, shapes, strict=True)]
    while True:
        # Layers below their floor are held there, and the law is asked again for the others.
        left = total - sum(f for f, h in zip(floors, held, strict=True) if h)
        free = [shape for shape, h in zip(shapes, held, strict=True) if not h]
        found = iter(_by_law(free, left, law) if free else ())
        counts = [f if h else next(found) for f, h in zip(floors, held, strict=True)]
        below = [c < f for c, f in zip(counts, floors, strict=True)]
        if not any(below):
            return tuple(counts)
        held = [h or b for h, b in zip(held, below, strict=True)]


def _by_law(shapes: Sequence[SparseShape], total: int, law: str) -> tuple[int, ...]:
    if law == "uniform":
        return uniform_exact(shapes, total)
    return erdos_renyi(shapes, total, kernel=law != "er")


def first_masks(
    graph: ModelGraph,
    sites: Sequence[Site],
    shapes: Sequence[SparseShape],
    counts: Sequence[int],
    *,
    seed: int | None,
) -> dict[str, Tensor]:
    """Which weights are active at first; boolean, flat, by site.

    Args:
        graph: The model.
        sites: The layers.
        shapes: Their shapes.
        counts: Active weights of each.
        seed: Of random positions; `None` takes the largest weights.
    """
    if seed is None:
        values = {s.name: graph.weight(s).reshape(-1).abs() for s in sites}
        return by_magnitude(values, counts, shapes)
    device = {s.name: graph.parameter(s).device for s in sites}
    return {n: m.to(device[n]) for n, m in start_masks(counts, shapes, seed).items()}


def rescale(graph: ModelGraph, site: Site, count: int) -> None:
    """Multiply a weight for the density that it gets, so that outputs keep their variance."""
    if 0 < count < site.size:
        graph.weight(site).mul_(rescaled(1.0, count / site.size))
