"""How well a surrogate predicts what it was not told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined; `None` where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
