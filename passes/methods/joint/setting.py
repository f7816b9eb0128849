"""What a run asks of the method `joint`: limits, weights, and how bits are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energy_model.errors import InfeasibleBudget
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit, limit_on
from passes.graph import ModelGraph
from passes.methods.joint.config import Joint
from passes.methods.joint.energy_limit import EnergyLimit, require_hardware, require_served, under
from passes.methods.joint.energy_rate import EnergyRate
from passes.methods.joint.rates import ArchiveRate, NominalRate, Rate
from passes.methods.joint.solve import FULL
from passes.methods.joint.targets import Targets, find_targets

_COMPACT = 9
"""Significant bits of what is no weight, under a limit on the archive."""
# Bits of a weight that nothing limits.
_PLENTY = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """The request, on one model.

    Attributes:
        config: The configuration, as the limits change it.
        limits: The budget in absolute terms.
        targets: The weights.
        energy: What a limit on energy leaves, if there is one.
        overhead: Bytes of an archive that are no weight.
    """

    config: Joint
    limits: tuple[ResolvedLimit, ...]
    targets: Targets
    energy: EnergyLimit | None = None
    overhead: int = 0

    @classmethod
    def of(
        cls,
        graph: ModelGraph,
        config: Joint,
        limits: Sequence[ResolvedLimit],
        hardware: Hardware | None,
        *,
        trained: bool,
        overhead: int = 0,
    ) -> Setting:
        """The setting of a model as it is now.

        Raises:
            ArgumentError: The configuration names layers that are not there.
            PreconditionError: No weight can be compressed.
        """
        adopted = under(config, limits)
        targets = find_targets(graph, adopted, trained=trained)
        limit, energy = limit_on(limits, "energy"), None
        if limit is not None:
            energy = EnergyLimit.of(graph, targets, limit, require_hardware(hardware))
        return cls(adopted, tuple(limits), targets, energy, overhead)

    @property
    def archive(self) -> ResolvedLimit | None:
        """The limit on the archive."""
        return limit_on(self.limits, "archive")

    @property
    def nominal(self) -> int | None:
        """Nominal bits that the targets may take; `None` does not limit them."""
        limit = limit_on(self.limits, "weight_bits")
        return None if limit is None else int(limit.maximum) - self.targets.fixed

    @property
    def honest(self) -> bool:
        """Whether positions and codebooks are priced."""
        given = self.config.honest
        return self.archive is not None if given is None else given

    @property
    def significand(self) -> int:
        """Significant bits of codebooks, biases and norms."""
        if self.config.significand is not None:
            return self.config.significand
        return FULL if self.archive is None else _COMPACT

    @property
    def budget(self) -> int:
        """What the targets may take together, as the rate counts it."""
        if self.energy is not None:
            return self.energy.capacity
        allowed = [self.nominal] if self.nominal is not None and not self.honest else []
        if self.archive is not None:
            allowed.append(max(0, 8 * (int(self.archive.maximum) - self.overhead)))
        elif self.nominal is not None and self.honest:
            allowed.append(self.nominal)
        plenty = _PLENTY * sum(target.site.size for target in self.targets.rows)
        return min(allowed, default=plenty)

    def rate(self) -> Rate:
        """How bits or energy are counted; a new one, without a memory of projections."""
        if self.energy is not None:
            return self.energy_rate()
        by_price = self.config.allocate == "price" and self.config.mode == "both"
        levels, unrepaired = self.config.levels, self.config.unrepaired
        if not self.honest:
            return NominalRate(levels, by_price, unrepaired, self.nominal)
        return ArchiveRate(levels, self.config.structure, self.nominal, unrepaired)

    def energy_rate(self) -> EnergyRate:
        """How energy is counted."""
        assert self.energy is not None
        by_price = self.config.allocate == "price" and self.config.mode == "both"
        sites = tuple(target.site for target in self.targets.rows)
        parts = (sites, self.energy.hardware, by_price, self.config.unrepaired, self.nominal)
        return EnergyRate(*parts)

    def check(self) -> None:
        """Raise where not even the least that must stay fits.

        Raises:
            InfeasibleBudget: It does not.
            UnsupportedBudget: The limits are not met together.
        """
        require_served(self.config, self.limits)
        if self.energy is not None:
            self.energy.check(self.targets, self.energy_rate())
        limit = limit_on(self.limits, "weight_bits")
        if limit is None:
            return
        least = {t.name: t.least * min(t.widths) for t in self.targets.rows}
        tightest = sum(least.values()) + self.targets.fixed
        if tightest > limit.maximum:
            binding = max(least, key=lambda name: least[name])
            raise InfeasibleBudget(
                f"{limit.limit} asks for {limit.maximum:,} bits, but {tightest:,} is the least "
                f"that can be reached; layer {binding!r} needs most of it",
                limit="weight_bits",
                asked=limit.maximum,
                tightest=tightest,
                binding_layer=binding,
                remedy="Raise the limit; mode='both', a smaller min_bits or looser rules lower "
                "the least.",
            )
