"""The page on the speed of dynamic sparse training: a table for every row of the suite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bench.speed.ratio import Outcome, Ratio

_NOTES = (
    "Ratio: median over rounds in which both took turns, with its quartiles; where no target is "
    'given the number is stated. "noisy": the rounds straddle the target and are too far apart to '
    "say. Sizes of tensors are counted. A peak is the rise of the resident memory of a process of "
    "its own from before the network is built; a training with masks takes no less memory than a "
    "dense one, and what is ideal is what a format could take that stores active weights alone."
)
_HEAD = "| what | against | ratio | quartiles | medians | target | met |\n" + "|---" * 7 + "|"


@dataclass(frozen=True, slots=True)
class Part:
    """What one row of the suite found.

    Attributes:
        name: As it is asked for.
        title: For people.
        outcome: Ratios and checks.
    """

    name: str
    title: str
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a ratio without a target has `None` for it and for its verdict."""
        return {
            "name": self.name,
            "ratios": [_plain(ratio) for ratio in self.outcome.ratios],
            "checks": [check.to_dict() for check in self.outcome.checks],
        }

    def __str__(self) -> str:
        lines = [f"## {self.title}", "", _HEAD, *map(_row, self.outcome.ratios)]
        for check in self.outcome.checks:
            lines += ["", f"{check.name}: {'yes' if check.holds else 'NO'}, {check.detail}."]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class DynamicReport:
    """All parts and how they were measured.

    Attributes:
        conditions: One sentence.
        parts: In the order in which they were measured.
    """

    conditions: str
    parts: tuple[Part, ...]

    @property
    def met(self) -> bool:
        """Whether every target is met and every check holds."""
        return all(part.outcome.met for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        parts = [part.to_dict() for part in self.parts]
        return {"conditions": self.conditions, "parts": parts, "met": self.met}

    def markdown(self, command: str) -> str:
        """A page with the command that made it."""
        return f"# Speed of dynamic sparse training\n\n    {command}\n\n{self}\n"

    def __str__(self) -> str:
        return "\n\n".join([self.conditions, *map(str, self.parts), _NOTES])


def _plain(ratio: Ratio) -> dict[str, Any]:
    limited = math.isfinite(ratio.target)
    none = {} if limited else {"target": None, "met": None, "verdict": None}
    return ratio.to_dict() | none


def _row(ratio: Ratio) -> str:
    low, middle, high = ratio.quartiles
    measured, base = (_amount(value, ratio.unit) for value in ratio.medians)
    limited = math.isfinite(ratio.target)
    cells = (
        ratio.name,
        ratio.base,
        f"{middle:.3f}x",
        f"{low:.3f} to {high:.3f}" if len(ratio.pairs) > 1 else "one round",
        f"{measured} / {base}",
        f"at most {ratio.target:g}x" if limited else "stated",
        ratio.verdict if limited else "",
    )
    return f"| {' | '.join(cells)} |"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
