"""How alike two lists of values are in their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of paired values, from -1 to 1; equal values share their rank.

    Returns:
        `None` for fewer than two pairs, or where one side is constant.
    """
    if len(first) != len(second):
        raise ArgumentError(f"{len(first)} values against {len(second)}", where="scores")
    a, b = _centred_ranks(first), _centred_ranks(second)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else None


def _centred_ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Mean ranks minus their mean."""
    _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    after = np.cumsum(count)
    ranks = (after - (count - 1) / 2)[place]
    centred: NDArray[np.float64] = ranks - (len(values) + 1) / 2
    return centred
