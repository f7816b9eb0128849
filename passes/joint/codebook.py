"""A codebook for the weights of one layer: a few levels, and zero beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PostconditionError

Kind = Literal["free", "uniform"]
KINDS: tuple[Kind, ...] = ("free", "uniform")
WIDTHS = range(1, 9)
"""Widths of codes, in bits."""

# Values at a time.
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Levels that the values of a tensor are rounded to.

    Attributes:
        levels: float32, ascending, at most `2 ** bits`; without zero if zero is reserved. Levels of
            a uniform grid are `scale * q` as float32, all of them whether or not they are used.
        bits: Width of a code.
        kind: `"free"`: any levels; `"uniform"`: multiples of one scale.
        reserved_zero: Zero is a level of its own that costs no code (Yang, Gui, Zhu, Liu, CVPR
            2020: zeros are pruned weights, known by their positions).
        sse: Sum of squared differences of the values that it was fitted to from their levels, in
            float64; infinite if it was not fitted.
        scale: Distance of the levels of a uniform grid, a float32; 0 for free levels.
    """

    levels: Tensor
    bits: int
    kind: Kind = "free"
    reserved_zero: bool = True
    sse: float = float("inf")
    scale: float = 0.0

    def __post_init__(self) -> None:
        levels = self.levels
        if levels.dim() != 1 or levels.dtype != torch.float32 or len(levels) > 2**self.bits:
            raise ArgumentError(
                f"levels of type {levels.dtype} and shape {tuple(levels.shape)}",
                where="Codebook.levels",
                remedy=f"At most {2**self.bits} float32 numbers have codes of {self.bits} bits.",
            )
        rising = bool((levels[1:] > levels[:-1]).all()) and bool(torch.isfinite(levels).all())
        if not rising or (self.reserved_zero and bool((levels == 0).any())):
            raise ArgumentError(
                "levels are not ascending and finite, or hold the zero that is reserved",
                where="Codebook.levels",
            )

    @property
    def table(self) -> Tensor:
        """The level of every code, float32: zero first if it is reserved."""
        return (
            torch.cat([self.levels.new_zeros(1), self.levels])
            if self.reserved_zero
            else (self.levels)
        )

    def codes(self, values: Tensor) -> Tensor:
        """The code of the nearest level of every value, int64 of the shape of `values`.

        With a reserved zero, 0 stands for zero and `1 + i` for `levels[i]`; else `i` for
        `levels[i]`. Of two levels equally near the one with the smaller magnitude is taken. A
        reserved zero is near to what free levels are not near to; on a uniform grid, whose zero is
        a mask, it belongs to exact zeros alone.

        Raises:
            ArgumentError: There is no level at all, not even zero.
        """
        ordered, code_of_rank = self._ordered()
        flat = values.detach().reshape(-1)
        wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
        bounds = _bounds(ordered, wide).to(flat.device)
        code_of_rank = code_of_rank.to(flat.device)
        codes = torch.empty(flat.shape, dtype=torch.int64, device=flat.device)
        for low in range(0, flat.numel(), _CHUNK):
            part = flat[low : low + _CHUNK].to(wide)
            codes[low : low + _CHUNK] = code_of_rank[torch.bucketize(part, bounds)]
        if self.reserved_zero:
            codes.masked_fill_(flat == 0, 0)
        return codes.view(values.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """The float32 level of every code; shape of `codes`."""
        return self.table.to(codes.device)[codes]

    def nearest(self, values: Tensor) -> Tensor:
        """Every value rounded to its level, in the type of `values`; idempotent bit for bit.

        Raises:
            ArgumentError: There is no level at all, not even zero.
        """
        return self.decode(self.codes(values)).to(values.dtype)

    def error(self, values: Tensor) -> float:
        """Sum of squared differences of values from their levels, in float64."""
        flat = values.detach().reshape(-1)
        total = 0.0
        for low in range(0, flat.numel(), _CHUNK):
            part = flat[low : low + _CHUNK]
            difference = part.double() - self.decode(self.codes(part)).double()
            # numpy's sum, whose order does not depend on the number of threads.
            total += float(np.square(difference.cpu().numpy()).sum())
        return total

    def check(self, values: Tensor, name: str) -> None:
        """Raise unless every value is one of the levels, bit for bit.

        Raises:
            PostconditionError: One is not.
        """
        if not torch.equal(self.nearest(values), values.detach()):
            raise PostconditionError(
                f"the weight has values that are not in its codebook of {self.bits} bits",
                where=name,
                remedy="This is an error of the method; please report it with the model.",
            )

    def _ordered(self) -> tuple[Tensor, Tensor]:
        """What values may be rounded to, in ascending order, and the codes."""
        if self.reserved_zero and self.kind == "uniform":
            return self.levels.cpu(), torch.arange(1, len(self.levels) + 1)
        table = self.table.cpu()
        if not len(table):
            raise ArgumentError(
                "the codebook has no level",
                where="Codebook",
                remedy="Fit it to a tensor with at least one value.",
            )
        order = torch.argsort(table, stable=True)
        return table[order], order


def _bounds(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest value of every level but the last, in the type of the values."""
    exact = levels.double()
    # Halved first, so that the sum of two large levels is finite.
    middle = (exact[:-1] / 2 + exact[1:] / 2).numpy()
    # A value in the middle of negative levels belongs to the upper one, which is nearer to zero.
    middle = np.where(middle < 0, np.nextafter(middle, -np.inf), middle)
    if dtype == torch.float64:
        return torch.from_numpy(middle)
    rounded = middle.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return torch.from_numpy(np.where(rounded.astype(np.float64) > middle, below, rounded))


def check_request(bits: int, kind: str, where: str) -> None:
    """Raise unless bits and kind are allowed.

    Args:
        bits: Width of a code.
        kind: One of `KINDS`.
        where: The caller's name, for the error.

    Raises:
        ArgumentError: One of them is not.
    """
    if isinstance(bits, bool) or bits not in WIDTHS:
        raise ArgumentError(
            f"{bits!r} is no width of codes",
            where=f"{where}.bits",
            remedy=f"Widths are whole numbers from {WIDTHS[0]} to {WIDTHS[-1]}.",
        )
    if kind not in KINDS:
        raise ArgumentError(
            f"{kind!r} is no kind of codebook",
            where=f"{where}.kind",
            remedy="Say 'free' or 'uniform'.",
        )
