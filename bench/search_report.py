"""The page on the speed of a search over keep-states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.dynamic_report import Part
from bench.search_published import Overheads

_NOTES = (
    "Ratio: median over rounds in which all took turns, with its quartiles; where no target is "
    'given the number is stated. "noisy": the rounds straddle the target and are too far apart to '
    "say. Search steps bear their share of the steps at which couplings and importances follow the "
    "weights. The whole run is computed from the steps of the same round, and holds what is paid "
    "once: planning, the first population, the choice of a back end, and the step that cuts the "
    "network. Images and labels are random."
)


@dataclass(frozen=True, slots=True)
class SearchReport:
    """All parts and how they were measured.

    Attributes:
        conditions: One sentence.
        parts: In the order in which they were measured.
        published: The authors' six networks, if they were measured.
    """

    conditions: str
    parts: tuple[Part, ...]
    published: Overheads | None = None

    @property
    def met(self) -> bool:
        """Whether every target is met and every check holds."""
        return all(part.outcome.met for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = self.published.rows if self.published is not None else ()
        return {
            "conditions": self.conditions,
            "parts": [part.to_dict() for part in self.parts],
            "published": [row.to_dict() for row in rows],
            "met": self.met,
        }

    def markdown(self, command: str) -> str:
        """A page with the command that made it."""
        return f"# Speed of a search over keep-states\n\n    {command}\n\n{self}\n"

    def __str__(self) -> str:
        last = [_NOTES] if self.parts else []
        table = [str(self.published)] if self.published is not None else []
        return "\n\n".join([self.conditions, *map(str, self.parts), *last, *table])
