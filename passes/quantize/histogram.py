"""Streaming histograms of values of any magnitude, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A bin holds the values of one sign, one power of two and one of 2^8 parts of it: its width is
# below 2^-8 of its values. No range has to be known, so that no batch decides on that of another.
_MANTISSA = 8
_SMALLEST, _LARGEST = -40, 64
_SHIFT = 23 - _MANTISSA
_OFFSET = (127 + _SMALLEST) << _MANTISSA
_BINS = (_LARGEST - _SMALLEST) << _MANTISSA


def _edges() -> Tensor:
    """Lower ends of the positive bins, and the end of the last: float64 `(bins + 1,)`."""
    bits = (torch.arange(_BINS + 1, dtype=torch.int32) + _OFFSET) << _SHIFT
    return bits.view(torch.float32).double()


@dataclass(slots=True)
class Histogram:
    """Counts of values, those below 2^-40 as zeros; independent of the order of the batches.

    Attributes:
        counts: From the most negative bin up, zeros in the middle: int64 `(2 * bins + 1,)`.
        low: Smallest value so far.
        high: Largest value so far.
        total: Number of values.
        strange: Number of values that are not finite; they are not counted otherwise.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(2 * _BINS + 1, dtype=torch.int64))
    low: float = math.inf
    high: float = -math.inf
    total: int = 0
    strange: int = 0

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape."""
        flat = values.detach().reshape(-1).to(torch.float32)
        if not flat.numel():
            return
        low, high = (float(v) for v in flat.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = torch.isfinite(flat)
            self.strange += int((~finite).sum())
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.total += flat.numel()
        bits = flat.view(torch.int32)
        bins = ((bits & 0x7FFFFFFF) >> _SHIFT) - (_OFFSET - 1)
        bins = bins.clamp_(0, _BINS)
        index = torch.where(bits < 0, -bins, bins) + _BINS
        self.counts += torch.bincount(index, minlength=2 * _BINS + 1).cpu()

    def quantile(self, share: float) -> float:
        """A value that at least so large a share of all values does not exceed.

        Exact up to the width of a bin, and within the range of the values.

        Args:
            share: Between 0 and 1.
        """
        if not self.total:
            return 0.0
        wanted = min(max(math.ceil(share * self.total), 1), self.total)
        place = int(torch.searchsorted(self.counts.cumsum(0), wanted)) - _BINS
        if place == _BINS:
            return self.high  # the last bin has no end
        edges = _edges()
        value = 0.0 if place == 0 else float(edges[place] if place > 0 else -edges[-place - 1])
        return min(max(value, self.low), self.high)

    def magnitude(self, share: float) -> float:
        """As `quantile`, of the absolute values."""
        largest = max(abs(self.low), abs(self.high))
        flipped = Histogram(self.counts + self.counts.flip(0), -largest, largest, 2 * self.total)
        return flipped.quantile((1 + share) / 2)

    def occupied(self) -> tuple[Tensor, Tensor]:
        """The middle of every bin that holds values, and how many: float64, both `(n,)`."""
        edges = _edges()
        middle = (edges[:-1] + edges[1:]) / 2
        values = torch.cat([-middle.flip(0), middle.new_zeros(1), middle])
        found = self.counts > 0
        inside = values[found].clamp(self.low, self.high)
        return inside, self.counts[found].double()
