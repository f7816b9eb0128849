"""A measured time, and what it can decide: no clock tells apart what its noise covers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from energy_model.errors import ArgumentError

RESOLUTION = 0.05
"""Smallest relative difference that is claimed: steady rounds see smaller ones, but one file in two
processes differs by up to 4 %, as memory happens to be laid out."""

Verdict = Literal["met", "exceeded", "undecidable"]


def relative_noise(spread: float, base_spread: float = 0.0) -> float:
    """The relative difference below which a measurement decides nothing.

    Args:
        spread: Interquartile range of the rounds over their median.
        base_spread: The same of what it is a share of, where that was measured too.
    """
    return max(math.hypot(spread, base_spread), RESOLUTION)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one inference took.

    Attributes:
        seconds: Median over the rounds.
        spread: Interquartile range of the rounds over their median, no unit.
        details: What else was noted: threads, batch, runtime, machine.

    Raises:
        ArgumentError: The time is not positive, or the spread negative.
    """

    seconds: float
    spread: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not (0 < self.seconds < float("inf")) or not self.spread >= 0:
            raise ArgumentError(
                f"{self.seconds!r} s with a spread of {self.spread!r} is no measured time",
                where="timing",
                remedy="Measure again.",
            )

    @property
    def noise(self) -> float:
        """The relative difference below which this decides nothing."""
        return relative_noise(self.spread)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object: the arguments that make an equal one."""
        return {"seconds": self.seconds, "spread": self.spread, "details": dict(self.details)}

    def verdict(self, maximum: float, base_spread: float = 0.0) -> Verdict:
        """Whether a limit is met, as far as the noise lets that be said.

        Args:
            maximum: The limit, seconds.
            base_spread: Spread of the measured time that the limit is a share of.
        """
        if abs(self.seconds - maximum) <= relative_noise(self.spread, base_spread) * maximum:
            return "undecidable"
        return "met" if self.seconds < maximum else "exceeded"
