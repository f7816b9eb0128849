"""The scale of a uniform grid `D * q` with the least squared error.

    min over D of  sum_j (|x_j| - D q_j)^2,    q_j = clip(round(|x_j| / D), least, K)

with `least` 1 where zero is reserved (zeros are masked, not coded) and 0 where it is a code. For
given codes the best D is A / B with A = sum |x| q and B = sum q q; the error is sum xx - AA / B. As
1 / D grows, the code of x jumps from k to k + 1 at (k + 1/2) / |x|: all jumps in order give the
exact optimum. Where there are too many of them, a grid of scales is followed by D <- A / B.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from passes.joint.points import Floats, Places, SortedValues
from passes.quantize.encoding import snap

# So many jumps are sorted at most: about 50 MB of temporaries.
_JUMPS = 1 << 20
_DISTINCT = 20_000
_COARSE, _FINE, _SETTLE = 96, 33, 6
# How much 16 significant bits of the scale may cost, relative to the error.
_SNAP_COST = 5e-7
# The scale of no values; see `passes.quantize.fit`.
_NO_VALUES = 2.0**-12


def largest_code(bits: int, *, reserved_zero: bool) -> int:
    """K of the codes `-K ... K`: all `2 ** bits` but zero, or one fewer with zero among them."""
    return 1 << (bits - 1) if reserved_zero else (1 << (bits - 1)) - 1


@dataclass(slots=True, eq=False)
class UniformLevels:
    """The best uniform grids of one tensor, in units of the divided values.

    Attributes:
        values: Sorted magnitudes of the nonzero values.
        reserved_zero: Whether every value has a code other than zero.
    """

    values: SortedValues
    reserved_zero: bool
    _distinct: tuple[Floats, Places] | None = field(init=False)

    def __post_init__(self) -> None:
        self._distinct = self.values.distinct(_DISTINCT)

    def scale(self, bits: int) -> float:
        """The scale for the values themselves, a float32; of 16 significant bits if that is free.

        Every product with a code is then exact in float32.

        Args:
            bits: Width of a code; at least 2 if zero is not reserved.
        """
        if not self.values.size:
            return _NO_VALUES
        best = self._best(bits)
        stored = torch.tensor(np.ldexp(best, self.values.exponent), dtype=torch.float32)
        plain, snapped = float(stored), float(snap(stored))
        if plain == 0:
            return float(np.finfo(np.float32).smallest_subnormal)
        errors = [self._error_of(scale, bits) for scale in (plain, snapped)]
        return snapped if errors[1] <= errors[0] * (1 + _SNAP_COST) else plain

    def error(self, bits: int) -> float:
        """Squared error of the grid of `scale(bits)`, in squares of the divided values."""
        return self._error_of(self.scale(bits), bits) if self.values.size else 0.0

    def _best(self, bits: int) -> float:
        top = largest_code(bits, reserved_zero=self.reserved_zero)
        if self._distinct is not None:
            jumps = len(self._distinct[0]) * (top - self._least)
            if jumps <= _JUMPS:
                return self._swept(*self._distinct, top)
        return self._searched(top)

    @property
    def _least(self) -> int:
        return 1 if self.reserved_zero else 0

    def _swept(self, values: Floats, count: Places, top: int) -> float:
        """Exact: sums after every jump, in the order in which the jumps come."""
        least = self._least
        steps = np.arange(least, top, dtype=np.float64)
        order = np.argsort(((steps + 0.5) / values[:, None]).ravel(), kind="stable")
        first = np.repeat(count * values, len(steps))[order]
        second = (count[:, None] * (2 * steps + 1)).ravel()[order]
        a = np.cumsum(np.append(least * (count @ values), first))
        b = np.cumsum(np.append(float(least * count.sum()), second))
        scales = a / np.maximum(b, 1.0)
        best = int(np.argmax(np.where(scales <= self._most(top), _gain(a, b), -1.0)))
        return min(float(scales[best]), self._most(top))

    def _searched(self, top: int) -> float:
        """A coarse grid of scales, a fine one around the best, then the best of their codes."""
        largest = float(self.values.at(np.asarray([self.values.size - 1]))[0])
        mean = float(self.values.blocks[0][-1]) / self.values.size
        coarse = np.geomspace(1.2 * largest / top, 0.5 * mean / top, _COARSE)
        found = coarse[np.argsort(-_gain(*self._sums(coarse, top)), kind="stable")[:4]]
        ratio = (coarse[0] / coarse[-1]) ** (1 / (_COARSE - 1))
        fine = (found[:, None] * np.geomspace(1 / ratio, ratio, _FINE)).ravel()
        scales = fine[np.argsort(-_gain(*self._sums(fine, top)), kind="stable")[:4]]
        for _ in range(_SETTLE):
            a, b = self._sums(scales, top)
            scales = a / b
        best = int(np.argmax(_gain(*self._sums(scales, top))))
        return min(float(scales[best]), self._most(top))

    def _most(self, top: int) -> float:
        """The largest scale whose levels are finite, also after rounding to 16 bits."""
        largest = float(np.finfo(np.float32).max) * (1 - 2.0**-14)
        return float(np.ldexp(largest / top, -self.values.exponent))

    def _sums(self, scales: Floats, top: int) -> tuple[Floats, Floats]:
        """A and B of the codes that are nearest at each scale."""
        least, n = self._least, self.values.size
        codes = np.arange(least + 1, top + 1, dtype=np.float64)
        places = self.values.place(scales[:, None] * (codes - 0.5))
        total = self.values.blocks[0][-1]
        a = least * total + (total - self.values.sums(places)[0]).sum(axis=1)
        b = float(least * n) + ((n - places) * (2 * codes - 1)).sum(axis=1)
        return a, b

    def _error_of(self, stored: float, bits: int) -> float:
        """Squared error with a scale of the values themselves, a float32."""
        scale = float(np.ldexp(stored, -self.values.exponent))
        top = largest_code(bits, reserved_zero=self.reserved_zero)
        if self._distinct is not None:
            values, count = self._distinct
            codes = np.clip(np.round(values / scale), self._least, top).astype(np.float32)
            levels = np.ldexp((codes * np.float32(stored)).astype(float), -self.values.exponent)
            return float((count * np.square(values - levels)).sum())
        a, b = self._sums(np.asarray([scale]), top)
        energy = float(self.values.blocks[1][-1])
        return max(0.0, energy - 2 * scale * float(a[0]) + scale**2 * float(b[0]))


def _gain(a: Floats, b: Floats) -> Floats:
    return np.where(b > 0, a * a / np.maximum(b, 1e-300), 0.0)
