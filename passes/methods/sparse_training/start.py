"""How many weights every layer has at first, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from passes.dynamic.event import strength
from passes.dynamic.start import SparseShape, uniform
from passes.dynamic.start_masks import by_magnitude, from_masks, rescaled, start_masks
from passes.graph import ModelGraph, Site
from passes.methods.sparse_training.config import SparseTraining
from passes.storage.tensors import load_tensors

# Of a cell, the leading dimensions of a convolution's weight (outputs, inputs, *kernel).
_LEADING = {"filters": 1, "kernels": 2, "rows": 3}
_WEIGHTS = "weights.safetensors"


def shape_of(graph: ModelGraph, site: Site, granularity: str = "weights") -> SparseShape:
    """The shape of a site's weight, as laws of density read it, and its cells.

    Args:
        graph: The traced model.
        site: The site.
        granularity: See `SparseTraining`; linear layers always have single weights.
    """
    geometry = site.uses[0].shape
    per_group = geometry.in_channels // geometry.groups
    kernel = () if geometry.is_linear else geometry.kernel
    shape = (geometry.out_channels, per_group, *kernel)
    if math.prod(shape) != site.size:  # other uses see other parts of it
        return SparseShape(site.name, (site.size, 1))
    block = 1
    if granularity != "weights" and not geometry.is_linear:
        # A transposed weight is (inputs, outputs per group, *kernel): cells are stretches of that.
        own = tuple(graph.weight(site).shape)
        block = math.prod(own[_LEADING[granularity] :])
    return SparseShape(site.name, shape, block, geometry.groups)


def required_counts(
    config: SparseTraining,
    sites: Sequence[Site],
    shapes: Sequence[SparseShape],
    floors: Sequence[int],
) -> tuple[int | None, ...]:
    """Cells that layers must have at first; `None` where the law decides."""
    counts: list[int | None] = []
    for site, shape, floor in zip(sites, shapes, floors, strict=True):
        linear = site.uses[0].shape.is_linear
        sparsity = config.linear_sparsity if linear else config.conv_sparsity
        if sparsity is None:
            counts.append(None)
        else:
            counts.append(max(floor, 1, *uniform([shape], max(1 - sparsity, 1e-12))))
    return tuple(counts)


def first_masks(
    graph: ModelGraph,
    sites: Sequence[Site],
    shapes: Sequence[SparseShape],
    counts: Sequence[int],
    *,
    seed: int | None,
) -> dict[str, Tensor]:
    """Which cells are active at first; boolean, flat, by site.

    Args:
        graph: The model.
        sites: The layers.
        shapes: Their shapes.
        counts: Active cells of each.
        seed: Of random positions; `None` takes the largest.
    """
    if seed is None:
        rows = {s.name: (h.cells, h.block) for s, h in zip(sites, shapes, strict=True)}
        values = {s.name: strength(graph.weight(s).reshape(rows[s.name])) for s in sites}
        return by_magnitude(values, counts, shapes)
    device = {s.name: graph.parameter(s).device for s in sites}
    return {n: m.to(device[n]) for n, m in start_masks(counts, shapes, seed).items()}


def transferred_masks(
    folder: str, graph: ModelGraph, sites: Sequence[Site], shapes: Sequence[SparseShape]
) -> dict[str, Tensor]:
    """The zeros of an earlier result as masks; boolean, flat, by site.

    Args:
        folder: Where the result was saved.
        graph: The model.
        sites: The layers.
        shapes: Their shapes.

    Raises:
        StorageError: There is no such result.
        PreconditionError: It is of another model, or was made smaller.
    """
    tensors = load_tensors(Path(folder) / _WEIGHTS)
    masks = {}
    for site, shape in zip(sites, shapes, strict=True):
        names = [f"{path}.{name}" if path else name for path, name in site.owners]
        found = next((tensors[name] for name in names if name in tensors), None)
        if found is None or found.shape != graph.parameter(site).shape:
            had = "no such weight" if found is None else f"a weight of {tuple(found.shape)}"
            raise PreconditionError(
                f"{folder} has {had}, not of {tuple(graph.parameter(site).shape)}",
                where=f"SparseTraining.masks, layer {site.name!r}",
                remedy="Take a result of the same model; make it with keep_shapes=True.",
            )
        part = found.reshape(-1)[site.start : site.start + site.size]
        rows = part.reshape(shape.cells, shape.block) != 0
        masks[site.name] = rows.any(dim=1).to(graph.parameter(site).device)
    return from_masks(masks, shapes)


def output_units(graph: ModelGraph, site: Site, shape: SparseShape) -> Tensor | None:
    """The output channel or neuron of every cell, int64; `None` where cells span several."""
    geometry = site.uses[0].shape
    if math.prod(shape.shape) != site.size or len(shape.shape) < 2 or shape.shape[1:] == (1,):
        return None
    own = tuple(graph.weight(site).shape)
    taps = math.prod(own[2:])
    if shape.block > (taps if geometry.transposed else math.prod(own[1:])):
        return None
    flat = torch.arange(0, site.size, shape.block)
    if not geometry.transposed:
        return flat // math.prod(own[1:])
    inputs, outputs = flat // (own[1] * taps), flat // taps % own[1]
    return inputs // (own[0] // geometry.groups) * own[1] + outputs


def rescale(graph: ModelGraph, site: Site, density: float) -> None:
    """Multiply a weight for the density that it gets, so that outputs keep their variance."""
    if 0 < density < 1:
        graph.weight(site).mul_(rescaled(1.0, density))
