"""A keep-state on its way to a budget: blocks of units go until it fits, and return if they fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from energy_model.resolved import ResolvedLimit
from passes.structure.costs import LATENCY, StructureCosts
from passes.structure.groups import ChannelGroup, ChannelGroups
from passes.structure.ranking import Ranking
from passes.structure.state import State, checked_state, full_state

Scores = Mapping[str, NDArray[np.float64]]

_Block = tuple[NDArray[np.int64], float]  # units, and their mean score


class Search:
    """A keep-state, its costs, and the order in which the units of every group move.

    Args:
        costs: Costs of the keep-states, among them all that are limited.
        groups: The groups.
        scores: Of every free group a number for each unit, `(units,)`.
        limits: The budget in absolute terms.
        multiple: Channel counts are to be multiples of this.
        state: Where to start; `None` is with everything.

    Raises:
        PreconditionError: The costs of a free group cannot be counted.
        ArgumentError: Scores, state or multiple are malformed.
        UnsupportedBudget: A limit is not among the costs.
    """

    def __init__(
        self,
        costs: StructureCosts,
        groups: ChannelGroups,
        scores: Scores,
        limits: Sequence[ResolvedLimit],
        multiple: int,
        state: State | None,
    ) -> None:
        _check_free(groups, costs.uncounted)
        if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
            raise ArgumentError(f"{multiple!r} is no whole number from 1", where="multiple")
        self.costs, self.groups, self.limits = costs, groups, tuple(limits)
        self._places = [costs.index(limit.key) for limit in self.limits]
        start = full_state(groups) if state is None else _read(groups, state)
        self.rankings = {
            group.name: Ranking(group, _checked(group, scores), start[group.name], multiple)
            for group in groups.free
        }
        self._order = {name: number for number, name in enumerate(self.rankings)}
        self.tally = costs.tally({name: r.keep() for name, r in self.rankings.items()})

    def exceeded(self, values: Sequence[float] | None = None) -> list[tuple[int, float]]:
        """Of every limit that is exceeded, its place among the costs, and by how much.

        Args:
            values: The costs; `None` takes those of the present state.
        """
        found = self.tally.values if values is None else values
        return [
            (place, found[place] - limit.maximum)
            for place, limit in zip(self._places, self.limits, strict=True)
            if found[place] > limit.maximum
        ]

    def move_out(self, name: str) -> None:
        """Let the next block of a group go, if it is not at its minimum."""
        units = self.rankings[name].next_out()
        if units is not None:
            self.tally.apply(name, units)
            self.rankings[name].move_out()

    def drop(self, *, per_cost: bool) -> None:
        """Let the block with the lowest score go, or the lowest per saving, until all limits hold.

        Raises:
            InfeasibleBudget: None is left that could go.
        """
        blocks = self._blocks(self.rankings, out=True)
        saved: dict[str, list[float]] = {}
        while blocks and (over := self.exceeded()):
            if per_cost:
                for name, (units, _) in blocks.items():
                    if name not in saved:
                        saved[name] = self._saved(name, units)
                prices = {n: _price(block, saved[n], over) for n, block in blocks.items()}
            else:
                prices = {name: (0.0, score) for name, (_, score) in blocks.items()}
            best = min(prices, key=lambda name: (*prices[name], self._order[name]))
            self.move_out(best)
            for name in self.tally.neighbours(best):
                saved.pop(name, None)
            blocks.pop(best)
            blocks |= self._blocks([best], out=True)
        self.check()

    def fill(self) -> None:
        """Let the block with the highest score return that fits, until none does."""
        returned = True
        while returned:
            returned = False
            blocks = self._blocks(self.rankings, out=False)
            while blocks:
                best = max(blocks, key=lambda name: (blocks[name][1], -self._order[name]))
                units, _ = blocks.pop(best)
                if self.exceeded(self.tally.after(best, units)):
                    continue
                self.tally.apply(best, units)
                self.rankings[best].move_in()
                blocks |= self._blocks([best], out=False)
                returned = True
            # Energy is not quite monotone: once others have returned, one may fit that did not.

    def check(self) -> None:
        """Refuse a state that exceeds a limit.

        Raises:
            InfeasibleBudget: It does.
        """
        over = self.exceeded()
        if not over:
            return
        place = over[0][0]
        limit = next(x for x, p in zip(self.limits, self._places, strict=True) if p == place)
        tightest = self.tally.values[place]
        if not self.rankings:
            raise self._all_frozen(limit, tightest)
        predicted = "are predicted to need" if limit.key == LATENCY else "need"
        layers = self.costs.by_layer(limit.key, self.tally.state)
        layers.pop("", None)
        binding = max(layers, key=layers.__getitem__, default="")
        raise InfeasibleBudget(
            f"{limit.limit} asks for {limit.amount(limit.maximum)} "
            f"({limit.share(limit.maximum)} of the original), but {limit.amount(tightest)} "
            f"({limit.share(tightest)}) is what the fewest channels {predicted}; layer {binding!r} "
            "needs most of it",
            limit=limit.key,
            asked=limit.maximum,
            tightest=tightest,
            binding_layer=binding,
            remedy="Raise the limit, lower the channel multiple or the least that layers keep, "
            "or zero single weights as well.",
        )

    def _all_frozen(self, limit: ResolvedLimit, value: float) -> InfeasibleBudget:
        found = self.groups.decisions
        why = [f"{decision.layer or 'the model'} {decision.why}" for decision in found]
        return InfeasibleBudget(
            f"{limit.limit} asks for {limit.amount(limit.maximum)}, the model has "
            f"{limit.amount(value)}, and no channel of it can be removed: "
            f"{'; '.join(why[:3]) or 'no layer has channels'}",
            limit=limit.key,
            asked=limit.maximum,
            tightest=value,
            remedy="Use a method that zeros single weights, or change what keeps the channels.",
        )

    def _saved(self, name: str, units: NDArray[np.int64]) -> list[float]:
        after = self.tally.after(name, units)
        return [a - b for a, b in zip(self.tally.values, after, strict=True)]

    def _blocks(self, names: Iterable[str], *, out: bool) -> dict[str, _Block]:
        """The block of each group that moves next, if there is one."""
        found = {}
        for name in names:
            ranking = self.rankings[name]
            units = ranking.next_out() if out else ranking.next_in()
            if units is not None:
                found[name] = units, ranking.score(units)
        return found


def _price(
    block: _Block, saved: Sequence[float], over: Sequence[tuple[int, float]]
) -> tuple[float, float]:
    """What a block is worth for what it saves; those that save nothing come last, by score."""
    units, score = block
    saving = sum(saved[place] / excess for place, excess in over)
    return (score * len(units) / saving if saving > 0 else math.inf), score


def _check_free(groups: ChannelGroups, uncounted: Mapping[str, str]) -> None:
    for group in groups.free:
        if group.name in uncounted:
            raise PreconditionError(
                f"its costs cannot be counted: {uncounted[group.name]}",
                where=f"channel group {group.name!r}",
                remedy="Freeze it, as restricted(groups, graph) does.",
            )


def _read(groups: ChannelGroups, state: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """A complete state; groups may keep fewer units than they are to."""
    loose = tuple(replace(group, minimum=0) for group in groups)
    return checked_state(ChannelGroups(loose), state)


def _checked(group: ChannelGroup, scores: Scores) -> NDArray[np.float64]:
    where = f"scores of channel group {group.name!r}"
    if group.name not in scores:
        raise ArgumentError("are missing", where=where, remedy="Score every free group.")
    try:
        found = np.asarray(scores[group.name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError("are no numbers", where=where) from error
    if found.shape != (group.units,):
        raise ArgumentError(
            f"have the shape {found.shape}, and the group has {group.units} units",
            where=where,
            remedy="Give one number for each unit.",
        )
    if not np.isfinite(found).all():
        raise ArgumentError(
            "are not finite", where=where, remedy="Look for NaN or infinite weights."
        )
    return found
