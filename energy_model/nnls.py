"""Nonnegative least squares, exactly: the active-set method of Lawson and Hanson.

Source: Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from energy_model.errors import ArgumentError, PostconditionError

_ROUNDS_PER_COLUMN = 30


def nnls(matrix: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """The x >= 0 with the least |matrix x - target|.

    Columns that depend on each other are no obstacle: one minimiser of several is returned.

    Args:
        matrix: Shape `(rows, columns)`, of any rank.
        target: Shape `(rows,)`.

    Returns:
        x, shape `(columns,)`; what the constraint holds back is exactly 0.

    Raises:
        ArgumentError: The shapes do not fit, or a number is not finite.
        PostconditionError: The method does not end, which it does for every finite input.
    """
    a, b = _checked(matrix, target)
    norms = np.linalg.norm(a, axis=0)
    # Columns of length 1 make one tolerance right for all of them; a zero column stays out anyway.
    scale = np.where(norms > 0, norms, 1.0)
    a = a / scale
    tolerance = 10 * np.finfo(np.float64).eps * max(a.shape) * float(np.linalg.norm(b))
    x = np.zeros(a.shape[1])
    for _ in range(_ROUNDS_PER_COLUMN * a.shape[1] + 1):
        free = _freed(a, b, x, tolerance)
        if free is None:
            return x / scale
        x = _feasible(a, b, x, free)
    raise PostconditionError(
        "nonnegative least squares did not end", remedy="Please report it with the data."
    )


def _freed(
    a: NDArray[np.float64], b: NDArray[np.float64], x: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_] | None:
    """The positive set and one more column that lowers the error; None when there is no such."""
    descent = a.T @ (b - a @ x)
    descent[x > 0] = -np.inf
    while True:
        best = int(np.argmax(descent))
        if descent[best] <= tolerance:
            return None
        free = x > 0
        free[best] = True
        # Rounding can promise a descent that the solution does not keep; freeing it would cycle.
        if _solved(a, b, free)[best] > 0:
            return free
        descent[best] = -np.inf


def _feasible(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    x: NDArray[np.float64],
    free: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Walk from x towards the solution on `free`, giving up the columns that block the way."""
    while True:
        goal = _solved(a, b, free)
        blocking = free & (goal <= 0)
        if not blocking.any():
            return goal
        reach = np.full_like(x, np.inf)
        reach[blocking] = x[blocking] / (x[blocking] - goal[blocking])
        x = x + reach.min() * (goal - x)
        x[reach == reach.min()] = 0.0  # exactly: rounding must not keep it free
        free = free & (x > 0)
        x[~free] = 0.0


def _solved(
    a: NDArray[np.float64], b: NDArray[np.float64], free: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Plain least squares on the columns in `free`, 0 elsewhere."""
    x = np.zeros(a.shape[1])
    x[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
    return x


def _checked(
    matrix: ArrayLike, target: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(matrix, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if a.ndim != 2 or b.shape != a.shape[:1] or not a.size:
        raise ArgumentError(
            f"a matrix of shape {a.shape} does not fit a target of shape {b.shape}",
            where="nnls",
            remedy="Give shapes (rows, columns) and (rows,), both at least 1.",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ArgumentError(
            "a number is not finite", where="nnls", remedy="Leave out that row or column."
        )
    return a, b
