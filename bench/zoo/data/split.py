"""Which rows are for training and which for validation: by class, from a seed of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError

Rows = NDArray[np.int64]

_PARTS = 10


def stratified_split(labels: Rows, seed: int) -> tuple[Rows, Rows]:
    """Train and valid rows: a tenth of all, and of each class as nearly as that allows.

    Args:
        labels: The class of each row of the official training set, `(N,)`.
        seed: Seed of the choice.

    Returns:
        Two disjoint ascending arrays that together are all rows.
    """
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    valid = [
        generator.permutation(np.flatnonzero(labels == label))[:share]
        for label, share in zip(classes, _tenths(counts), strict=True)
    ]
    chosen = np.sort(np.concatenate(valid))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _tenths(counts: Rows) -> Rows:
    """A tenth of each count; what rounding down leaves goes to the largest remainders."""
    shares, remainders = np.divmod(counts, _PARTS)
    left = int(counts.sum()) // _PARTS - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:left]] += 1
    return shares


def balanced_subset(labels: Rows, rows: Rows, count: int, seed: int) -> Rows:
    """A part of the rows with equally many of each class.

    Args:
        labels: The class of every row of the data set, `(N,)`.
        rows: The rows to choose from.
        count: How many; the first classes get one more where it does not divide.
        seed: Seed of the choice. A smaller count chooses a part of what a larger one does.

    Returns:
        `count` rows, ascending.

    Raises:
        ArgumentError: A class has too few rows.
    """
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    chosen = []
    for position, label in enumerate(classes):
        share = count // len(classes) + (position < count % len(classes))
        mine = rows[labels[rows] == label]
        if share > len(mine):
            raise ArgumentError(
                f"the subset needs {share} images of class {label}, there are {len(mine)}",
                where="data",
                remedy="Ask for a smaller subset, or for none to take all images.",
            )
        chosen.append(generator.permutation(mine)[:share])
    return np.sort(np.concatenate(chosen))
