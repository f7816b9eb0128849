"""A limit on energy: what it leaves for the weights that are compressed, and that it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from energy_model.errors import (
    InfeasibleBudget,
    PostconditionError,
    PreconditionError,
    UnsupportedBudget,
)
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from energy_model.unit_prices import PARTS, plain
from passes.analysis.costs import cost_table
from passes.graph import Decision, ModelGraph
from passes.methods.joint.config import Joint
from passes.methods.joint.energy_rate import EnergyRate
from passes.methods.joint.targets import Targets

UNIFORM = Decision(
    "",
    "uniform levels",
    "levels of a codebook are multiplied as whole words: only those of a grid save energy by bits",
    before="free",
    after="uniform",
)


@dataclass(frozen=True, slots=True)
class EnergyLimit:
    """A limit on energy, on a model.

    Attributes:
        limit: In absolute terms.
        hardware: The accelerator.
        fixed: Energy, in the limit's unit, of activations and of all that is no target.
    """

    limit: ResolvedLimit
    hardware: Hardware
    fixed: int | float

    @classmethod
    def of(
        cls, graph: ModelGraph, targets: Targets, limit: ResolvedLimit, hardware: Hardware
    ) -> EnergyLimit:
        """What no choice of masks and bits can change, as the graph is now."""
        names = {target.name for target in targets.rows}
        computed = replace(graph, sites=tuple(site for site in graph.sites if site.computed))
        fixed = cost_table(computed, hardware).total.energy.relaxed
        for site in graph.compressible:
            fixed += site.activation_energy(hardware)
            if site.name not in names:
                kept = int(torch.count_nonzero(graph.weight(site)))
                fixed += site.price(hardware).energy(kept)
        return cls(limit, hardware, plain(fixed))

    @property
    def capacity(self) -> int:
        """What is left for the targets, in 1/256; negative where nothing is."""
        return math.floor((Fraction(self.limit.maximum) - Fraction(self.fixed)) * PARTS)

    def reached(self, parts: int) -> int | float:
        """Energy of the model, with targets that take so much in 1/256."""
        return plain(self.fixed + parts / PARTS)

    def check(self, targets: Targets, rate: EnergyRate) -> None:
        """Raise where not even what must stay fits, at the narrowest widths.

        Raises:
            InfeasibleBudget: It does not.
        """
        parts = [
            int(rate.energy(place, min(target.widths), target.least))
            for place, target in enumerate(targets.rows)
        ]
        if sum(parts) <= self.capacity:
            return
        tightest, limit = self.reached(sum(parts)), self.limit
        own = [
            part / PARTS + target.site.activation_energy(self.hardware)
            for part, target in zip(parts, targets.rows, strict=True)
        ]
        binding = targets.rows[own.index(max(own))].name
        raise InfeasibleBudget(
            f"{limit.limit} asks for {limit.maximum:,} ({limit.share(limit.maximum)} of the "
            f"original), but {tightest:,} ({limit.share(tightest)}) is the least that can be "
            f"reached by zeros and narrow weights; layer {binding!r} needs most of it",
            limit="energy",
            asked=limit.maximum,
            tightest=tightest,
            binding_layer=binding,
            remedy="Raise the limit; what would lower the least: mode='both', a smaller min_bits, "
            "looser rules, and for activations and layers that are left alone (they take "
            f"{limit.share(self.fixed)}) a smaller input or fewer channels.",
        )

    def hold(self, graph: ModelGraph, targets: Targets, rate: EnergyRate) -> None:
        """Project once more if the finished model exceeds the limit, in place.

        Raises:
            PostconditionError: It still does.
        """
        if self._used(graph) > self.limit.maximum:
            weights = targets.weights(graph)
            bits = [_written_bits(graph, t.name, t.widths[0]) for t in targets.rows]
            layers = [t.bounds for t in targets.rows]
            masks = rate.project(weights, bits, self.capacity, layers)
            for weight, mask in zip(weights, masks, strict=True):
                weight.masked_fill_(~mask, 0.0)
        if (used := self._used(graph)) > self.limit.maximum:
            raise PostconditionError(
                f"{self.limit.limit} allows {self.limit.maximum:,}, the model has {used:,}",
                where="method 'joint'",
                remedy="Give more steps before bits are fixed (freeze_bits, ladder).",
            )

    def _used(self, graph: ModelGraph) -> int | float:
        return cost_table(graph, self.hardware).total.energy.relaxed


def under(config: Joint, limits: Sequence[ResolvedLimit]) -> Joint:
    """The configuration as limits change it: uniform levels under one on energy."""
    if config.mode != "prune" and any(limit.key == "energy" for limit in limits):
        return replace(config, levels="uniform")
    if not limits and config.bits is None:
        # Behind methods that have met the whole budget, nothing limits bits.
        return replace(config, start_bits=config.max_bits)
    return config


def require_served(config: Joint, limits: Sequence[ResolvedLimit]) -> None:
    """Raise for limits that the method does not meet together with energy.

    Raises:
        UnsupportedBudget: There is such a limit.
    """
    keys = {limit.key for limit in limits}
    if "energy" not in keys:
        return
    if "archive" in keys:
        raise UnsupportedBudget(
            "one budget of both energy and archive is not met by method 'joint'",
            where="budget",
            remedy="Leave the energy to a method before it: method=['energy', 'joint'].",
        )
    if "weight_bits" in keys and config.mode == "quantize":
        raise UnsupportedBudget(
            "widths alone, mode='quantize', are not chosen under limits on energy and weight_bits "
            "together",
            where="budget",
            remedy="Say Joint(mode='both'), or give one of the two limits.",
        )


def require_hardware(hardware: Hardware | None) -> Hardware:
    """Raise where nothing says what energy costs."""
    if hardware is None:
        raise PreconditionError("a limit on energy needs costs", where="method 'joint'")
    return hardware


def _written_bits(graph: ModelGraph, name: str, otherwise: int) -> int:
    encoding = graph.encodings.get(name)
    return otherwise if encoding is None else encoding.bits
