"""The rewiring engine: the only one that changes masks, weights and optimizer state.

A rule decides from what it sees (`event`); the engine applies the decision in one go and checks
that the number of active parameters is what it was, or that the budget holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PostconditionError
from passes.dynamic.allocation import block_shares
from passes.dynamic.event import CellState, Event
from passes.dynamic.grow import candidates
from passes.dynamic.new_values import normal_values
from passes.dynamic.pruning_steps import target_counts
from passes.dynamic.random_keys import key_of
from passes.dynamic.rule import Rule
from passes.dynamic.schedule import Clock, Due
from passes.dynamic.start import SparseShape
from passes.graph import ModelGraph, Site
from passes.rewrite.masks import WatchedMask, attach_masks, masks_of
from passes.rewrite.optimizer_state import part_of, zero_state


@dataclass(frozen=True, slots=True)
class Member:
    """A sparse tensor as the engine keeps it.

    Attributes:
        site: Its site.
        shape: Its shape and cells.
        final: Cells that the budget leaves it, of rules that prune to it; of others, those that
            it starts with.
        floor: Least number of cells that stay active.
        movable: Whether it is rewired.
        cost: Of a parameter, for allocations that count it.
        units: Output unit of each cell, if none may lose its last.
    """

    site: Site
    shape: SparseShape
    final: int
    floor: int = 1
    movable: bool = True
    cost: float = 1.0
    units: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What an event does to one site; boolean `(cells,)`.

    Attributes:
        dropped: Active cells that end.
        grown: Inactive cells that begin, at zero.
    """

    dropped: Tensor
    grown: Tensor


class RewireEngine:
    """Rewires the sparse tensors of a graph.

    Args:
        graph: The traced model.
        members: Its sparse tensors.
        rule: How they are rewired.
        clock: How long training is.
        seed: Of all random choices.
        fits: Whether so many active parameters, one number for each member, are within the budget.
            `None` keeps their sum.

    Raises:
        ArgumentError: The rule's prunes are longer than the training.
    """

    def __init__(
        self,
        graph: ModelGraph,
        members: Sequence[Member],
        rule: Rule,
        clock: Clock,
        seed: int,
        fits: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        self.graph, self.members, self.rule = graph, tuple(members), rule
        self.clock, self.seed, self.fits = clock, seed, fits
        self.events, self.threshold, self.carried = 0, rule.threshold, 0
        self.ever: list[Tensor] = []
        self.targets = self._targets()

    def _targets(self) -> dict[int, tuple[int, ...]]:
        """Cells that every movable member has left after a prune, by its step."""
        if self.rule.prune is None:
            return {}
        steps, prune = self.rule.prune.steps(self.clock), self.rule.prune
        each = []
        for member in self.members:
            cells = member.shape.cells
            law = prune.sparsities(1 - member.final / cells, len(steps))
            each.append(target_counts(cells, law, member.final))
        movable = [counts for m, counts in zip(self.members, each, strict=True) if m.movable]
        return {step: tuple(c[j] for c in movable) for j, step in enumerate(steps)}

    def attach(self, masks: dict[str, Tensor]) -> None:
        """Put masks on the weights; what they do not keep becomes exactly zero.

        Args:
            masks: Active cells by name of the site, boolean `(cells,)`.
        """
        whole = {m.site.name: _weights_of(masks[m.site.name], m) for m in self.members}
        for member in self.members:
            weight = self.graph.weight(member.site)
            weight.masked_fill_(~whole[member.site.name].reshape(weight.shape), 0)
        attach_masks(self.graph, whole, WatchedMask)
        self.ever = [masks[m.site.name].clone() for m in self.members]

    def due(self, step: int) -> Due | None:
        """What is to be moved after a step of the training, from 0."""
        if step in self.targets:
            return Due()
        schedule = self.rule.schedule
        return None if schedule is None else schedule.due(step, self.clock)

    def watch(self, step: int) -> None:
        """Gather dense gradients in a step if its event will ask for them."""
        watching = "gradients" in self.rule.needs and self.due(step) is not None
        for member in self.members:
            for mask in self.watched(member):
                mask.watch(watching=watching)

    def watched(self, member: Member) -> list[WatchedMask]:
        """The masks of a site, one for each owner of its parameter."""
        masks = masks_of(self.graph, member.site)
        return [mask for mask in masks if isinstance(mask, WatchedMask)]

    def rewire(
        self, step: int, due: Due, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, Any]:
        """One event.

        Args:
            step: Of the training, from 0.
            due: How much is to be moved.
            optimizer: Its state of changed weights is zeroed.

        Returns:
            What the history tells of it.

        Raises:
            PostconditionError: The number of active parameters changed.
        """
        began = time.perf_counter()
        self.events += 1
        movable = [m for m in self.members if m.movable]
        sites = tuple(self._state(m) for m in movable)
        targets = self.targets.get(step, ())
        clocked = (self.events, step, self.clock, due, self.seed, self.threshold)
        event = Event(*clocked, sites, targets)
        before = sum(_parameters(s.mask, s) for s in sites) + self.carried
        changes = self._decide(event)
        for member, site, change in zip(movable, sites, changes, strict=True):
            self._apply(member, site, change, optimizer)
        self._check(before)
        return self._row(event, changes, 1e3 * (time.perf_counter() - began))

    def _check(self, before: int) -> None:
        counts = self.counts()
        movable = [n for m, n in zip(self.members, counts, strict=True) if m.movable]
        after = sum(movable) + self.carried
        if self.rule.grow is None:
            good = after <= before
        else:
            good = after == before if self.fits is None else self.fits(counts)
        if not good:
            raise PostconditionError(
                f"rewiring changed {before:,} active parameters into {after:,}",
                where=f"rule {self.rule.name!r}",
            )

    def counts(self) -> list[int]:
        """Active parameters of every member."""
        return [int(self.mask(m).sum()) * m.shape.block for m in self.members]

    def mask(self, member: Member) -> Tensor:
        """The active cells of a site, boolean `(cells,)`; a copy."""
        keep = part_of(masks_of(self.graph, member.site)[0].keep, member.site)
        return keep.reshape(member.shape.cells, member.shape.block)[:, 0].clone()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; masks and weights are in the model's state."""
        return {
            "events": self.events,
            "threshold": self.threshold,
            "carried": self.carried,
            "ever": self.ever,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.events, self.carried = int(state["events"]), int(state["carried"])
        self.threshold, self.ever = float(state["threshold"]), list(state["ever"])

    def _state(self, member: Member) -> CellState:
        site, shape = member.site, member.shape
        rows = (shape.cells, shape.block)
        gradients = None
        if "gradients" in self.rule.needs:
            found = [mask.dense for mask in self.watched(member) if mask.dense is not None]
            if found:
                gradients = part_of(torch.stack(found).sum(0), site).reshape(rows)
        return CellState(
            site.name,
            self.mask(member),
            self.graph.weight(site).reshape(rows),
            gradients,
            member.floor,
            member.movable,
            member.cost,
            member.units,
        )

    def _decide(self, event: Event) -> list[Change]:
        """What the rule wants, as changes that add up."""
        assert self.rule.drop is not None  # a rule with a schedule has one
        dropped = self.rule.drop.drop(event)
        self.threshold = self.rule.drop.next_threshold(event, sum(int(d.sum()) for d in dropped))
        if self.rule.grow is None:
            return [Change(d, torch.zeros_like(d)) for d in dropped]
        counts = self._counts(event, dropped)
        changes = []
        for site, gone, count in zip(event.sites, dropped, counts, strict=True):
            where = candidates(site.mask, gone, count, just_dropped=self.rule.just_dropped)
            chosen = self.rule.grow.grow(event, site, where.open, where.count)
            new = where.certain | chosen
            changes.append(Change(gone & ~new, new & ~site.mask))
        return changes

    def _counts(self, event: Event, dropped: list[Tensor]) -> list[int]:
        """Cells that each site grows: as many parameters as were dropped."""
        sites = event.sites
        blocks = [site.block for site in sites]
        gone = [int(d.sum()) for d in dropped]
        lost = [n * b for n, b in zip(gone, blocks, strict=True)]
        kept = [_parameters(s.mask, s) - k for s, k in zip(sites, lost, strict=True)]
        weights = self.rule.allocate.weights(event, kept, lost)
        free = [site.cells - int(site.mask.sum()) for site in sites]
        if self.fits is not None:
            return self._fitting(weights, kept, lost, free, blocks)
        counts, left = block_shares(sum(lost), weights, free, blocks, self.carried)
        if left:  # every site is full: what was just dropped comes back
            back, left = block_shares(0, weights, gone, blocks, left)
            counts = [n + more for n, more in zip(counts, back, strict=True)]
        self.carried = left
        return counts

    def _fitting(
        self,
        weights: Sequence[float],
        kept: Sequence[int],
        lost: Sequence[int],
        free: Sequence[int],
        blocks: Sequence[int],
    ) -> list[int]:
        """Cells that each site grows: the most that the budget allows in these shares."""
        assert self.fits is not None
        fixed = {m.site.name: n for m, n in zip(self.members, self.counts(), strict=True)}
        movable = [m.site.name for m in self.members if m.movable]
        fits = self.fits

        def shared(total: int) -> list[int]:
            return block_shares(total, weights, free, blocks)[0]

        def within(total: int) -> bool:
            parts = zip(movable, kept, shared(total), blocks, strict=True)
            grown = {name: stays + n * block for name, stays, n, block in parts}
            return fits([grown.get(m.site.name, fixed[m.site.name]) for m in self.members])

        low, high = 0, max(1, sum(lost))
        most = sum(n * block for n, block in zip(free, blocks, strict=True))
        while high < most and within(high):
            low, high = high, 2 * high
        high = min(high, most) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if within(middle) else (low, middle)
        return shared(low)

    def _apply(
        self,
        member: Member,
        site: CellState,
        change: Change,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        mask = (site.mask & ~change.dropped) | change.grown
        anew = _weights_of(change.dropped | change.grown, member)
        weight = self.graph.weight(member.site)
        weight.masked_fill_(anew.reshape(weight.shape), 0)
        if self.rule.new_values == "normal":
            grown = _weights_of(change.grown, member).reshape(weight.shape)
            key = key_of(self.seed, self.events, f"{site.name}/values")
            weight.masked_scatter_(grown, normal_values(member.shape, key, grown))
        whole = _weights_of(mask, member)
        for part in masks_of(self.graph, member.site):
            keep = part_of(part.keep, member.site)
            keep.copy_(whole.reshape(keep.shape))
        if optimizer is not None:
            zero_state(optimizer, self.graph.parameter(member.site), member.site, anew)
        self.ever[self.members.index(member)] |= mask.to("cpu")

    def _row(self, event: Event, changes: Sequence[Change], elapsed: float) -> dict[str, Any]:
        ever = sum(
            int(e.sum()) * m.shape.block for e, m in zip(self.ever, self.members, strict=True)
        )
        every = sum(m.shape.parameters for m in self.members)
        pairs = list(zip(event.sites, changes, strict=True))
        return {
            "event": "rewired",
            "rewiring": event.number,
            "dropped": {s.name: int(c.dropped.sum()) for s, c in pairs},
            "grown": {s.name: int(c.grown.sum()) for s, c in pairs},
            "active": {s.name: int(((s.mask & ~c.dropped) | c.grown).sum()) for s, c in pairs},
            "threshold": event.threshold,
            "ever_active": ever / every if every else 1.0,
            "milliseconds": round(elapsed, 3),
        }


def _weights_of(mask: Tensor, member: Member) -> Tensor:
    """A mask of cells as one of weights, flat."""
    block = member.shape.block
    return mask if block == 1 else mask.repeat_interleave(block)


def _parameters(mask: Tensor, site: CellState) -> int:
    return int(mask.sum()) * site.block
