"""What a method decided before it touches a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What happens to one layer.

    Attributes:
        layer: Name of the site, or of the channel group.
        size: Number of weights, or of the group's units.
        keep: Number of weights that stay nonzero, or of units that stay.
        why: What decided it.
    """

    layer: str
    size: int
    keep: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A pure value: it can be printed, saved and compared before anything is changed.

    Attributes:
        method: Name of the method.
        rows: One row per layer.
        reached: Predicted value of each limit, in its unit.
        allowed: What each limit allows.
        gap: Upper bound on how far the kept sum of squared weights lies below the optimum; 0 is
            exact, `None` claims nothing.
        details: What else the method wants to record; JSON values.
    """

    method: str
    rows: tuple[PlanRow, ...]
    reached: Mapping[str, float] = field(default_factory=dict)
    allowed: Mapping[str, float] = field(default_factory=dict)
    gap: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, int]:
        """Weights kept, by layer."""
        return {row.layer: row.keep for row in self.rows}

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        rows = [{name: getattr(row, name) for name in PlanRow.__slots__} for row in self.rows]
        return {
            "method": self.method,
            "rows": rows,
            "reached": dict(self.reached),
            "allowed": dict(self.allowed),
            "gap": self.gap,
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "rows": tuple(PlanRow(**row) for row in data["rows"])})

    def __str__(self) -> str:
        lines = [f"plan of method {self.method!r}"]
        width = max((len(row.layer) for row in self.rows), default=0)
        for row in self.rows:
            share = 100 * row.keep / max(row.size, 1)
            lines.append(
                f"  {row.layer:<{width}}  keep {row.keep:>11,} ({share:6.2f} %)  {row.why}"
            )
        for key, value in self.reached.items():
            lines.append(f"  {key}: {value:,} of {self.allowed[key]:,} allowed")
        if self.gap is not None:
            lines.append(f"  optimality gap (kept squared weights): at most {self.gap:.6g}")
        return "\n".join(lines)
