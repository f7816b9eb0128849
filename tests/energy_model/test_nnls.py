"""Nonnegative least squares against all active sets, and the conditions that define its answer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import energy_model.nnls as module
from energy_model.errors import ArgumentError, PostconditionError
from energy_model.nnls import nnls


def residual(matrix, target, x) -> float:
    return float(np.linalg.norm(matrix @ x - target))


def best_of_all_active_sets(matrix, target) -> float:
    """The least residual over every set of positive columns whose plain solution is feasible."""
    columns = matrix.shape[1]
    best = residual(matrix, target, np.zeros(columns))
    for size in range(1, columns + 1):
        for free in map(list, combinations(range(columns), size)):
            x = np.zeros(columns)
            x[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, residual(matrix, target, x))
    return best


@st.composite
def problems(draw, largest: int = 5):
    """Small whole numbers: dependent, repeated and zero columns come often."""
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, largest))
    numbers = st.integers(-3, 3)
    if draw(st.booleans()):
        numbers = st.floats(-10, 10, allow_subnormal=False).map(lambda x: round(x, 3))
    matrix = draw(arrays(np.float64, (rows, columns), elements=numbers))
    return matrix, draw(arrays(np.float64, rows, elements=numbers))


@pytest.mark.slow
@settings(max_examples=200)
@given(problem=problems())
def test_no_active_set_does_better(problem) -> None:
    matrix, target = problem
    x = nnls(matrix, target)
    best = best_of_all_active_sets(matrix, target)
    assert residual(matrix, target, x) <= best + 1e-9 * (1 + np.linalg.norm(target))


@settings(max_examples=200)
@given(problem=problems(largest=9))
def test_karush_kuhn_tucker(problem) -> None:
    matrix, target = problem
    x = nnls(matrix, target)
    descent = matrix.T @ (target - matrix @ x)
    small = 1e-9 * (1 + np.linalg.norm(matrix) * np.linalg.norm(target))
    assert (x >= 0).all()
    assert (descent <= small).all()
    assert (np.abs(descent[x > 0]) <= small).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 30))
def test_recovers_a_planted_solution_with_its_zeros(seed: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    planted = generator.uniform(0.1, 1, columns) * generator.integers(0, 2, columns)
    matrix = generator.standard_normal((3 * columns + 5, columns))
    # Columns of very different length must not disturb the tolerance.
    matrix *= 10.0 ** generator.integers(-6, 7, columns)
    planted /= np.linalg.norm(matrix, axis=0)
    np.testing.assert_allclose(nnls(matrix, matrix @ planted), planted, rtol=1e-9, atol=1e-12)


def test_a_step_gives_up_a_column_that_came_in_first() -> None:
    matrix = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.4, -0.2, -0.2]])
    target = matrix @ [-0.1, 1.0, 1.0]
    # Alone the first column lowers the error most, yet beside the others it would be negative.
    assert np.argmax(matrix.T @ target / np.linalg.norm(matrix, axis=0)) == 0
    x = nnls(matrix, target)
    assert x[0] == 0
    assert (x[1:] > 0).all()
    np.testing.assert_allclose(x[1:], np.linalg.lstsq(matrix[:, 1:], target, rcond=None)[0])


@pytest.mark.parametrize("seed", range(30))
def test_nearly_dependent_columns_do_not_make_it_cycle(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = generator.integers(2, 9, size=2)
    matrix = generator.standard_normal((rows, 1)) @ generator.standard_normal((1, columns))
    matrix += 10.0 ** -generator.integers(5, 16) * generator.integers(-3, 4, (rows, columns))
    target = generator.standard_normal(rows)
    x = nnls(matrix, target)
    assert (x >= 0).all()
    # No worse than any single column: such problems have no exact answer to compare with.
    alone = (np.maximum(0, column @ target) / np.linalg.norm(column) for column in matrix.T)
    least = np.sqrt(target @ target - max(alone) ** 2)
    assert residual(matrix, target, x) <= least * (1 + 1e-9)


@pytest.mark.parametrize(
    ("matrix", "target", "expected"),
    [
        ([[1.0]], [2.0], [2.0]),
        ([[1.0]], [-2.0], [0.0]),
        ([[0.0, 1.0]], [3.0], [0.0, 3.0]),
        ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_by_hand(matrix, target, expected) -> None:
    np.testing.assert_allclose(nnls(matrix, target), expected, atol=1e-15)


def test_repeated_columns_have_one_of_their_solutions() -> None:
    x = nnls([[1.0, 1.0], [1.0, 1.0]], [2.0, 2.0])
    assert x.sum() == pytest.approx(2)
    assert (x >= 0).all()


@pytest.mark.parametrize(
    ("matrix", "target", "words"),
    [
        ([1.0, 2.0], [1.0, 2.0], "does not fit"),
        ([[1.0], [2.0]], [1.0], "does not fit"),
        ([[1.0], [2.0]], [[1.0], [2.0]], "does not fit"),
        (np.zeros((0, 2)), np.zeros(0), "does not fit"),
        (np.zeros((2, 0)), np.zeros(2), "does not fit"),
        ([[np.nan]], [1.0], "not finite"),
        ([[1.0]], [np.inf], "not finite"),
    ],
)
def test_what_is_no_problem_is_refused(matrix, target, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        nnls(matrix, target)


def test_a_method_that_does_not_end_says_so(monkeypatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS_PER_COLUMN", 0)
    with pytest.raises(PostconditionError, match="did not end"):
        nnls(np.eye(2), [1.0, 1.0])
