"""Mixing of predictions: several counts of the past give one probability of the next bit.

    log-odds of a one  =  w_0 g + sum over contexts i of w_i (x_i - g) + offset

g are the log-odds of the base counts, x_i those of the counts seen in context i, drawn towards the
base by a strength: a context without a past says nothing. With all weights 1 this is the product of
independent odds; the weights learn online by gradient descent on the cost, after Mahoney,
"Adaptive weighing of context models for lossless data compression", 2005. Integers only.
"""

from __future__ import annotations

from collections.abc import Sequence

from passes.coding.fixed import COUNTS, LIMIT, LN, ONE, PRECISION, SQUASH
from passes.coding.range_coder import Coder

EVENT = 64
"""What one event adds to a count."""

# The largest count of a context, and of a base: both counts are halved above.
_MOST = COUNTS - (1 << 12)
_MOST_BASE = 1 << 28
# LN(x << _FAR) - LN(x): logarithms beyond the table.
_FAR = 12
_LN_FAR = 2129
_RATE = 20
_HALF = 1 << (_RATE - 1)


class Mixer:
    """Counts of contexts, and the weights that mix them.

    Args:
        slots: Contexts in all; the caller numbers them from 0.
        weights: First weights, 1.0 is `ONE`: of the base, then of every input.
        strengths: How many events the base is worth, of every input, in units of `EVENT`.
        bases: How many separate base counts there are.
        start: First counts of ones and zeros of every base, in units of 1 / `EVENT`.
        rate: Of learning, in units of 2^-12.
    """

    __slots__ = ("_base_ones", "_base_zeros", "_rate", "_strengths", "_weights", "ones", "zeros")

    def __init__(
        self,
        slots: int,
        weights: Sequence[int],
        strengths: Sequence[int],
        *,
        bases: int = 1,
        start: tuple[int, int] = (EVENT // 2, EVENT // 2),
        rate: int = 41,
    ) -> None:
        self.ones = [0] * slots
        self.zeros = [0] * slots
        self._base_ones = [start[0]] * bases
        self._base_zeros = [start[1]] * bases
        self._weights = list(weights)
        self._strengths = [strength * EVENT for strength in strengths]
        self._rate = rate

    def density(self, base: int = 0) -> int:
        """The share of ones of a base, out of `ONE`."""
        ones = self._base_ones[base]
        return (ones << PRECISION) // (ones + self._base_zeros[base])

    def clear(self, slot: int) -> None:
        """Forget the past of a context."""
        self.ones[slot] = self.zeros[slot] = 0

    def code(self, coder: Coder, base: int, slots: Sequence[int], bit: int, offset: int = 0) -> int:
        """Code a bit, and learn from it.

        Args:
            coder: Encoder, decoder or meter.
            base: Which base.
            slots: The context of every input, in order.
            bit: The bit; ignored by a decoder.
            offset: Added to the log-odds.

        Returns:
            The bit.
        """
        # Millions of calls: what is called inside of it is written out, and loops are plain.
        ones, zeros, weights = self.ones, self.zeros, self._weights
        base_ones, base_zeros = self._base_ones[base], self._base_zeros[base]
        ground = (LN[base_ones] if base_ones <= COUNTS else _ln(base_ones)) - (
            LN[base_zeros] if base_zeros <= COUNTS else _ln(base_zeros)
        )
        share = (base_ones << PRECISION) // (base_ones + base_zeros)
        inputs = [ground]
        total = weights[0] * ground
        strengths = self._strengths
        for place, slot in enumerate(slots):
            strength = strengths[place]
            prior = strength * share >> PRECISION
            odds = LN[ones[slot] + prior + 1] - LN[zeros[slot] + strength - prior + 1] - ground
            inputs.append(odds)
            total += weights[place + 1] * odds
        stretched = (total >> PRECISION) + offset
        if not -LIMIT <= stretched <= LIMIT:
            stretched = LIMIT if stretched > 0 else -LIMIT
        probability = SQUASH[stretched + LIMIT]
        bit = coder.code(probability, bit)
        error = ((bit << PRECISION) - probability) * self._rate
        for place, odds in enumerate(inputs):
            weights[place] += odds * error + _HALF >> _RATE
        counts = ones if bit else zeros
        for slot in slots:
            counts[slot] += EVENT
            if counts[slot] > _MOST:
                ones[slot] >>= 1
                zeros[slot] >>= 1
        counts = self._base_ones if bit else self._base_zeros
        counts[base] += EVENT
        if counts[base] > _MOST_BASE:
            self._base_ones[base] = max(self._base_ones[base] >> 1, 1)
            self._base_zeros[base] = max(self._base_zeros[base] >> 1, 1)
        return bit


def _ln(count: int) -> int:
    """The logarithm of a count beyond the table."""
    return LN[count >> _FAR] + _LN_FAR


def weight(value: float) -> int:
    """A weight as an integer: 1.0 is `ONE`."""
    return round(value * ONE)
