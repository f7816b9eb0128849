"""Events of many steps as one row of the history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Gathered:
    """What has happened since the last row was written.

    Attributes:
        events: Steps after which was rewired, or would have been if anything had to be.
        dropped: Cells dropped, by site.
        grown: Cells grown, by site.
        milliseconds: Spent on it.
    """

    events: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    grown: Counter[str] = field(default_factory=Counter)
    milliseconds: float = 0.0

    def add(self, dropped: Mapping[str, int], grown: Mapping[str, int]) -> None:
        """Count one event."""
        self.events += 1
        self.dropped.update(dropped)
        self.grown.update(grown)

    def row(self, active: Mapping[str, int]) -> dict[str, Any]:
        """Its part of a row of the history; sites where nothing moved have zeros.

        Args:
            active: Cells that are active now, by site.
        """
        return {
            "events": self.events,
            "dropped": {name: self.dropped[name] for name in active},
            "grown": {name: self.grown[name] for name in active},
            "active": dict(active),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "events": self.events,
            "dropped": dict(self.dropped),
            "grown": dict(self.grown),
            "milliseconds": self.milliseconds,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Gathered:
        """Continue from `state_dict`."""
        counts = (Counter(state["dropped"]), Counter(state["grown"]))
        return cls(int(state["events"]), *counts, float(state["milliseconds"]))
