"""Units of weights that live or die together: their norms, and which of them stay.

A weight is seen as a matrix `(rows, cols)`: outputs by everything that one output reads. A pattern
cuts it into units; the norm of a unit is the root of its sum of squares, and of every layer the
first units of a fixed order are kept. Single weights are the finest pattern.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passes.projection.magnitudes import Histogram, top_mask

# About 8 MiB of float64 at once.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Layout(ABC):
    """How a pattern cuts one weight into units.

    Attributes:
        rows: Outputs of the weight.
        cols: Weights of one output.
    """

    rows: int
    cols: int

    @property
    @abstractmethod
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of (units, weights in each of them), in the order in which units are kept."""

    @abstractmethod
    def norms(self, weight: Tensor) -> Tensor:
        """Root of the sum of squares of every unit, float64; the first units are not smaller.

        Args:
            weight: Tensor of `rows * cols` elements; not finite where a weight is not.
        """

    @abstractmethod
    def mask(self, weight: Tensor, count: int, counted: Histogram | None = None) -> Tensor:
        """Mark the weights of the `count` first units.

        Args:
            weight: As for `norms`.
            count: Units to keep.
            counted: Histogram of the norms, if it is at hand.

        Returns:
            Boolean tensor of the shape of `weight`; the best of its kind: no other choice of so
            many units keeps a larger sum of squares. Ties break by index.
        """

    @property
    def forced(self) -> int:
        """Units that are kept whatever the budget."""
        return 0

    @property
    def units(self) -> int:
        """Number of units."""
        return sum(units for units, _ in self.runs)

    @property
    def unit_weights(self) -> int:
        """Weights in each of the units whose fate is open."""
        return self.runs[-1][1]

    def weights_of(self, count: int) -> int:
        """Weights in the first `count` units."""
        total = 0
        for units, weights in self.runs:
            total += max(0, min(count, units)) * weights
            count -= units
        return total

    def units_of(self, weights: int) -> int:
        """The least number of units that hold so many weights, or all units."""
        done = 0
        for units, each in self.runs:
            if weights <= units * each:
                return done + max(0, -(-weights // each))
            done, weights = done + units, weights - units * each
        return done


@dataclass(frozen=True, slots=True)
class SingleWeights(Layout):
    """Every weight by itself, in order of magnitude.

    Attributes:
        dense: Why a pattern does not fit, so that every weight stays; empty when none was asked.
    """

    dense: str = ""

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """One weight a unit."""
        return ((self.rows * self.cols, 1),)

    @property
    def forced(self) -> int:
        """All of them, where a pattern does not fit."""
        return self.rows * self.cols if self.dense else 0

    def norms(self, weight: Tensor) -> Tensor:
        """The weight itself: only magnitudes are read."""
        return weight

    def mask(self, weight: Tensor, count: int, counted: Histogram | None = None) -> Tensor:
        """The largest magnitudes; see `top_mask`."""
        return top_mask(weight, count, counted)


@dataclass(frozen=True, slots=True)
class Tiles(Layout):
    """Tiles of `height` x `width` weights, in order of norm; they divide the matrix.

    Attributes:
        height: Rows of a tile.
        width: Columns of a tile.
    """

    height: int
    width: int

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Tiles of one size."""
        size = self.height * self.width
        return ((self.rows * self.cols // size, size),)

    def norms(self, weight: Tensor) -> Tensor:
        """Norms of shape `(rows / height, cols / width)`."""
        return torch.from_numpy(np.sqrt(self._squares(weight)))

    def mask(self, weight: Tensor, count: int, counted: Histogram | None = None) -> Tensor:
        """The tiles with the largest norms."""
        kept = top_mask(self.norms(weight), count, counted)
        full = kept.repeat_interleave(self.height, 0).repeat_interleave(self.width, 1)
        return full.to(weight.device).view(weight.shape)

    def _squares(self, weight: Tensor) -> NDArray[np.float64]:
        return tile_squares(weight.reshape(self.rows, self.cols), self.height, self.width)


@dataclass(frozen=True, slots=True)
class GroupedColumns(Layout):
    """Groups of consecutive rows, each with its own columns, equally many in every group.

    A unit is the next column of every group: the `j`-th unit holds each group's `j`-th largest, so
    that `k` units are `k` columns in each group and batched products of one shape serve all groups.

    Attributes:
        height: Rows of a group.
    """

    height: int

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """As many units as columns, one weight of every row in each."""
        return ((self.cols, self.rows),)

    def norms(self, weight: Tensor) -> Tensor:
        """Norms of shape `(cols,)`, in descending order."""
        ordered = np.sort(self._squares(weight), axis=1)[:, ::-1]
        return torch.from_numpy(np.sqrt(ordered.sum(axis=0)))

    def mask(self, weight: Tensor, count: int, counted: Histogram | None = None) -> Tensor:
        """The `count` columns of every group with the largest norms."""
        squares = self._squares(weight)
        order = np.argsort(-squares, axis=1, kind="stable")[:, :count]
        kept = np.zeros(squares.shape, dtype=np.bool_)
        np.put_along_axis(kept, order, True, axis=1)
        full = torch.from_numpy(kept).repeat_interleave(self.height, 0)
        return full.to(weight.device).view(weight.shape)

    def _squares(self, weight: Tensor) -> NDArray[np.float64]:
        return tile_squares(weight.reshape(self.rows, self.cols), self.height, 1)


@dataclass(frozen=True, slots=True)
class Runs(Layout):
    """Of every `m` consecutive weights of a row, `n` stay; or all, if the layer is left dense.

    Two units: what the pattern keeps, always, and the rest, which stays or goes as a whole.

    Attributes:
        n: Weights that stay.
        m: Weights of a run; divides `cols`.
    """

    n: int
    m: int

    @property
    def forced(self) -> int:
        """What the pattern keeps."""
        return 1

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """What the pattern keeps, and the rest."""
        size = self.rows * self.cols
        kept = size // self.m * self.n
        return ((1, kept), (1, size - kept))

    def norms(self, weight: Tensor) -> Tensor:
        """Norms of the whole weight and of the rest, shape `(2,)`.

        The first stands for what is kept in any case, so that only its rank matters: it is never
        below the second, however small `n` is.
        """
        total = float(tile_squares(weight.reshape(1, -1), 1, self.m).sum())
        rest = weight.detach().masked_fill(self._largest(weight), 0.0)
        dropped = float(tile_squares(rest.reshape(1, -1), 1, self.m).sum())
        return torch.tensor([total, dropped], dtype=torch.float64).sqrt()

    def mask(self, weight: Tensor, count: int, counted: Histogram | None = None) -> Tensor:
        """The `n` largest of every run for one unit, everything for two."""
        if count == 1:
            return self._largest(weight)
        return torch.full_like(weight, count > 1, dtype=torch.bool)

    def _largest(self, weight: Tensor) -> Tensor:
        magnitudes = weight.detach().abs().reshape(-1, self.m)
        order = torch.argsort(magnitudes, dim=1, descending=True, stable=True)[:, : self.n]
        kept = torch.zeros_like(magnitudes, dtype=torch.bool).scatter_(1, order, True)
        return kept.view(weight.shape)


def tile_squares(matrix: Tensor, height: int, width: int) -> NDArray[np.float64]:
    """Sums of squares of tiles.

    In numpy, whose order of summation does not depend on the number of threads.

    Args:
        matrix: Shape `(rows, cols)`, any device and floating dtype.
        height: Rows of a tile; divides `rows`.
        width: Columns of a tile; divides `cols`.

    Returns:
        float64 array `(rows / height, cols / width)`.
    """
    rows, cols = matrix.shape
    result = np.empty((rows // height, cols // width))
    # Bands of whole tiles, a bounded part of the matrix at a time.
    bands = max(1, _CHUNK // max(height * cols, 1))
    across = max(1, _CHUNK // (height * width)) * width
    places = itertools.product(range(0, rows // height, bands), range(0, cols, across))
    for top, left in places:
        part = matrix.detach()[top * height : (top + bands) * height, left : left + across]
        squares = np.square(part.to("cpu", torch.float64).numpy())
        tiles = squares.reshape(-1, height, squares.shape[1] // width, width)
        sums = tiles.sum(axis=(1, 3))
        result[top : top + len(sums), left // width : left // width + sums.shape[1]] = sums
    return result
