"""What a speed benchmark found: ratios with their targets, and checks that hold or do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.measurement import NOISE_LIMIT

Verdict = Literal["yes", "no", "noisy"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One quantity over another, in rounds that measured both.

    Attributes:
        name: What was measured.
        base: What it is divided by.
        target: The ratio is to be at most this.
        pairs: `(measured, base)` of every round, at least one; all in `unit`.
        unit: `"s"` or `"bytes"`.
    """

    name: str
    base: str
    target: float
    pairs: tuple[tuple[float, float], ...]
    unit: Literal["s", "bytes"] = "s"

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the rounds' ratios."""
        low, middle, high = np.quantile([a / b for a, b in self.pairs], [0.25, 0.5, 0.75])
        return float(low), float(middle), float(high)

    @property
    def median(self) -> float:
        """Median of the rounds' ratios: the result."""
        return self.quartiles[1]

    @property
    def least(self) -> float:
        """Smallest measured value over the smallest base: what other processes disturb least."""
        measured, base = zip(*self.pairs, strict=True)
        return float(min(measured) / min(base))

    @property
    def medians(self) -> tuple[float, float]:
        """Median of the measured values and of the bases, in `unit`."""
        measured, base = np.median(np.asarray(self.pairs), axis=0)
        return float(measured), float(base)

    @property
    def met(self) -> bool:
        """Whether the median is at most the target."""
        return self.median <= self.target

    @property
    def verdict(self) -> Verdict:
        """Whether the target is met; "noisy" when the rounds are too far apart to say.

        Rounds that all lie on one side of the target need not agree with each other.
        """
        low, middle, high = self.quartiles
        if low <= self.target < high and (high - low) / middle > NOISE_LIMIT:
            return "noisy"
        return "yes" if self.met else "no"

    def to_dict(self) -> dict[str, Any]:
        """The fields and what follows from them, as plain values."""
        low, middle, high = self.quartiles
        return {
            "name": self.name,
            "base": self.base,
            "unit": self.unit,
            "ratio": middle,
            "quartiles": [low, high],
            "least": self.least,
            "target": self.target,
            "met": self.met,
            "verdict": self.verdict,
            "pairs": [list(pair) for pair in self.pairs],
        }


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold whatever the time it takes.

    Attributes:
        name: What is claimed.
        holds: Whether it does.
        detail: The numbers behind it.
    """

    name: str
    holds: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return {"name": self.name, "holds": self.holds, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one benchmark found, or several together.

    Attributes:
        ratios: In the order in which they are shown.
        checks: Likewise.
    """

    ratios: tuple[Ratio, ...] = ()
    checks: tuple[Check, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.ratios + other.ratios, self.checks + other.checks)

    @property
    def met(self) -> bool:
        """Whether every target is met and every check holds."""
        return all(r.met for r in self.ratios) and all(c.holds for c in self.checks)
