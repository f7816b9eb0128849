"""The rewiring engine: the only one that changes masks, weights and optimizer state.

A rule decides from what it sees (`event`); the engine applies the decision in one go and checks
that the number of active parameters is what it was, or that the budget holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import PostconditionError
from passes.dynamic.allocation import block_shares
from passes.dynamic.by_index import set_at
from passes.dynamic.event import CellState, Event
from passes.dynamic.exchange import exchange
from passes.dynamic.gathered import Gathered
from passes.dynamic.grow import candidates
from passes.dynamic.member import Change, Member, weights_of
from passes.dynamic.new_values import normal_values
from passes.dynamic.policies import AtRandom, SameSite, SignChanged
from passes.dynamic.pruning_steps import target_counts
from passes.dynamic.random_keys import key_of
from passes.dynamic.rule import Rule
from passes.dynamic.schedule import Clock, Due
from passes.dynamic.walker import Walker
from passes.graph import ModelGraph
from passes.rewrite.masks import WatchedMask, attach_masks, masks_of
from passes.rewrite.optimizer_state import part_of, zero_state

__all__ = ["Change", "Member", "RewireEngine"]

# Steps of a walk, which may all have an event, for one row of the history.
_GATHERED = 100


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
        ArgumentError: The rule's prunes are longer than the training, or it walks and cells are not
            single weights.
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
        self.walker, self.gathered = None, Gathered()
        if rule.walk is not None:
            self.walker = Walker(graph, self.members, rule, clock, seed)
            if isinstance(rule.allocate, SameSite):
                self.fits = None  # no count ever changes, and with these it holds

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
        whole = {m.site.name: weights_of(masks[m.site.name], m) for m in self.members}
        for member in self.members:
            weight = self.graph.weight(member.site)
            weight.masked_fill_(~whole[member.site.name].reshape(weight.shape), 0)
        attach_masks(self.graph, whole, WatchedMask)
        self.ever = [masks[m.site.name].clone() for m in self.members]
        if self.walker is not None:
            self.walker.begin()

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

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Before the optimizer's step, from 0: noise on gradients, of rules that want it."""
        if self.walker is not None:
            self.walker.disturb(step, optimizer)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """After the optimizer's step, from 0: the walk, and an event if one is due.

        Returns:
            What the history tells, if there is anything: a row for every event. Rules that walk
            have an event after every step, and one row for 100 steps, and at the end of an epoch
            and of the walk: `events` of them, their cells and milliseconds (with those of the walk)
            summed, and what was active in the end.

        Raises:
            PostconditionError: The number of active parameters changed.
        """
        due = self.due(step)
        if self.walker is None:
            return None if due is None else self.rewire(step, due, optimizer)
        began = time.perf_counter()
        values = self.walker.move(step, optimizer)
        if due is not None:
            self._end_crossed(self.walker, values, step, due, optimizer)
        self.gathered.milliseconds += 1e3 * (time.perf_counter() - began)
        after = step + 1
        ends = after % _GATHERED == 0 or after % self.clock.epoch_steps == 0
        return self._gathered_row() if ends or after >= self.walker.stop else None

    def _end_crossed(
        self,
        walker: Walker,
        values: Tensor,
        step: int,
        due: Due,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """The event of a walk, if a connection has crossed zero."""
        places, rule = walker.crossed(values), self.rule
        parts = (type(rule.drop), type(rule.allocate), type(rule.grow))
        listed = parts == (SignChanged, SameSite, AtRandom) and rule.just_dropped
        if places.numel() and not (listed and all(m.units is None for m in self.members)):
            row = self.rewire(step, due, optimizer)
            self.gathered.add(row["dropped"], row["grown"])
            return
        walker.settle(values)
        counts = {}
        if places.numel():
            self.events += 1
            grown = exchange(walker, places, values, self.events, optimizer)
            counts = {name: cells.numel() for name, cells in grown.items()}
            for member, ever in zip(self.members, self.ever, strict=True):
                if member.site.name in grown:
                    set_at(ever, grown[member.site.name].to(ever.device), 1)
        self.gathered.add(counts, counts)

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
        if self.walker is not None:
            self.walker.follow()
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
        state = {
            "events": self.events,
            "threshold": self.threshold,
            "carried": self.carried,
            "ever": self.ever,
        }
        if self.walker is not None:
            state |= {"walk": self.walker.state_dict(), "gathered": self.gathered.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, after masks and weights have been loaded."""
        self.events, self.carried = int(state["events"]), int(state["carried"])
        self.threshold, self.ever = float(state["threshold"]), list(state["ever"])
        if self.walker is not None:
            self.walker.load_state_dict(state["walk"])
            self.gathered = Gathered.from_state(state["gathered"])

    def _state(self, member: Member) -> CellState:
        site, shape = member.site, member.shape
        rows = (shape.cells, shape.block)
        gradients = None
        if "gradients" in self.rule.needs:
            found = [mask.dense for mask in self.watched(member) if mask.dense is not None]
            if found:
                gradients = part_of(torch.stack(found).sum(0), site).reshape(rows)
        signs = None
        if self.walker is not None and "signs" in self.rule.needs:
            signs = self.walker.signs_of(site.name)
        return CellState(
            site.name,
            self.mask(member),
            self.graph.weight(site).reshape(rows),
            gradients,
            member.floor,
            member.movable,
            member.cost,
            member.units,
            signs,
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
            # What comes back goes on as it was; of rules that walk, from zero.
            stays = new & site.mask & (self.walker is None)
            changes.append(Change(gone & ~stays, new & ~stays))
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
        if self.walker is not None and self.rule.just_dropped:  # these begin anew like any other
            free = [n + ended for n, ended in zip(free, gone, strict=True)]
        if self.fits is not None:
            return self._fitting(weights, kept, gone, free, blocks)
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
        gone: Sequence[int],
        free: Sequence[int],
        blocks: Sequence[int],
    ) -> list[int]:
        """Cells that each site grows: the most that the budget allows in these shares."""
        assert self.fits is not None
        fixed = {m.site.name: n for m, n in zip(self.members, self.counts(), strict=True)}
        movable = [m.site.name for m in self.members if m.movable]
        fits = self.fits

        def shared(total: int) -> list[int]:
            counts, left = block_shares(total, weights, free, blocks)
            if left:  # where every site is full, what was just dropped comes back
                back, _ = block_shares(0, weights, gone, blocks, left)
                counts = [n + more for n, more in zip(counts, back, strict=True)]
            return counts

        def within(total: int) -> bool:
            parts = zip(movable, kept, shared(total), blocks, strict=True)
            grown = {name: stays + n * block for name, stays, n, block in parts}
            return fits([grown.get(m.site.name, fixed[m.site.name]) for m in self.members])

        low, high = 0, max(1, sum(n * block for n, block in zip(gone, blocks, strict=True)))
        room = [n + ended for n, ended in zip(free, gone, strict=True)]
        most = sum(n * block for n, block in zip(room, blocks, strict=True))
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
        anew = weights_of(change.dropped | change.grown, member)
        weight = self.graph.weight(member.site)
        weight.masked_fill_(anew.reshape(weight.shape), 0)
        if self.rule.new_values == "normal":
            grown = weights_of(change.grown, member).reshape(weight.shape)
            key = key_of(self.seed, self.events, f"{site.name}/values")
            values = normal_values(member.shape, key, grown).to(weight.dtype)
            weight.masked_scatter_(grown, values)
        whole = weights_of(mask, member)
        for part in masks_of(self.graph, member.site):
            keep = part_of(part.keep, member.site)
            keep.copy_(whole.reshape(keep.shape))
        if optimizer is not None:
            zero_state(optimizer, self.graph.parameter(member.site), member.site, anew)
        ever = self.ever[self.members.index(member)]
        ever |= mask.to(ever.device)

    def _row(self, event: Event, changes: Sequence[Change], elapsed: float) -> dict[str, Any]:
        pairs = list(zip(event.sites, changes, strict=True))
        return {
            "event": "rewired",
            "rewiring": event.number,
            "dropped": {s.name: int(c.dropped.sum()) for s, c in pairs},
            "grown": {s.name: int(c.grown.sum()) for s, c in pairs},
            "active": {s.name: int(((s.mask & ~c.dropped) | c.grown).sum()) for s, c in pairs},
            "threshold": event.threshold,
            "ever_active": self._ever_active(),
            "milliseconds": round(elapsed, 3),
        }

    def _ever_active(self) -> float:
        """Share of all parameters that have been active so far."""
        ever = sum(
            int(e.sum()) * m.shape.block for e, m in zip(self.ever, self.members, strict=True)
        )
        every = sum(m.shape.parameters for m in self.members)
        return ever / every if every else 1.0

    def _gathered_row(self) -> dict[str, Any] | None:
        """One row for what was gathered, which begins anew; `None` if it was nothing."""
        found, self.gathered = self.gathered, Gathered()
        if not found.events:
            return None
        active = {m.site.name: int(self.mask(m).sum()) for m in self.members if m.movable}
        return {
            "event": "rewired",
            "rewiring": self.events,
            **found.row(active),
            "threshold": self.threshold,
            "ever_active": self._ever_active(),
            "milliseconds": round(found.milliseconds, 3),
        }


def _parameters(mask: Tensor, site: CellState) -> int:
    return int(mask.sum()) * site.block
