"""Levels of a codebook that may lie anywhere: the least squared error, not a local optimum.

    min over C, |C| = K  of  sum_j min over c in C or c = 0  of (x_j - c)^2

With zero reserved, what lies between the smallest levels of both signs is coded as zero; positive
and negative values share nothing but the number K. Each side is a row of exact interval clusterings
(`Clusters`) with the squares of what it leaves to zero. Because squared errors are Monge, a side
gains less with every further cluster: the sides take turns by gain, so that one dynamic programme
serves all K.

Up to `MOST_DISTINCT` distinct values the result is exact. Beyond, neighbours are put together, as
densely as the cube root of the density says (the spacing of the best levels; Panter and Dite 1951),
and Lloyd iterations on the values themselves settle where the clusters meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from passes.joint.clusters import Clusters
from passes.joint.points import Floats, Places, Run, SortedValues

MOST_DISTINCT = 20_000
"""More distinct values are put together."""

# Points that they are put together to, and the stretches that these are chosen among.
_POINTS = 2048
_FINE = 4096
_OUTER = 64
_LLOYD = 20


@dataclass(slots=True, eq=False)
class Side:
    """Clusterings of the values of one sign, from the largest magnitude on, or of all values.

    Attributes:
        rows: The clusterings.
        tail: What coding the rest as zero costs, `(n + 1,)`; `None`: nothing may be zero.
    """

    rows: Clusters
    tail: Floats | None

    def error(self, clusters: int) -> float:
        """Least squared error with so many clusters."""
        self.rows.extend(clusters)
        row = self.rows.errors[clusters]
        return float(row[-1] if self.tail is None else (row + self.tail).min())

    def levels(self, clusters: int) -> Floats:
        """Means of the clusters."""
        row = self.rows.errors[clusters]
        stop = len(row) - 1 if self.tail is None else int(np.argmin(row + self.tail))
        return self.rows.means(clusters, stop) if clusters else np.empty(0)


@dataclass(slots=True, eq=False)
class FreeLevels:
    """The best levels for growing numbers of them, in units of the divided values.

    Attributes:
        values: The sorted values; without zeros if zero is reserved.
        reserved_zero: Whether zero is a further level for free.
        distinct: The distinct values, each a point of its own; `None` if they are too many.
    """

    values: SortedValues
    reserved_zero: bool
    distinct: Floats | None = field(init=False)
    _sides: list[Side] = field(init=False)
    _shares: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        found = self.values.distinct(MOST_DISTINCT)
        self.distinct = None if found is None else found[0]
        run = Run.of_values(*found) if found else self.values.run(coarse_places(self.values))
        self._sides = split(run) if self.reserved_zero else [Side(Clusters(run), None)]
        self._sides = [side for side in self._sides if side.rows.run.size]
        self._shares = [tuple(0 if self.reserved_zero else 1 for _ in self._sides)]

    def levels(self, most: int) -> Floats:
        """At most so many levels, ascending.

        Args:
            most: At least 1.
        """
        if self.distinct is not None and len(self.distinct) <= most:
            return self.distinct
        share = self._share(most)
        parts = [side.levels(n) for side, n in zip(self._sides, share, strict=True)]
        levels = np.sort(np.concatenate([np.empty(0), *parts]))
        return levels if self.distinct is not None else self._settled(levels)

    def error(self, most: int) -> float:
        """Squared error of `levels(most)`, in squares of the divided values."""
        if self.distinct is not None and len(self.distinct) <= most:
            return 0.0
        if self.distinct is None:
            return self._error(self.levels(most))
        share = self._share(most)
        return float(sum(side.error(n) for side, n in zip(self._sides, share, strict=True)))

    def _share(self, most: int) -> tuple[int, ...]:
        """Levels of each side: the side that gains most by one gets the next."""
        row = most if self.reserved_zero else most - 1
        while len(self._shares) <= row:
            share = self._shares[-1]
            gains = [
                side.error(n) - side.error(n + 1) if n < side.rows.run.size else -np.inf
                for side, n in zip(self._sides, share, strict=True)
            ]
            if max(gains, default=-np.inf) == -np.inf:
                break
            best = int(np.argmax(gains))
            self._shares.append(tuple(n + (place == best) for place, n in enumerate(share)))
        return self._shares[min(row, len(self._shares) - 1)]

    def _settled(self, levels: Floats) -> Floats:
        """Lloyd iterations: bounds in the middle of levels, levels at the means between them."""
        before = np.empty(0, dtype=np.int64)
        for _ in range(_LLOYD):
            places, table = self._cells(levels)
            if np.array_equal(places, before):
                break
            before = places
            count = np.diff(places)
            used = (count > 0) & ((table != 0) | (not self.reserved_zero))
            levels = np.diff(self.values.sums(places)[0])[used] / count[used]
        return levels

    def _error(self, levels: Floats) -> float:
        places, table = self._cells(levels)
        first, second = (np.diff(s) for s in self.values.sums(places))
        each = second - 2 * table * first + table**2 * np.diff(places)
        return float(np.maximum(each, 0.0).sum())

    def _cells(self, levels: Floats) -> tuple[Places, Floats]:
        """Where the values of every level begin and end; and all levels, with a reserved zero."""
        table = np.sort(np.append(levels, 0.0)) if self.reserved_zero else levels
        middle = self.values.place((table[1:] + table[:-1]) / 2)
        return np.concatenate([[0], middle, [self.values.size]]).astype(np.int64), table


def split(run: Run) -> list[Side]:
    """Negative and positive points of an ascending run, each from the largest magnitude on."""
    zero = int(np.searchsorted(run.first, 0.0))
    parts: list[slice] = [slice(0, zero), slice(None, zero - 1 if zero else None, -1)]
    columns = (run.count, run.first, run.second, run.spread)
    sides = [Run(*(column[part] for column in columns)) for part in parts]
    return [Side(Clusters(side), side.tail()) for side in sides]


def coarse_places(values: SortedValues, points: int = _POINTS) -> Places:
    """Where to cut sorted values into points, ascending from 0 to their number.

    No point holds values of both signs. Three quarters of the points follow the cube root of the
    density, the others hold equally many values.

    Args:
        values: At least one.
        points: About how many.
    """
    n = values.size
    ends = values.at(np.asarray([0, n - 1]))
    steps = np.linspace(float(ends[0]), float(ends[1]), _FINE)
    outer = np.arange(min(n, _OUTER))
    fine = np.concatenate(
        [np.linspace(0, n, _FINE).astype(np.int64), values.place(steps), outer, n - outer]
    )
    places = np.unique(np.concatenate([fine, values.place(np.zeros(1))]))
    widths = np.diff(values.at(np.minimum(places, n - 1)))
    share = np.append(0.0, np.cumsum(np.cbrt(np.diff(places) * widths**2)))
    wanted = np.searchsorted(share, np.linspace(0, share[-1], 3 * points // 4))
    even = np.linspace(0, n, points // 4).astype(np.int64)
    zero = values.place(np.zeros(1))
    return np.unique(np.concatenate([places[wanted], even, zero, [0, n]]))


def used(levels: Floats, exponent: int, *, reserved_zero: bool) -> NDArray[np.float32]:
    """Levels of the values themselves as float32, ascending, each once."""
    stored = np.unique(np.ldexp(levels, exponent).astype(np.float32) + np.float32(0))
    return stored[stored != 0] if reserved_zero else stored
