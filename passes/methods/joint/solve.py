"""Masks and codebooks for weights as they are: what one shot writes, and where training ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from passes.graph import ModelGraph
from passes.joint.codebook import Codebook
from passes.joint.fit import fit_codebook
from passes.joint.joint_allocation import joint_allocation
from passes.joint.lloyd import rounded_codebook
from passes.joint.quantizer import read_codebooks
from passes.methods.joint.config import Joint
from passes.methods.joint.energy_rate import EnergyRate
from passes.methods.joint.energy_search import EnergySearch
from passes.methods.joint.rates import ArchiveRate, Layer, Rate
from passes.methods.joint.targets import Targets

FULL = 24
"""Significant bits of a float32."""
_ROUNDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What becomes of every target.

    Attributes:
        masks: What is kept, in the shapes of the weights.
        codebooks: Of every target; `None` where it keeps its type.
        bits: Of every target.
    """

    masks: tuple[Tensor, ...]
    codebooks: tuple[Codebook | None, ...]
    bits: tuple[int, ...]

    def values(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as they are written; new tensors."""
        return [
            written(weight, mask, codebook)
            for weight, mask, codebook in zip(weights, self.masks, self.codebooks, strict=True)
        ]


def written(weight: Tensor, mask: Tensor, codebook: Codebook | None) -> Tensor:
    """A weight under its mask, on its levels; same shape and type."""
    kept = weight.detach().masked_fill(~mask, 0.0)
    return kept if codebook is None else codebook.nearest(kept)


def codebook_of(values: Tensor, bits: int, config: Joint, significand: int) -> Codebook:
    """The best codebook for a weight; zeros are coded by their positions where there are any.

    Args:
        values: The weight, zeros included.
        bits: Of its codes.
        config: The kind of its levels.
        significand: Significant bits of free levels.
    """
    if config.levels == "uniform":
        return fit_codebook(values, bits, reserved_zero=False, kind="uniform")
    dense = config.mode == "quantize" and not bool((values == 0).any())
    found = fit_codebook(values, bits, reserved_zero=not dense)
    return found if significand >= FULL else rounded_codebook(found, significand)


def with_zeros(graph: ModelGraph, config: Joint, significand: int) -> dict[str, Codebook]:
    """New codebooks for trained weights where the present ones have no zero and weights do.

    In a list, a method before this one may have removed weights since they were fitted.

    Args:
        graph: A graph with codebooks attached; read only.
        config: The kind of their levels.
        significand: Significant bits of free levels.
    """
    found = {}
    for name, book in read_codebooks(graph).items():
        weight = graph.weight(graph.by_name[name])
        has_zero = book.reserved_zero or bool((book.levels == 0).any())
        if not has_zero and bool((weight == 0).any()):
            found[name] = codebook_of(weight, book.bits, config, significand)
    return found


def solve(
    graph: ModelGraph,
    targets: Targets,
    config: Joint,
    rate: Rate,
    budget: int,
    significand: int = FULL,
) -> Solution:
    """Choose sparsity and bits together, for the weights as they are; pure.

    Args:
        graph: The model.
        targets: Its weights.
        config: Mode, levels and bounds.
        rate: How bits or energy are counted.
        budget: For all targets together, as the rate counts.
        significand: Significant bits of the levels.

    Raises:
        InfeasibleBudget: The least that must stay does not fit.
    """
    weights = targets.weights(graph)
    layers = [Layer(t.widths, t.least) for t in targets.rows]
    bits = [t.widths[0] if len(t.widths) == 1 else config.start_bits for t in targets.rows]
    masks: list[Tensor]
    if config.mode == "both" and isinstance(rate, EnergyRate):
        search = EnergySearch(weights, layers, replace(rate, unrepaired=1.0, by_price=True), budget)
        best = search.best(bits)
        bits, masks = list(best.bits), list(best.masks)
    elif config.mode == "both" and all(t.quantized for t in targets.rows):
        found = joint_allocation(
            weights,
            budget,
            tuple(config.widths),
            kind=config.levels,
            least=[t.least for t in targets.rows],
            fixed=[t.widths[0] if len(t.widths) == 1 else None for t in targets.rows],
            honest=isinstance(rate, ArchiveRate),
        )
        bits, masks = list(found.bits), list(found.masks)
    else:
        masks = [w != 0 for w in weights]
        if config.mode == "quantize":
            bits = rate.choose(weights, weights, bits, budget, layers)
        else:
            masks = rate.project(weights, bits, budget, layers)
    return solution_of(weights, masks, bits, targets, config, significand)


def solution_of(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    bits: Sequence[int],
    targets: Targets,
    config: Joint,
    significand: int,
) -> Solution:
    """Fit the codebooks that belong to masks and bits."""
    rows = zip(targets.rows, weights, masks, bits, strict=True)
    codebooks = tuple(
        codebook_of(w.detach().masked_fill(~mask, 0.0), b, config, significand)
        if target.quantized
        else None
        for target, w, mask, b in rows
    )
    return Solution(tuple(masks), codebooks, tuple(bits))


def polish(
    weights: list[Tensor], bits: list[int], budget: int, rate: Rate, layers: Sequence[Layer]
) -> tuple[list[Tensor], list[int]]:
    """Alternate bits and masks from where training is, at the final budget.

    Returns:
        Masks and bits.
    """
    masks = rate.project(weights, bits, budget, layers)
    for _ in range(_ROUNDS):
        kept = [w.masked_fill(~m, 0.0) for w, m in zip(weights, masks, strict=True)]
        new = rate.choose(kept, kept, bits, budget, layers)
        if new == bits:
            break
        bits = new
        masks = rate.project(weights, bits, budget, layers)
    return masks, bits
