from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.joint.clusters import Clusters
from passes.joint.points import Run


def brute(values, count, clusters):
    """D[c][j] by its definition."""
    n = len(values)
    table = np.full((clusters + 1, n + 1), np.inf)
    table[:, 0] = 0.0

    def sse(i, j):
        mean = np.average(values[i:j], weights=count[i:j])
        return float(count[i:j] @ (values[i:j] - mean) ** 2)

    for c in range(1, clusters + 1):
        for j in range(1, n + 1):
            table[c, j] = min(table[c - 1, i] + sse(i, j) for i in range(j))
    return table


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=18, unique=True),
    counts=st.lists(st.integers(1, 4), min_size=18, max_size=18),
    clusters=st.integers(1, 7),
)
def test_rows_are_those_of_the_definition(values, counts, clusters):
    values, count = np.sort(values), np.asarray(counts[: len(values)])
    rows = Clusters(Run.of_values(values, count))
    rows.extend(clusters)
    expected = brute(values, count, clusters)
    for c in range(1, clusters + 1):
        assert rows.errors[c] == pytest.approx(expected[c], abs=1e-10)


@pytest.mark.parametrize("clusters", [1, 2, 3, 9, 40, 200])
def test_the_clusters_have_the_error_of_their_row(clusters):
    values = np.sort(np.random.default_rng(0).standard_t(3, size=150))
    rows = Clusters(Run.of_values(values, np.ones(150, dtype=np.int64)))
    rows.extend(clusters)
    for stop in (0, 1, 7, 150):
        if not stop:
            assert rows.bounds(clusters, stop) == [0]
            continue
        bounds = rows.bounds(clusters, stop)
        means = rows.means(clusters, stop)
        assert bounds[0] == 0
        assert bounds[-1] == stop
        assert len(means) <= clusters
        error = sum(
            float(((values[i:j] - m) ** 2).sum())
            for i, j, m in zip(bounds, bounds[1:], means, strict=False)
        )
        assert error == pytest.approx(rows.errors[clusters][stop], abs=1e-10)


def test_a_long_skewed_run_is_solved_as_short_rows_are():
    # Large strides and uneven ranges; the definition is too slow for all places.
    values = np.sort(np.random.default_rng(1).lognormal(sigma=3, size=700))
    rows = Clusters(Run.of_values(values, np.ones(700, dtype=np.int64)))
    rows.extend(6)
    second = np.concatenate([[0.0], np.cumsum(values**2)])
    first = np.concatenate([[0.0], np.cumsum(values)])
    for c in range(2, 7):
        for j in (1, 2, 350, 513, 699, 700):
            i = np.arange(j)
            each = second[j] - second[i] - (first[j] - first[i]) ** 2 / (j - i)
            best = float((rows.errors[c - 1][i] + each).min())
            assert rows.errors[c][j] == pytest.approx(best, rel=1e-6, abs=1e-9 * second[-1])


def test_what_points_spread_counts():
    spread = np.asarray([0.5, 0.25])
    run = Run(np.asarray([2.0, 2.0]), np.asarray([2.0, 8.0]), np.asarray([2.5, 32.25]), spread)
    rows = Clusters(run)
    rows.extend(2)
    assert rows.errors[2].tolist() == [0.0, 0.5, 0.75]
    assert rows.errors[1][2] == pytest.approx(0.75 + 4 * 1.5**2)
