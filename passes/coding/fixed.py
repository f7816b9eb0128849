"""Logarithms and the logistic function in integers: the same numbers on every machine.

Three fixed-point scales are used by all coders. A probability is an integer out of `ONE`; a cost is
an integer in units of 2^-16 bits; a log-odds ("stretched probability") is an integer in units of
1/256 nats, cut at `LIMIT`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRECISION = 16
"""Bits of a probability."""
ONE = 1 << PRECISION
"""The probability 1; coded probabilities lie strictly between 0 and `ONE`."""
UNIT = 256
"""Log-odds of one nat."""
LIMIT = 11 * UNIT
"""The largest log-odds, about one in 60,000."""
COUNTS = (1 << 17) - 1
"""The largest argument of `LN`."""

# ln 2 in 2^-16, rounded.
_LN2 = 45426
# Fractional bits of the powers of e that the logistic function is made of.
_WIDE = 60


def log2(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Binary logarithms by repeated squaring, in units of 2^-16, rounded down.

    Args:
        values: Integers of 1 to 2^32 - 1, any shape.
    """
    number = np.asarray(values, dtype=np.uint64)
    whole = np.zeros(number.shape, dtype=np.int64)
    for step in (16, 8, 4, 2, 1):
        larger = number >> np.uint64(step) != 0
        larger &= number >= np.uint64(1 << step)
        whole += np.where(larger, step, 0)
        number = np.where(larger, number >> np.uint64(step), number)
    shift = (31 - whole).astype(np.uint64)
    mantissa = np.asarray(values, dtype=np.uint64) << shift
    fraction = np.zeros(whole.shape, dtype=np.int64)
    for _ in range(PRECISION):
        mantissa = mantissa * mantissa >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        mantissa >>= carry
        fraction = fraction << 1 | carry.astype(np.int64)
    return whole << PRECISION | fraction


def _costs() -> list[int]:
    bits = (PRECISION << PRECISION) - log2(np.arange(1, ONE + 1, dtype=np.uint64))
    return [0, *bits.tolist()]


def _natural_logarithms() -> list[int]:
    bits = log2(np.arange(1, COUNTS + 1, dtype=np.uint64))
    scaled = (bits * _LN2 * UNIT + (1 << 31)) >> 32
    return [0, *scaled.tolist()]


def _exponentials() -> list[int]:
    """2^60 exp(x / UNIT) for x from 0 to LIMIT."""
    step = term = power = 1 << _WIDE
    for order in range(1, 12):
        term //= order * UNIT
        step += term
    powers = []
    for _ in range(LIMIT + 1):
        powers.append(power)
        power = power * step >> _WIDE
    return powers


def _logistic() -> list[int]:
    """ONE / (1 + exp(-x)) for x from -LIMIT to LIMIT, in steps of 1 / UNIT."""
    wide = 1 << _WIDE
    upper = [
        min((ONE * power + (wide + power) // 2) // (wide + power), ONE - 1)
        for power in _exponentials()
    ]
    return [ONE - p for p in reversed(upper[1:])] + upper


def _hazards() -> list[int]:
    """-ln(1 - exp(-x)) in units of 1/256 for x from 0 to 11, in steps of 1 / UNIT."""
    wide, top = 1 << _WIDE, log2(np.array([ONE], dtype=np.uint64))
    odds = [max(ONE - (ONE << _WIDE) // max(power, wide), 1) for power in _exponentials()]
    bits = int(top[0]) - log2(np.array(odds, dtype=np.uint64))
    result: list[int] = ((bits * _LN2 * UNIT + (1 << 31)) >> 32).tolist()
    return result


COST: list[int] = _costs()
"""Cost of an event of each probability, `0` to `ONE`, in units of 2^-16 bits."""
LN: list[int] = _natural_logarithms()
"""Natural logarithms of `1` to `COUNTS` in units of 1/256; `LN[0]` is 0."""
SQUASH: list[int] = _logistic()
"""Probability of a log-odds x at index `x + LIMIT`."""
HAZARD: list[int] = _hazards()
"""-ln(1 - exp(-x)) at index 256 x: how much likelier an event is that is still to happen."""
