"""Multiple-choice knapsack: one option of each group, within a capacity, at the least cost.

    min  sum_g cost[g, o_g]   s.t.  sum_g size[g, o_g] <= capacity

The linear relaxation follows the lower hulls of (size, cost) in order of cost saved per size; the
rate of the option that it splits is the multiplier of the capacity. Greedy takes the hull steps
that fit, then any single upgrade, then exchanges between two groups. Exactly: options and partial
choices whose reduced costs exceed the gap between greedy and the bound cannot be in a better
answer; what is left is merged group by group to lists without dominated entries, in two halves that
meet (Pisinger 1995; Horowitz and Sahni 1974). Sizes are integers, costs float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.joint.points import Floats, Places

Move = list[tuple[int, int]]  # groups and their new places

# Products of a list of partial choices and the next group's options; about 50 bytes each.
_MOST = 1_000_000
# Partial choices in lists that have been thinned.
_THIN = 20_000
# Options of a group that take part in exchanges.
_EXCHANGED = 12
# Rounding of sums of costs, relative to their magnitudes.
_ROUNDING = 1e-14


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Options without dominated ones: sizes rise, costs fall.

    Attributes:
        size: int64 `(n,)`.
        cost: float64 `(n,)`, finite.
        option: Their places among all options of the group.
    """

    size: Places
    cost: Floats
    option: Places

    @classmethod
    def of(cls, size: Places, cost: Floats) -> Group:
        """The options worth looking at; those of infinite cost are not."""
        order = np.lexsort((np.arange(len(size)), cost, size))
        order = order[np.isfinite(cost[order])]
        falling = cost[order] < np.append(np.inf, np.minimum.accumulate(cost[order])[:-1])
        kept = order[falling]
        return cls(size[kept].astype(np.int64), cost[kept], kept.astype(np.int64))

    def hull(self) -> list[int]:
        """Places on the lower convex hull, from the first to the last."""
        found: list[int] = []
        for new in range(len(self.size)):
            while len(found) > 1 and self._above(found[-2], found[-1], new):
                found.pop()
            found.append(new)
        return found

    def _above(self, low: int, middle: int, high: int) -> bool:
        return self.rate(low, middle) <= self.rate(middle, high)

    def rate(self, low: int, high: int) -> float:
        """Cost saved per size from one place to a later one."""
        return float((self.cost[low] - self.cost[high]) / (self.size[high] - self.size[low]))


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of every group.

    Attributes:
        options: Places among all options of each group.
        cost: Their sum.
        size: Their sum.
        lower_bound: No choice costs less: the linear relaxation, or `cost` if it is optimal.
        exact: The choice is proved optimal.
    """

    options: tuple[int, ...]
    cost: float
    size: int
    lower_bound: float
    exact: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Relaxed:
    bound: float
    rate: float  # the multiplier of the capacity
    places: list[int]  # the steps that fit, greedily


def choose(groups: Sequence[Group], capacity: int, *, exact: bool = True) -> Choice:
    """The best option of every group.

    Args:
        groups: At least one option in each; the first options of all fit the capacity.
        capacity: Limit of the sum of sizes.
        exact: Prove the choice optimal. Where too many partial choices are left, only a part of
            them is followed; unless that reaches the bound, the choice says that it is not exact.
    """
    relaxed = _relax(groups, capacity)
    places = _improved(groups, relaxed, capacity)
    cost = _cost(groups, places)
    slack = _slack(groups, relaxed.bound)
    proved = cost - relaxed.bound <= slack
    if exact and not proved:
        better, complete = _search(groups, relaxed, capacity, cost)
        places = better or places
        cost = _cost(groups, places)
        proved = complete or cost - relaxed.bound <= slack
    return Choice(
        tuple(int(g.option[p]) for g, p in zip(groups, places, strict=True)),
        cost,
        sum(int(g.size[p]) for g, p in zip(groups, places, strict=True)),
        cost if proved else min(relaxed.bound, cost),
        proved,
    )


def _cost(groups: Sequence[Group], places: Sequence[int]) -> float:
    return float(sum(float(g.cost[p]) for g, p in zip(groups, places, strict=True)))


def _slack(groups: Sequence[Group], bound: float) -> float:
    return _ROUNDING * (abs(bound) + sum(abs(float(g.cost[-1])) for g in groups))


def _relax(groups: Sequence[Group], capacity: int) -> _Relaxed:
    """Hull steps in order of their rates; the first that does not fit is split."""
    steps = [
        (-group.rate(low, high), index, low, high)
        for index, group in enumerate(groups)
        for low, high in itertools.pairwise(group.hull())
    ]
    steps.sort()
    places = [0] * len(groups)
    left = capacity - sum(int(group.size[0]) for group in groups)
    bound, rate = None, 0.0
    closed: set[int] = set()
    for falling, index, low, high in steps:
        if index in closed:
            continue
        size = int(groups[index].size[high] - groups[index].size[low])
        if size > left:
            if bound is None:
                rate = -falling
                bound = _cost(groups, places) - rate * left
            closed.add(index)
            continue
        places[index], left = high, left - size
    return _Relaxed(_cost(groups, places) if bound is None else bound, rate, places)


def _improved(groups: Sequence[Group], relaxed: _Relaxed, capacity: int) -> list[int]:
    """Upgrades of one group and exchanges between two, as long as one lowers the cost."""
    places = list(relaxed.places)
    tables = _exchange_tables(groups, relaxed)
    while True:
        left = capacity - sum(int(g.size[p]) for g, p in zip(groups, places, strict=True))
        move = _best_upgrade(groups, places, left) or _best_exchange(groups, tables, places, left)
        if not move:
            return places
        for index, place in move:
            places[index] = place


def _best_upgrade(groups: Sequence[Group], places: Sequence[int], left: int) -> Move:
    best = 0.0
    move: Move = []
    for index, (group, place) in enumerate(zip(groups, places, strict=True)):
        high = int(np.searchsorted(group.size, group.size[place] + left, side="right")) - 1
        saved = float(group.cost[place] - group.cost[high])
        if saved > best:
            best, move = saved, [(index, high)]
    return move


@dataclass(frozen=True, slots=True, eq=False)
class _Exchanges:
    """A few options of every group, `(groups, few)`; repeated where there are fewer."""

    size: Places
    cost: Floats
    place: Places


def _exchange_tables(groups: Sequence[Group], relaxed: _Relaxed) -> _Exchanges:
    places = np.empty((len(groups), _EXCHANGED), dtype=np.int64)
    for row, group in zip(places, groups, strict=True):
        reduced = group.cost + relaxed.rate * group.size
        few = np.argsort(reduced, kind="stable")[:_EXCHANGED]
        row[:] = few[np.minimum(np.arange(_EXCHANGED), len(few) - 1)]
    pairs = list(zip(groups, places, strict=True))
    size = np.array([g.size[p] for g, p in pairs], dtype=np.int64).reshape(places.shape)
    cost = np.array([g.cost[p] for g, p in pairs], dtype=np.float64).reshape(places.shape)
    return _Exchanges(size, cost, places)


def _best_exchange(
    groups: Sequence[Group], tables: _Exchanges, places: Sequence[int], left: int
) -> Move:
    """The first group's options against those of all others, one group after another."""
    now = list(zip(groups, places, strict=True))
    size = tables.size - np.asarray([[int(g.size[p])] for g, p in now]).reshape(-1, 1)
    cost = tables.cost - np.asarray([[float(g.cost[p])] for g, p in now]).reshape(-1, 1)
    best = -_ROUNDING * float(np.abs(tables.cost).max(initial=0.0))
    move: Move = []
    for index in range(len(groups) - 1):
        total = cost[index][:, None, None] + cost[index + 1 :]
        fits = size[index][:, None, None] + size[index + 1 :] <= left
        total = np.where(fits, total, np.inf)
        at = int(np.argmin(total))
        if total.flat[at] < best:
            own, other, option = (int(i) for i in np.unravel_index(at, total.shape))
            best = float(total.flat[at])
            move = [
                (index, int(tables.place[index, own])),
                (index + 1 + other, int(tables.place[index + 1 + other, option])),
            ]
    return move


@dataclass(slots=True, eq=False)
class _Partial:
    """Choices for some of the groups: sizes rise, costs fall, nothing dominated.

    Attributes:
        size: Beyond the smallest options, int64 `(n,)`.
        cost: Float64 `(n,)`.
        reduced: Sum of reduced costs.
        steps: For each merged group, its index, and for every entry the entry before and the place.
    """

    size: Places
    cost: Floats
    reduced: Floats
    steps: list[tuple[int, NDArray[np.int32], NDArray[np.int32]]]

    @classmethod
    def empty(cls) -> _Partial:
        return cls(np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1), [])

    def thin(self, most: int) -> None:
        """Forget entries, evenly over the sizes, until there are at most so many."""
        if len(self.size) > most:
            kept = np.linspace(0, len(self.size) - 1, most).astype(np.int64)
            self.size, self.cost, self.reduced = (
                self.size[kept],
                self.cost[kept],
                self.reduced[kept],
            )
            index, before, place = self.steps[-1]
            self.steps[-1] = (index, before[kept], place[kept])

    def merge(self, index: int, options: _Options, gap: float, capacity: int) -> None:
        """Add a group."""
        size = (self.size[:, None] + options.size).ravel()
        reduced = (self.reduced[:, None] + options.reduced).ravel()
        found = np.flatnonzero((reduced <= gap) & (size <= capacity))
        cost = (self.cost[:, None] + options.cost).ravel()[found]
        order = np.lexsort((cost, size[found]))
        cost = cost[order]
        falling = cost < np.append(np.inf, np.minimum.accumulate(cost)[:-1])
        found, self.cost = found[order][falling], cost[falling]
        self.size, self.reduced = size[found], reduced[found]
        before, choice = np.divmod(found, len(options.place))
        self.steps.append((index, before.astype(np.int32), options.place[choice].astype(np.int32)))

    def trace(self, entry: int, places: list[int]) -> None:
        for index, before, place in reversed(self.steps):
            places[index] = int(place[entry])
            entry = int(before[entry])


@dataclass(frozen=True, slots=True, eq=False)
class _Options:
    size: Places
    cost: Floats
    reduced: Floats
    place: Places


def _search(
    groups: Sequence[Group], relaxed: _Relaxed, capacity: int, cost: float
) -> tuple[list[int] | None, bool]:
    """A choice that costs less than `cost`, if there is one, and whether all were looked at."""
    slack = _slack(groups, relaxed.bound)
    gap = cost - relaxed.bound + slack
    kept = []
    for index, group in enumerate(groups):
        reduced = group.cost + relaxed.rate * group.size
        reduced = reduced - reduced.min()
        place = np.flatnonzero(reduced <= gap)
        kept.append((index, _Options(group.size[place], group.cost[place], reduced[place], place)))
    # What prunes most comes first, and both halves get their part of it.
    kept.sort(key=lambda item: (len(item[1].place) == 1, -_second(item[1].reduced), item[0]))
    halves = (_Partial.empty(), _Partial.empty())
    complete = True
    for index, options in kept:
        half = halves[int(len(halves[1].size) < len(halves[0].size))]
        complete &= len(half.size) * len(options.place) <= _MOST
        if not complete:
            half.thin(_THIN)
        half.merge(index, options, gap, capacity)
    return _joined(*halves, len(groups), capacity, cost), complete


def _second(reduced: Floats) -> float:
    return float(np.sort(reduced)[1]) if len(reduced) > 1 else 0.0


def _joined(
    low: _Partial, high: _Partial, groups: int, capacity: int, cost: float
) -> list[int] | None:
    """The best pair of entries of both halves that fits."""
    if not len(low.size) or not len(high.size):
        return None
    partner = np.searchsorted(high.size, capacity - low.size, side="right") - 1
    total = np.where(partner >= 0, low.cost + high.cost[np.maximum(partner, 0)], np.inf)
    best = int(np.argmin(total))
    if not total[best] < cost:
        return None
    places = [0] * groups
    low.trace(best, places)
    high.trace(int(partner[best]), places)
    return places
