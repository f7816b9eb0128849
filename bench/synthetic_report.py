"""The page on searches over the synthetic objective, and on what proposing costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.synthetic_runs import SyntheticRun, SyntheticSizes

BASELINE = "random"
_PAIRS = (
    ("embedding-composite", "embedding"),
    ("features-composite", "features"),
    ("embedding-composite", "features-composite"),
    ("embedding-warm", "embedding-composite"),
)

_NOTES = (
    "Best: the highest reward so far, the mean over the seeds; the lowest and the highest run are "
    "those of the last mark. All methods begin with the same random students. Rank correlation: of "
    "predictions with rewards or accuracies that a kernel had not learned from, the mean over "
    "steps. Warm: composite, and its encoders come from a search over the students of ResNet-34, "
    "whose time is not counted. CPU time: of the whole search on one thread; evaluating the "
    "objective takes next to nothing of it. The objective is smooth in widths and in counts of "
    "layers, which is what features made by hand consist of: it says nothing about which of the "
    "two surrogates is better on networks."
)


@dataclass(frozen=True, slots=True)
class ProposalSpeed:
    """What it costs to propose.

    Attributes:
        name: What was measured.
        value: In its unit, the median of the rounds, in CPU time of one thread.
        unit: Of the value.
        target: What it is to reach, in words.
        met: Whether it does.
    """

    name: str
    value: float
    unit: str
    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class SyntheticReport:
    """All runs and how they were made.

    Attributes:
        conditions: One sentence.
        sizes: Of the searches.
        runs: In the order in which they are told.
        speeds: What proposing costs; empty if it was not measured.
    """

    conditions: str
    sizes: SyntheticSizes
    runs: tuple[SyntheticRun, ...]
    speeds: tuple[ProposalSpeed, ...] = ()

    def of(self, method: str) -> list[SyntheticRun]:
        """The runs of a method."""
        return [run for run in self.runs if run.method == method]

    def mean(self, method: str, mark: int) -> float:
        """Mean best reward of a method after so many evaluations."""
        place = self.sizes.marks.index(mark)
        return statistics.fmean(run.best[place] for run in self.of(method))

    def wins(self, method: str, other: str, mark: int) -> tuple[int, int]:
        """Seeds at which a method is ahead of another one, and seeds that both were run with."""
        place = self.sizes.marks.index(mark)
        others = {run.seed: run.best[place] for run in self.of(other)}
        pairs = [(r.best[place], others[r.seed]) for r in self.of(method) if r.seed in others]
        return sum(a > b for a, b in pairs), len(pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "conditions": self.conditions,
            "marks": list(self.sizes.marks),
            "runs": [run.to_dict() for run in self.runs],
            "speeds": [
                {"name": s.name, "value": s.value, "unit": s.unit, "target": s.target, "met": s.met}
                for s in self.speeds
            ],
        }

    def markdown(self, command: str) -> str:
        """A page with the command that made it."""
        return f"# Searches on a synthetic objective\n\n    {command}\n\n{self}\n"

    def __str__(self) -> str:
        parts = [self.conditions]
        if self.runs:
            parts += [self._table(), *self._sentences(), _NOTES]
        if self.speeds:
            parts.append(_speed_table(self.speeds))
        return "\n\n".join(parts)

    def _methods(self) -> list[str]:
        return list(dict.fromkeys(run.method for run in self.runs))

    def _table(self) -> str:
        marks = self.sizes.marks
        head = [
            "method",
            "seeds",
            *(f"best @{mark}" for mark in marks),
            "lowest to highest",
            "rank correlation",
            "CPU time",
        ]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for method in self._methods():
            runs = self.of(method)
            last = [run.best[-1] for run in runs]
            trust = [run.trust for run in runs if run.trust is not None]
            cells = [
                method,
                str(len(runs)),
                *(f"{self.mean(method, mark):.3f}" for mark in marks),
                f"{min(last):.3f} to {max(last):.3f}",
                f"{statistics.fmean(trust):.2f}" if trust else "",
                f"{statistics.fmean(run.cpu_seconds for run in runs):.1f} s",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _sentences(self) -> list[str]:
        methods, found = self._methods(), []
        marks = self.sizes.marks
        mark = marks[-2] if len(marks) > 1 else marks[-1]
        pairs = [(method, BASELINE) for method in methods if method != BASELINE]
        for method, other in (*pairs, *_PAIRS):
            if method in methods and other in methods:
                wins, seeds = self.wins(method, other, mark)
                ahead = self.mean(method, mark) - self.mean(other, mark)
                found.append(f"{method} against {other}: {ahead:+.3f}, ahead at {wins} of {seeds}")
        return [f"After {mark} evaluations: {'; '.join(found)}."] if found else []


def _speed_table(speeds: Sequence[ProposalSpeed]) -> str:
    lines = ["## What proposing costs", "", "| what | measured | target | met |", "|---" * 4 + "|"]
    for row in speeds:
        met = "yes" if row.met else "NO"
        lines.append(f"| {row.name} | {row.value:,.4g} {row.unit} | {row.target} | {met} |")
    return "\n".join(lines)
