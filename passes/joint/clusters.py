"""Exact one-dimensional clustering by dynamic programming, for every number of clusters.

    D[c][j] = min over i <= j of  D[c-1][i] + SSE(i .. j-1),        D[1][j] = SSE(0 .. j-1)

is the least sum of squares of the first `j` sorted points about the means of at most `c` clusters,
which are intervals (Fisher 1958). SSE is Monge: the best `i` grows with `j` and with `c`. Of a row,
every s-th place is solved first, with s about n / c, then the places between, each between the best
`i` of its neighbours and not below that of the row before: O(n log(n / c)) for a row, in a few
array operations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from passes.joint.points import Floats, Places, Run


@dataclass(slots=True, eq=False)
class Clusters:
    """Rows of the dynamic programme of one run; `extend` solves the next one.

    Attributes:
        run: The points.
        errors: For each number of clusters, from 0 on, D of every prefix: `(n + 1,)`.
        cuts: From two clusters on, where the last cluster of every prefix begins.
    """

    run: Run
    errors: list[Floats] = field(default_factory=list)
    cuts: list[Places] = field(default_factory=list)
    _sums: tuple[Floats, Floats, Floats] = field(init=False)
    _ranks: Places = field(init=False)

    def __post_init__(self) -> None:
        run, n = self.run, self.run.size
        # About the mean of all, so that little is lost where values lie close together.
        mean = run.first.sum() / max(run.count.sum(), 1.0)
        own = run.first / run.count - mean
        columns = (run.count, run.count * own, run.count * own**2 + run.spread)
        count, first, second = (np.append(0.0, np.cumsum(c)) for c in columns)
        self._sums = (count, first, second)
        nothing = np.append(0.0, np.full(n, np.inf))
        one = np.maximum(second - first**2 / np.maximum(count, 1.0), 0.0)
        one[1:2] = run.spread[:1]
        self.errors += [nothing, one]
        self._ranks = np.arange(4 * n)

    def extend(self, clusters: int) -> None:
        """Solve all rows up to that of so many clusters."""
        while len(self.errors) <= clusters:
            self._next_row()

    def bounds(self, clusters: int, stop: int) -> list[int]:
        """Where the clusters of the first `stop` points begin and end, ascending from 0.

        Args:
            clusters: At most so many; at least 1 if `stop` is positive.
            stop: Number of points.
        """
        found = [stop]
        for number in range(clusters, 1, -1):
            if found[-1] == 0:
                break
            found.append(int(self.cuts[number - 2][found[-1]]))
        return sorted({0, *found})

    def means(self, clusters: int, stop: int) -> Floats:
        """Means of the clusters of the first `stop` points, in the order of the run."""
        bounds = np.asarray(self.bounds(clusters, stop))
        if len(bounds) < 2:
            return np.empty(0)
        first = np.add.reduceat(self.run.first[:stop], bounds[:-1])
        mean: Floats = first / np.add.reduceat(self.run.count[:stop], bounds[:-1])
        return mean

    def _next_row(self) -> None:
        n, clusters = self.run.size, len(self.errors)
        before = self.errors[-1]
        least = self.cuts[-1] if self.cuts else np.zeros(n + 1, dtype=np.int64)
        row, cut = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
        # What does not depend on the end of the last cluster.
        open_ = before - self._sums[2]
        stride = 1 << (n // clusters).bit_length()
        ends = np.arange(stride, n + 1, stride)
        self._solve(open_, ends, least[ends], ends - 1, row, cut)
        while stride > 1:
            stride //= 2
            ends = np.arange(stride, n + 1, 2 * stride)
            low = np.maximum(least[ends], cut[ends - stride])
            high = ends - 1
            inner = ends + stride <= n
            high[inner] = np.minimum(high[inner], cut[ends[inner] + stride])
            self._solve(open_, ends, low, np.maximum(high, low), row, cut)
        # A cluster for each point: no rounding error is to look like a gain.
        row[1 : clusters + 1] = np.cumsum(self.run.spread[:clusters])
        self.errors.append(np.maximum(row, 0.0))
        self.cuts.append(cut)

    def _solve(
        self, open_: Floats, ends: Places, low: Places, high: Places, row: Floats, cut: Places
    ) -> None:
        """Find the best beginning, between `low` and `high`, of the cluster at each of the ends."""
        if not len(ends):
            return
        count, first, second = self._sums
        lengths = high - low + 1
        last = lengths.cumsum()
        starts = last - lengths
        if len(self._ranks) < last[-1]:
            self._ranks = np.arange(2 * int(last[-1]))
        begin = self._ranks[: int(last[-1])] + (low - starts).repeat(lengths)
        part = first[ends].repeat(lengths)
        part -= first[begin]
        part *= part
        part /= count[ends].repeat(lengths) - count[begin]
        np.subtract(open_[begin], part, out=part)
        best = np.minimum.reduceat(part, starts)
        hits = (part == best.repeat(lengths)).nonzero()[0]
        # Of equal ones the first: the last assignment to an index is the one that stays.
        owner = starts.searchsorted(hits, side="right")[::-1] - 1
        cut[ends[owner]] = begin[hits[::-1]]
        row[ends] = best + second[ends]
