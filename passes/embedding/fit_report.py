"""How well a surrogate predicts what it was not told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FitReport:
    """Quality of a fitted surrogate.

    Attributes:
        surrogate: Its name.
        points: Observations that it was given.
        r2: Share of the variance of the targets that is predicted of each from all others, at most
            1, the mean over the kernels; `None` where the targets have no variance. Optimistic of
            learned embeddings.
        rank_correlation: Likewise Spearman's, from -1 to 1; `None` where it is not defined.
        held_out: Rank correlation over all pairs of a kernel and an observation that it never
            learned from; `None` where there are too few.
    """

    surrogate: str
    points: int
    r2: float | None
    rank_correlation: float | None
    held_out: float | None = None

    @property
    def trust(self) -> float | None:
        """The rank correlation that says most: `held_out`, or else that of leaving one out."""
        return self.rank_correlation if self.held_out is None else self.held_out

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def explained(targets: Sequence[float], predicted: Sequence[float]) -> float | None:
    """R^2: the share of the variance of the targets that predictions explain.

    Returns:
        At most 1, below 0 where the mean predicts better; `None` where all targets are equal.
    """
    truth, guess = np.asarray(targets, float), np.asarray(predicted, float)
    total = float(((truth - truth.mean()) ** 2).sum()) if len(truth) else 0.0
    return 1 - float(((truth - guess) ** 2).sum()) / total if total else None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of paired values, from -1 to 1; equal values share their rank.

    Returns:
        `None` for fewer than two pairs, or where one side is constant.
    """
    a, b = _centred_ranks(first), _centred_ranks(second)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined; `None` where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _centred_ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    centred: NDArray[np.float64] = ranks - (len(values) + 1) / 2
    return centred
