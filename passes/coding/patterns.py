"""Arrays as bit patterns: a sign and a magnitude for every element, nothing rounded.

Floats are taken apart as they are stored, so that negative zeros, denormals, infinities and every
payload of a NaN survive. Integers are a sign and an absolute value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError
from passes.coding.range_coder import damaged

Array = NDArray[Any]
Level = tuple[bool, int]
"""Whether a value is negative, and its magnitude."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the bits of an element mean.

    Attributes:
        width: Bits of an element.
        signed: Whether there is a sign.
        fraction: Bits of a float's fraction; `None` for integers.
    """

    width: int
    signed: bool
    fraction: int | None = None

    @property
    def exponents(self) -> int:
        """How many values the exponent of a float has."""
        return 1 << (self.width - 1 - (self.fraction or 0))

    @property
    def largest(self) -> int:
        """The largest magnitude."""
        if self.signed:
            return (1 << (self.width - 1)) - (0 if self.fraction is None else 1)
        return (1 << self.width) - 1

    def multiple(self, magnitude: int) -> int | None:
        """A finite magnitude as a multiple of the smallest positive one; else `None`."""
        if self.fraction is None:
            return magnitude
        exponent, rest = magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1)
        if exponent == self.exponents - 1:
            return None
        return rest if exponent == 0 else (rest | 1 << self.fraction) << (exponent - 1)

    def magnitude(self, multiple: int) -> int:
        """The inverse of `multiple`.

        Raises:
            StorageError: The number is not one that an element can hold.
        """
        result = multiple
        if self.fraction is not None and multiple >> self.fraction:
            shift = multiple.bit_length() - self.fraction - 1
            rest = multiple >> shift
            result = (shift << self.fraction) + rest
            if rest << shift != multiple or result >> self.fraction >= self.exponents - 1:
                raise damaged()
        if result > self.largest:
            raise damaged()
        return result


BFLOAT16 = Kind(16, True, 7)
"""Brain floats, which numpy has no type for: given as uint16."""


def kind_of(dtype: np.dtype[np.generic]) -> Kind:
    """What the elements of a type are.

    Raises:
        ArgumentError: The type is not one that can be coded.
    """
    width = 8 * dtype.itemsize
    if dtype.kind == "f" and width in (16, 32, 64):
        return Kind(width, True, {16: 10, 32: 23, 64: 52}[width])
    if dtype.kind in "iub" and width <= 64:
        return Kind(width, dtype.kind == "i")
    raise ArgumentError(
        f"elements of type {dtype} cannot be coded",
        where="passes.coding",
        remedy="View them as unsigned integers of the same size.",
    )


def bits_of(array: Array) -> Array:
    """The elements in order as unsigned integers, shape `(n,)`; a view where it can be."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    return flat.view(f"u{array.dtype.itemsize}")


def array_of(bits: Array, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """The inverse of `bits_of`."""
    native = dtype.newbyteorder("=")
    return bits.view(native).reshape(shape).astype(dtype, copy=False)


def split_bits(bits: Array, kind: Kind) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Sign and magnitude of every element."""
    wide = bits.astype(np.uint64)
    if not kind.signed:
        return np.zeros(len(wide), np.bool_), wide
    negative = (wide >> np.uint64(kind.width - 1)).astype(np.bool_)
    if kind.fraction is None:
        mask = np.uint64((1 << kind.width) - 1)
        return negative, np.where(negative, (~wide + np.uint64(1)) & mask, wide)
    return negative, wide & np.uint64((1 << (kind.width - 1)) - 1)


def join_bits(levels: list[Level], kind: Kind) -> Array:
    """Elements as unsigned integers, from signs and magnitudes; the inverse of `split_bits`."""
    whole, top = 1 << kind.width, 1 << (kind.width - 1)
    if kind.fraction is None:
        patterns = [whole - size if negative and size else size for negative, size in levels]
    else:
        patterns = [size | top if negative else size for negative, size in levels]
    return np.array(patterns, dtype=f"u{kind.width // 8}")


def by_value(level: Level) -> tuple[int, bool]:
    """Sorts levels by value; negative zero comes before zero."""
    negative, size = level
    return (-size if negative else size), not negative
