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
from passes.dynamic.allocation import shares, survivors
from passes.dynamic.controller import bang_bang, proportional
from passes.dynamic.drop import (
    below_threshold,
    flipped,
    smallest,
    smallest_by_sign,
    smallest_of_all,
)
from passes.dynamic.event import CellState, Event, strength
from passes.dynamic.grow import at_random, largest
from passes.dynamic.guard import spare
from passes.dynamic.random_keys import key_of

Score = Literal["magnitude", "saliency"]


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
    """The globally smallest cells, exactly as many as are due; a site keeps its floor.

    Attributes:
        by: What is small: the `"magnitude"`, or the `"saliency"` |w dL/dw|, which means the same in
            all layers and so does not empty those whose weights are small (Molchanov et al., ICLR
            2017, rank channels by it).
    """

    by: Score = "magnitude"

    def drop(self, event: Event) -> list[Tensor]:
        """See `smallest_of_all`."""
        sites = event.sites
        # A number of cells counts cells, a share is one of the parameters.
        blocks = [s.block if event.due.cells is None else 1 for s in sites]
        active = sum(int(s.mask.sum()) * b for s, b in zip(sites, blocks, strict=True))
        return smallest_of_all(
            [_score(s, self.by) for s in sites],
            [s.mask for s in sites],
            event.due.of(active),
            [s.floor for s in sites],
            blocks=blocks,
            units=[s.units for s in sites],
            names=[s.name for s in sites],
        )


@dataclass(frozen=True, slots=True)
class SmallestOfEach(_SameThreshold):
    """The same share of every site, its smallest cells.

    Attributes:
        by_sign: The share of the positive and of the negative weights separately, as SET does
            originally.
        by: What is small; see `SmallestOfAll`.
    """

    by_sign: bool = False
    by: Score = "magnitude"

    def drop(self, event: Event) -> list[Tensor]:
        """See `smallest` and `smallest_by_sign`."""
        active = [int(site.mask.sum()) for site in event.sites]
        if event.due.cells is None:
            counts = [event.due.of(n) for n in active]
        else:
            counts = shares(event.due.of(sum(active)), active, active)
        return [self._of(event, *part) for part in zip(event.sites, active, counts, strict=True)]

    def _of(self, event: Event, site: CellState, active: int, count: int) -> Tensor:
        if self.by_sign and site.block == 1:
            asked = count / max(active, 1) if event.due.share is None else event.due.share
            share = max(0.0, min(asked, 1 - site.floor / max(active, 1)))
            gone = smallest_by_sign(site.values[:, 0], site.mask, share, name=site.name)
            return _guarded(site, gone)
        count = max(0, min(count, active - site.floor))
        return smallest(_score(site, self.by), site.mask, count, site.units, name=site.name)


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
        return [self._of(event, site) for site in event.sites]

    def _of(self, event: Event, site: CellState) -> Tensor:
        parts = ([site.magnitudes], [site.mask], event.threshold)
        [gone] = below_threshold(*parts, keep=site.floor, names=[site.name])
        return _guarded(site, gone)

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
class SignChanged(_SameThreshold):
    """The weights that have crossed zero, away from their sign; for rules that walk."""

    def drop(self, event: Event) -> list[Tensor]:
        """See `flipped`."""
        return [self._of(site) for site in event.sites]

    def _of(self, site: CellState) -> Tensor:
        signs = _require(site.signs, site, "signs")
        return _guarded(site, flipped(site.values[:, 0], signs, site.mask, name=site.name))


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


def _guarded(site: CellState, gone: Tensor) -> Tensor:
    """What a drop may take: of every unit, the largest stays."""
    if site.units is None:
        return gone
    return gone & spare(site.magnitudes, site.mask, site.units, site.name)


def _score(site: CellState, by: Score) -> Tensor:
    return site.saliency if by == "saliency" else site.magnitudes


def _require(values: Tensor | None, site: CellState, what: str) -> Tensor:
    if values is None:
        raise PreconditionError(
            f"the rule asks for {what}, and there are none",
            where=site.name,
            remedy=f"Say so in the rule: Rule(needs={{{what!r}}}).",
        )
    return values
