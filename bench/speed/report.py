"""The speed report: a Markdown table that also reads well on a terminal, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.speed.ratio import Outcome, Ratio

_HEAD = ("what", "against", "ratio", "quartiles", "least", "medians", "target", "met")
_NOTES = (
    "Ratio: median over rounds in which both took turns, with its quartiles. Least: shortest "
    "measured time over shortest base. Medians: of what was measured and of what it is divided by. "
    '"noisy": the rounds straddle the target and are too far apart to say; measure again on a '
    "quieter machine.",
    "Memory is the rise of the process's peak resident memory (VmHWM) during one projection, in a "
    "process of its own; it includes the masks. An import is timed inside a fresh process.",
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what the numbers were found.

    Attributes:
        machine: Model of the CPU and number of cores.
        torch: Version.
        threads: Threads inside a torch operator.
        rounds: Rounds of the projection and of `compress`.
        light_rounds: Rounds of `analyze` and of the import.
        load: Load average of the last minute, before and after.
    """

    machine: str
    torch: str
    threads: int
    rounds: int
    light_rounds: int
    load: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"{self.machine}; torch {self.torch}, {self.threads} threads; {self.rounds} "
            f"interleaved rounds ({self.light_rounds} of analyze and import, 1 of memory); load "
            f"{self.load[0]:.1f} before, {self.load[1]:.1f} after."
        )


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Ratios, checks, and the conditions under which they were found."""

    outcome: Outcome
    conditions: Conditions

    @property
    def met(self) -> bool:
        """Whether every target is met and every check holds."""
        return self.outcome.met

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the pairs of every round are among them."""
        return {
            "conditions": asdict(self.conditions) | {"load": list(self.conditions.load)},
            "ratios": [ratio.to_dict() for ratio in self.outcome.ratios],
            "checks": [check.to_dict() for check in self.outcome.checks],
            "met": self.met,
        }

    def markdown(self, command: str) -> str:
        """A page with the command that made it.

        Args:
            command: As typed into a shell.
        """
        return f"# Speed\n\n    {command}\n\n{self}\n"

    def __str__(self) -> str:
        parts = [str(self.conditions)]
        if self.outcome.ratios:
            parts.append(_table(_HEAD, [_row(ratio) for ratio in self.outcome.ratios]))
        if self.outcome.checks:
            rows = [(c.name, c.detail, _yes(c.holds)) for c in self.outcome.checks]
            parts.append(_table(("check", "found", "holds"), rows))
        return "\n\n".join([*parts, *_NOTES])


def _row(ratio: Ratio) -> tuple[str, ...]:
    low, middle, high = ratio.quartiles
    measured, base = (_amount(value, ratio.unit) for value in ratio.medians)
    return (
        ratio.name,
        ratio.base,
        f"{middle:.3f}x",
        f"{low:.3f} to {high:.3f}" if len(ratio.pairs) > 1 else "one round",
        f"{ratio.least:.3f}x",
        f"{measured} / {base}",
        f"at most {ratio.target:g}x",
        ratio.verdict,
    )


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
