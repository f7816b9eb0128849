"""The values of one tensor in order, and their sums over stretches.

Values are divided by a power of two, which is exact, so that the largest magnitude lies in
[0.5, 1): the smallest and the largest floats are treated alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_model.errors import PreconditionError

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

# Sums are stored at every so many values.
_BLOCK = 64
# Values at a time: about 1 MiB of float32.
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Points in descending order of magnitude, or in ascending order if they have both signs.

    A point stands for equal values, or for neighbouring ones that stay together.

    Attributes:
        count: Values in each point, float64 of shape `(n,)`.
        first: Sum of its values.
        second: Sum of their squares.
        spread: Sum of squares about the point's own mean; 0 for equal values.
    """

    count: Floats
    first: Floats
    second: Floats
    spread: Floats

    @classmethod
    def of_values(cls, values: Floats, count: Places) -> Run:
        """Points of equal values, in the order given."""
        weight = count.astype(np.float64)
        return cls(weight, weight * values, weight * values**2, np.zeros(len(values)))

    @property
    def size(self) -> int:
        """Number of points."""
        return len(self.count)

    def tail(self) -> Floats:
        """Sum of squares from each place on, `(n + 1,)`: what coding the rest as zero costs."""
        return np.append(np.cumsum(self.second[::-1])[::-1], 0.0)

    def values_before(self) -> Places:
        """Number of values before each place, `(n + 1,)`."""
        return np.append(0, np.cumsum(self.count)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class SortedValues:
    """The values of a tensor in ascending order.

    Attributes:
        raw: As they are in the tensor, float32 or float64 of shape `(n,)`.
        exponent: They are divided by two to the power of this.
        blocks: Sums of the first 0, 64, 128, ... divided values and of their squares.
    """

    raw: NDArray[np.floating]
    exponent: int
    blocks: tuple[Floats, Floats]

    @classmethod
    def of(cls, tensor: Tensor, *, zeros: bool, magnitudes: bool = False) -> SortedValues:
        """Sort the values of a tensor of any shape and floating dtype.

        Args:
            tensor: Read only.
            zeros: Whether exact zeros belong to the values.
            magnitudes: Take the absolute values.

        Raises:
            PreconditionError: A value is not finite or beyond float32.
        """
        raw = np.sort(_checked(tensor, zeros=zeros, magnitudes=magnitudes))
        largest = max(abs(float(raw[0])), abs(float(raw[-1]))) if len(raw) else 0.0
        exponent = math.frexp(largest)[1]
        return cls(raw, exponent, _block_sums(raw, exponent))

    @classmethod
    def of_divided(cls, values: Floats) -> SortedValues:
        """Values that need no division, in any order."""
        raw = np.sort(values)
        return cls(raw, 0, _block_sums(raw, 0))

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.raw)

    def at(self, ranks: Places) -> Floats:
        """The divided values of some ranks."""
        result: Floats = np.ldexp(self.raw[ranks].astype(np.float64), -self.exponent)
        return result

    def distinct(self, most: int) -> tuple[Floats, Places] | None:
        """The distinct divided values and their counts, or `None` if there are more than `most`."""
        starts: list[Places] = []
        found = 0
        for low in range(0, self.size, _CHUNK):
            part = self.raw[max(low - 1, 0) : low + _CHUNK]
            new = np.flatnonzero(part[1:] != part[:-1]) + max(low - 1, 0) + 1
            starts.append(new)
            found += len(new)
            if found >= most:
                return None
        first = np.concatenate([np.zeros(min(self.size, 1), dtype=np.int64), *starts])
        values = np.ldexp(self.raw[first].astype(np.float64), -self.exponent)
        return values, np.diff(np.append(first, self.size))

    def place(self, bounds: Floats) -> Places:
        """How many divided values lie below each bound."""
        # Compared in the values' own type, else numpy would copy all of them.
        limits = np.ldexp(bounds, self.exponent).astype(self.raw.dtype)
        return np.searchsorted(self.raw, limits).astype(np.int64)

    def sums(self, places: Places) -> tuple[Floats, Floats]:
        """Sums of the first `places` divided values, and of their squares; shape of `places`."""
        block = places // _BLOCK
        index = block[..., None] * _BLOCK + np.arange(_BLOCK)
        inside = index < places[..., None]
        found = self.raw[np.minimum(index, max(self.size - 1, 0))].astype(np.float64)
        rest = np.where(inside, np.ldexp(found, -self.exponent), 0.0)
        first, second = self.blocks
        return first[block] + rest.sum(axis=-1), second[block] + np.square(rest).sum(axis=-1)

    def run(self, places: Places) -> Run:
        """Points of the values between consecutive places.

        Args:
            places: Ascending, no two of them equal.
        """
        total, squares = (np.diff(sums) for sums in self.sums(places))
        count = np.diff(places).astype(np.float64)
        return Run(count, total, squares, np.maximum(squares - total**2 / count, 0.0))


def _checked(tensor: Tensor, *, zeros: bool, magnitudes: bool) -> NDArray[np.floating]:
    """A copy of the values as float32, or as float64 if they are."""
    flat = tensor.detach().reshape(-1)
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    values = flat.to("cpu", wide).numpy()
    limit = float(np.finfo(np.float32).max)
    good = 0
    for low in range(0, len(values), _CHUNK):
        good += int(np.count_nonzero(np.abs(values[low : low + _CHUNK]) <= limit))
    if good < len(values):
        raise PreconditionError(
            f"{len(values) - good} of {len(values)} values are NaN, infinite or beyond float32",
            remedy="Repair or retrain the model first: no codebook fits such weights.",
        )
    values = values if zeros else values[values != 0]
    return np.abs(values) if magnitudes else values


def _block_sums(raw: NDArray[np.floating], exponent: int) -> tuple[Floats, Floats]:
    first, second = [np.zeros(1)], [np.zeros(1)]
    for low in range(0, len(raw), _CHUNK):
        part = np.ldexp(raw[low : low + _CHUNK].astype(np.float64), -exponent)
        starts = np.arange(0, len(part), _BLOCK)
        first.append(np.add.reduceat(part, starts))
        second.append(np.add.reduceat(part * part, starts))
    return np.cumsum(np.concatenate(first)), np.cumsum(np.concatenate(second))
