"""How large the bank of every layer is, under a limit on parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from energy_model.errors import InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.dynamic.allocation import block_shares
from passes.dynamic.start import SparseShape, start_counts
from passes.graph import LayerRule, ModelGraph, Site
from passes.methods.tied.config import TiedWeights
from passes.rewrite.tied_weights import why_not_tied

_KERNEL = 2  # leading dimensions of a convolution's weight before those of a kernel


@dataclass(frozen=True, slots=True)
class BankSize:
    """The bank of one layer.

    Attributes:
        site: The layer.
        shape: Its weight as cells of as many parameters as an entry has.
        leading: Dimensions of the weight that cells are counted along; `None` is all.
        buckets: Entries; as many as cells where nothing is tied.
    """

    site: Site
    shape: SparseShape
    leading: int | None
    buckets: int

    @property
    def parameters(self) -> int:
        """Of the bank."""
        return self.buckets * self.shape.block

    @property
    def ties(self) -> bool:
        """Whether the bank is smaller than the weight."""
        return self.buckets < self.shape.cells


@dataclass(frozen=True, slots=True)
class BankSizes:
    """The banks of all layers.

    Attributes:
        banks: Of the layers that can be tied.
        alone: Why the others stay as they are, by name.
        fixed: Parameters of the model that are in no bank.
    """

    banks: tuple[BankSize, ...]
    alone: dict[str, str]
    fixed: int

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.fixed + sum(bank.parameters for bank in self.banks)


def bank_sizes(
    graph: ModelGraph, limits: Sequence[ResolvedLimit], config: TiedWeights
) -> BankSizes:
    """The same share of every layer, as large as the limits allow.

    Args:
        graph: The traced model; read only.
        limits: On parameters, in absolute terms; none leaves everything as it is.
        config: What an entry is, and the least number of them.

    Raises:
        InfeasibleBudget: Banks of the least sizes, and what is in no bank, exceed a limit.
        PreconditionError: No layer can be tied, or a weight is not finite.
    """
    alone = {site.name: why for site in graph.sites if (why := _why_alone(graph, site))}
    sites = [site for site in graph.sites if site.name not in alone]
    if not sites:
        told = "; ".join(f"{name}: {why}" for name, why in alone.items())
        raise PreconditionError(
            f"no weight can be tied ({told:.300})",
            where=type(graph.module).__name__,
            remedy="Loosen the rules for single layers, or choose another method.",
        )
    _require_finite(graph, sites)
    leading = [_leading(graph, site, config) for site in sites]
    parts = list(zip(sites, leading, strict=True))
    shapes = [_shape_of(graph, site, dims) for site, dims in parts]
    floors = [
        _floor(graph, site, s, config.min_per_layer) for site, s in zip(sites, shapes, strict=True)
    ]
    parameters = sum(p.numel() for p in graph.module.parameters())
    fixed = parameters - sum(shape.parameters for shape in shapes)
    _require_room(shapes, floors, fixed, limits)
    total = min([parameters, *(limit.maximum for limit in limits)]) - fixed
    counts = _counts(shapes, floors, math.floor(total))
    found = zip(parts, shapes, counts, strict=True)
    banks = tuple(BankSize(site, shape, dims, count) for (site, dims), shape, count in found)
    return BankSizes(banks, alone, fixed)


def _why_alone(graph: ModelGraph, site: Site) -> str:
    if graph.rules.get(site.name, LayerRule()).min_density >= 1:
        return "a rule leaves the layer alone"
    return why_not_tied(graph, site)


def _require_finite(graph: ModelGraph, sites: Sequence[Site]) -> None:
    for site in sites:
        wrong = int((~torch.isfinite(graph.weight(site))).sum())
        if wrong:
            raise PreconditionError(
                f"{wrong} weights are not finite",
                where=site.name,
                remedy="Repair the weights before compressing.",
            )


def _leading(graph: ModelGraph, site: Site, config: TiedWeights) -> int | None:
    return _KERNEL if config.kernels and graph.parameter(site).dim() > _KERNEL else None


def _shape_of(graph: ModelGraph, site: Site, leading: int | None) -> SparseShape:
    shape = graph.parameter(site).shape
    block = 1 if leading is None else math.prod(shape[leading:])
    return SparseShape(site.name, (site.size // block, block), block=block)


def _floor(graph: ModelGraph, site: Site, shape: SparseShape, least: int) -> int:
    """Entries that a layer has at least: by the method, and by the rule for this layer."""
    ruled = graph.rules.get(site.name, LayerRule()).least(site.size)
    return min(shape.cells, max(least, -(-ruled // shape.block)))


def _require_room(
    shapes: Sequence[SparseShape],
    floors: Sequence[int],
    fixed: int,
    limits: Sequence[ResolvedLimit],
) -> None:
    own = [floor * shape.block for floor, shape in zip(floors, shapes, strict=True)]
    tightest = fixed + sum(own)
    for limit in limits:
        if tightest > limit.maximum:
            raise InfeasibleBudget(
                f"{limit.limit} asks for {limit.maximum:,} parameters, but {tightest:,} "
                f"({limit.share(tightest)}) is the least that can be reached: {fixed:,} are in no "
                "bank",
                limit=limit.key,
                asked=limit.maximum,
                tightest=tightest,
                binding_layer=shapes[own.index(max(own))].name,
                remedy="Raise the limit, or loosen min_per_layer and the rules for single layers.",
            )


def _counts(shapes: Sequence[SparseShape], floors: Sequence[int], total: int) -> list[int]:
    """Entries of every bank: the same share of all, or else their floor; `total` parameters."""
    return _filled(shapes, start_counts(shapes, floors, total, "uniform"), total)


def _filled(shapes: Sequence[SparseShape], counts: Sequence[int], total: int) -> list[int]:
    """What larger entries leave over goes to smaller ones, also to those at their floor."""
    blocks = [shape.block for shape in shapes]
    left = total - sum(count * block for count, block in zip(counts, blocks, strict=True))
    room = [shape.cells - count for shape, count in zip(shapes, counts, strict=True)]
    more, _ = block_shares(left, [shape.parameters for shape in shapes], room, blocks)
    return [count + extra for count, extra in zip(counts, more, strict=True)]
