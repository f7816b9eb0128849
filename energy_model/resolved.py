"""A limit once its base is known: an absolute number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energy_model.budget import Limit
from energy_model.units import format_seconds


@dataclass(frozen=True, slots=True)
class ResolvedLimit:
    """A limit of the budget in absolute terms.

    Attributes:
        limit: What was asked.
        base: The value of the original dense model, in the unit of the limit.
        maximum: What the finished model may reach.
        base_spread: Of a share of a measured base, the spread of the base's rounds over their
            median; 0 for all other limits.
    """

    limit: Limit
    base: int | float
    maximum: int | float
    base_spread: float = 0.0

    @property
    def key(self) -> str:
        """The limit's key, e.g. `"energy"`."""
        return self.limit.key

    def amount(self, value: float) -> str:
        """`value` in the unit of the limit, for people."""
        return format_seconds(value) if self.key == "latency" else f"{value:,}"

    def share(self, value: float) -> str:
        """`value` as a percentage of the base, for people."""
        return f"{100 * value / self.base:.2f} %" if self.base else "n/a"


def limit_on(limits: Sequence[ResolvedLimit], key: str) -> ResolvedLimit | None:
    """The limit of a key, if there is one."""
    return next((limit for limit in limits if limit.key == key), None)
