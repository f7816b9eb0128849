"""The parts that rules are made of: what to drop, who gets it, and where it grows.

Each is data with one pure function of an event. A policy of one's own is any object with that
function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from energy_model.errors import PreconditionError
from passes.dynamic.allocation import survivors
from passes.dynamic.controller import bang_bang, proportional
from passes.dynamic.drop import (
    below_threshold,
    smallest,
    smallest_by_sign,
    smallest_of_all,
)
from passes.dynamic.event import CellState, Event, strength
from passes.dynamic.grow import at_random, largest
from passes.dynamic.random_keys import key_of


class Drop(Protocol):
    """Which active cells an event drops."""

    def drop(self, event: Event) -> list[Tensor]:
        """Per site of the event, boolean `(cells,)`, a part of its mask."""

    def next_threshold(self, event: Event, dropped: int) -> float:
        """The threshold of the next event, from how many cells this one drops."""


class Allocate(Protocol):
    """Which sites get back what was dropped."""

    def weights(self, event: Event, kept: Sequence[int], lost: Sequence[int]) -> list[float]:
        """Per site, a weight: what is dropped is shared in proportion.

        Args:
            event: The event.
            kept: Per site, parameters that stay active.
            lost: Per site, parameters that were dropped.
        """


class Grow(Protocol):
    """Where a site grows."""

    def grow(self, event: Event, site: CellState, free: Tensor, count: int) -> Tensor:
        """Exactly `count` of the free cells; boolean `(cells,)`."""


class _SameThreshold:
    """Of drops that have no threshold."""

    def next_threshold(self, event: Event, dropped: int) -> float:
        """As it was."""
        return event.threshold


@dataclass(frozen=True, slots=True)
class SmallestOfAll(_SameThreshold):
    """The globally smallest cells, exactly as many as are due; a site keeps its floor."""

    def drop(self, event: Event) -> list[Tensor]:
        """See `smallest_of_all`."""
        sites = event.sites
        active = sum(int(s.mask.sum()) * s.block for s in sites)
        return smallest_of_all(
            [s.magnitudes for s in sites],
            [s.mask for s in sites],
            event.due.of(active),
            [s.floor for s in sites],
            blocks=[s.block for s in sites],
            units=[s.units for s in sites],
            names=[s.name for s in sites],
        )


@dataclass(frozen=True, slots=True)
class SmallestOfEach(_SameThreshold):
    """The same share of every site, its smallest cells.

    Attributes:
        by_sign: The share of the positive and of the negative weights separately, as SET does
            originally.
    """

    by_sign: bool = False

    def drop(self, event: Event) -> list[Tensor]:
        """See `smallest` and `smallest_by_sign`."""
        return [self._of(event, site) for site in event.sites]

    def _of(self, event: Event, site: CellState) -> Tensor:
        active = int(site.mask.sum())
        if self.by_sign and site.block == 1 and event.due.share is not None:
            share = min(event.due.share, 1 - site.floor / max(active, 1))
            return smallest_by_sign(site.values[:, 0], site.mask, max(share, 0.0), name=site.name)
        count = max(0, min(event.due.of(active), active - site.floor))
        return smallest(site.magnitudes, site.mask, count, site.units, name=site.name)


@dataclass(frozen=True, slots=True)
class BelowThreshold:
    """All cells below one threshold, which is steered towards what is due.

    Attributes:
        control: `"bang_bang"`, as its authors do, or `"proportional"`.
        tolerance: Share by which what was dropped may miss what was due.
    """

    control: Literal["bang_bang", "proportional"] = "bang_bang"
    tolerance: float = 0.1

    def drop(self, event: Event) -> list[Tensor]:
        """See `below_threshold`."""
        sites = event.sites
        parts = ([s.magnitudes for s in sites], [s.mask for s in sites], event.threshold)
        return below_threshold(*parts, names=[s.name for s in sites])

    def next_threshold(self, event: Event, dropped: int) -> float:
        """By the controller."""
        wanted = event.due.of(sum(int(s.mask.sum()) for s in event.sites))
        steer = bang_bang if self.control == "bang_bang" else proportional
        return steer(event.threshold, dropped, wanted, self.tolerance)


@dataclass(frozen=True, slots=True)
class DownToTarget(_SameThreshold):
    """The smallest cells of every site, down to what the event leaves of it."""

    def drop(self, event: Event) -> list[Tensor]:
        """See `smallest`."""
        return [
            smallest(s.magnitudes, s.mask, max(0, int(s.mask.sum()) - left), s.units, name=s.name)
            for s, left in zip(event.sites, event.targets, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class SameSite:
    """Every site grows what it has lost."""

    def weights(self, event: Event, kept: Sequence[int], lost: Sequence[int]) -> list[float]:
        """What was lost."""
        return [float(count) for count in lost]


@dataclass(frozen=True, slots=True)
class BySurvivors:
    """In proportion to what survived the drop; see `survivors`.

    Attributes:
        damping: From 0, where every site regrows what it lost, to 1.
        gamma: How much the cost of a parameter counts.
    """

    damping: float = 1.0
    gamma: float = 0.0

    def weights(self, event: Event, kept: Sequence[int], lost: Sequence[int]) -> list[float]:
        """See `survivors`."""
        costs = [site.cost for site in event.sites]
        return survivors(kept, lost, self.damping, costs, self.gamma)


@dataclass(frozen=True, slots=True)
class AtRandom:
    """Anywhere, with equal chances."""

    def grow(self, event: Event, site: CellState, free: Tensor, count: int) -> Tensor:
        """See `at_random`."""
        return at_random(free, count, key_of(event.seed, event.number, site.name))


@dataclass(frozen=True, slots=True)
class ByGradient:
    """Where the dense gradient is largest (Evci et al., ICML 2020)."""

    def grow(self, event: Event, site: CellState, free: Tensor, count: int) -> Tensor:
        """See `largest`."""
        scores = strength(_require(site.gradients, site, "gradients"))
        return largest(scores, free, count, name=site.name)


def _require(values: Tensor | None, site: CellState, what: str) -> Tensor:
    if values is None:
        raise PreconditionError(
            f"the rule asks for {what}, and there are none",
            where=site.name,
            remedy=f"Say so in the rule: Rule(needs={{{what!r}}}).",
        )
    return values
