"""How a finished weight is written: integer codes and the scales that they are multiplied by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PostconditionError

WIDTHS = range(2, 9)
"""Widths of weights, in bits."""


def snap(scale: Tensor) -> Tensor:
    """Round scales to 16 significant bits, so that scale times code is exact in float32.

    The relative change is below 2^-16. A product with a code of at most eight bits then needs no
    more than the 24 bits that a float32 has, and quantizing it again gives the same code.

    Args:
        scale: Positive scales, any shape.
    """
    mantissa, exponent = torch.frexp(scale.detach().to(torch.float32))
    return torch.ldexp(torch.round(mantissa * 2.0**16) / 2.0**16, exponent)


def largest_code(bits: int) -> int:
    """The largest code of the symmetric grid `-K ... K`: K = 2^(bits - 1) - 1."""
    return int(2 ** (bits - 1) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """A uniform symmetric grid for a weight: every element is a code times its scale.

    The weight is seen as a matrix: one row per index along `axis` (an output channel), everything
    else in order as columns. Zero is always a level, so masks survive.

    Attributes:
        bits: Stored width of a code, 2 to 8; codes are `-K ... K` with K = 2^(bits - 1) - 1.
        scale: float32 of shape `(rows, blocks)`, positive, with 16 significant bits (`snap`).
        axis: Dimension of the output channels: 0, or 1 for transposed convolutions.
        block: Columns that share a scale; `None`: all columns of a row.

    Raises:
        ArgumentError: A width or a scale that is not allowed.
    """

    bits: int
    scale: Tensor
    axis: int = 0
    block: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ArgumentError(
                f"a weight of {self.bits!r} bits",
                where="Encoding.bits",
                remedy=f"Widths are {WIDTHS[0]} to {WIDTHS[-1]}.",
            )
        scale = self.scale
        if scale.dim() != 2 or scale.dtype != torch.float32 or not bool((scale > 0).all()):
            raise ArgumentError(
                "scales are not positive float32 of shape (rows, blocks)", where="Encoding.scale"
            )

    @property
    def largest(self) -> int:
        """The largest code."""
        return largest_code(self.bits)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as `(rows, cols)`; a copy unless `axis` is 0.

        A part of a larger parameter is flat, of shape `(rows * cols,)`.
        """
        if weight.dim() == 1:
            return weight.reshape(len(self.scale), -1)
        return weight.movedim(self.axis, 0).reshape(weight.shape[self.axis], -1)

    def restored(self, matrix: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """A matrix in the layout of the weight of that shape; the inverse of `matrix`."""
        moved = [shape[self.axis], *(s for i, s in enumerate(shape) if i != self.axis)]
        return matrix.reshape(moved).movedim(0, self.axis)

    def scales(self, cols: int) -> Tensor:
        """The scale of every element of a matrix with so many columns: broadcasts against it."""
        if self.block is None:
            return self.scale
        return self.scale.repeat_interleave(self.block, dim=1)[:, :cols]

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest code of every element, ties to even: int8 in the weight's own layout."""
        matrix = self.matrix(weight.detach())
        codes = torch.round(matrix / self.scales(matrix.shape[1]).to(matrix.device))
        codes = codes.clamp(-self.largest, self.largest).to(torch.int8)
        return self.restored(codes, weight.shape)

    def weight(self, codes: Tensor) -> Tensor:
        """The float32 weight of codes; codes in the weight's own layout."""
        matrix = self.matrix(codes).to(torch.float32)
        values = matrix * self.scales(matrix.shape[1]).to(matrix.device)
        # A negative code of zero does not exist, but -0.0 would: adding 0 removes it.
        return self.restored(values + 0.0, codes.shape)

    def nearest(self, weight: Tensor) -> Tensor:
        """The weight with every element at its nearest level; idempotent bit for bit."""
        return self.weight(self.codes(weight)).to(weight.dtype)

    def holds(self, weight: Tensor) -> bool:
        """Whether every element lies on its grid, bit for bit."""
        return bool(torch.equal(self.nearest(weight), weight.detach()))

    def check(self, weight: Tensor, name: str) -> None:
        """Raise unless the weight is what this encoding can write.

        Raises:
            PostconditionError: An element lies off its grid.
        """
        if not self.holds(weight):
            raise PostconditionError(
                f"the weight is not on its grid of {self.bits} bits",
                where=name,
                remedy="This is an error of the method; please report it with the model.",
            )

    def rows(self, index: Tensor) -> Encoding:
        """The encoding of some of the rows.

        Args:
            index: Which ones, int64 of shape `(n,)`.
        """
        return replace(self, scale=self.scale[index.to(self.scale.device)])

    def scaled(self, factors: Tensor) -> tuple[Encoding, Tensor]:
        """The encoding after every row is multiplied by a factor, as folding a batch norm does.

        Args:
            factors: One per row, any sign; a factor of zero is allowed.

        Returns:
            The encoding, its scales snapped again, and the sign of every row: codes are to be
            multiplied by it (-1, 0 or 1).
        """
        positive = factors.detach().abs().to(torch.float64)
        product = self.scale.to(torch.float64) * positive.view(-1, 1).to(self.scale.device)
        # The row of a zero factor has only zeros: its scale does not matter, but must be positive.
        kept = torch.where(product > 0, product, self.scale.to(torch.float64))
        return replace(self, scale=snap(kept.to(torch.float32))), torch.sign(factors.detach())
