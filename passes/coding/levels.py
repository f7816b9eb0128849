"""The few values that a weight takes, written down once: its codebook."""

from __future__ import annotations

import math

from passes.coding.models import ExpGolomb, code_below
from passes.coding.patterns import Kind, Level, by_value
from passes.coding.range_coder import Bit, Coder, Meter, damaged

# Grids have multiples up to this.
_LARGEST_MULTIPLE = 128
# More levels than this are no codebook.
MOST_LEVELS = 256
"""The largest codebook."""


def code_levels(coder: Coder, levels: list[Level], kind: Kind) -> list[Level]:
    """Code a set of values: as multiples of one scale if they are, else each for itself.

    Args:
        coder: Encoder, meter or decoder.
        levels: Different ones, at least one, at most `MOST_LEVELS`; ignored by a decoder.
        kind: What an element is.

    Returns:
        The levels by their value.

    Raises:
        StorageError: A decoder read levels that do not exist.
    """
    sizes = sorted({size for _, size in levels})
    scale, multiples = _grid(sizes, kind)
    grid = bool(multiples) and _cost_of_grid(scale, multiples, kind) < _cost_of_free(sizes, kind)
    count = ExpGolomb(2, fine=0).code(coder, len(sizes) - 1 if sizes else 0) + 1
    if count > MOST_LEVELS:
        raise damaged()
    if count > 1 and coder.uniform(int(grid), 2):
        sizes = _code_grid(coder, scale, multiples, count, kind)
    else:
        sizes = _code_free(coder, sizes, count, kind)
    return sorted(_code_signs(coder, set(levels), sizes, kind), key=by_value)


def _code_signs(coder: Coder, levels: set[Level], sizes: list[int], kind: Kind) -> list[Level]:
    """Which of the two signs each magnitude has, or both."""
    if not kind.signed:
        return [(False, size) for size in sizes]
    negatives, both = Bit(), Bit()
    result = []
    for size in sizes:
        negative = coder.bit(negatives, int((True, size) in levels))
        positive = coder.bit(both, int((False, size) in levels)) if negative else 1
        result += [(True, size)] * negative + [(False, size)] * positive
    return result


def code_exponent(coder: Coder, exponent: int, kind: Kind) -> int:
    """Code a single exponent of a float: cheap near to that of 1.

    Raises:
        StorageError: A decoder read an exponent that the kind does not have.
    """
    one = kind.exponents // 2 - 1
    distance = one - exponent
    number = ExpGolomb(4, fine=0).code(coder, 2 * distance if distance >= 0 else -2 * distance - 1)
    exponent = one - number // 2 if number % 2 == 0 else one + (number + 1) // 2
    if not 0 <= exponent < kind.exponents:
        raise damaged()
    return exponent


def trailing_zeros(sizes: list[int], most: int) -> int:
    """How many low bits are zero in all numbers, at most `most`."""
    union = 0
    for size in sizes:
        union |= size
    return min((union & -union).bit_length() - 1, most) if union else most


def _code_free(coder: Coder, sizes: list[int], count: int, kind: Kind) -> list[int]:
    """Ascending magnitudes, without the low bits that are zero in all of them."""
    most = kind.width - 1 if kind.fraction is None else kind.fraction
    zeros = coder.uniform(trailing_zeros(sizes, most), most + 1)
    given = [size >> zeros for size in sizes] or [0] * count
    gaps = ExpGolomb(8 if kind.fraction is None else 0, fine=0)
    fraction = 0 if kind.fraction is None else kind.fraction - zeros
    result: list[int] = []
    high, low = 0, 0
    for number in given[:count] + [0] * (count - len(given)):
        first = not result
        if first and kind.fraction is not None:
            step = high = code_exponent(coder, number >> fraction, kind)
        else:
            least = 1 if result and not fraction else 0
            step = gaps.code(coder, max((number >> fraction) - high - least, 0)) + least
            high += step
        start = 0 if first or step else low + 1
        if start >> fraction:
            raise damaged()
        low = start + code_below(
            coder, (number & ((1 << fraction) - 1)) - start, (1 << fraction) - start
        )
        result.append((high << fraction | low) << zeros)
        if result[-1] > kind.largest:
            raise damaged()
    return result


def _code_grid(coder: Coder, scale: int, multiples: list[int], count: int, kind: Kind) -> list[int]:
    """A scale, and ascending multiples of it."""
    scale = _code_free(coder, [scale], 1, kind)[0]
    unit = kind.multiple(scale)
    if unit is None:
        raise damaged()
    gaps = ExpGolomb(0, fine=0)
    last, result = 0, []
    for place in range(count):
        gap = multiples[place] - last - 1 if multiples else 0
        last += gaps.code(coder, gap) + 1
        if last > _LARGEST_MULTIPLE:
            raise damaged()
        result.append(kind.magnitude(unit * last))
    return result


def _grid(sizes: list[int], kind: Kind) -> tuple[int, list[int]]:
    """The largest scale that all magnitudes are multiples of, and the multiples; or none."""
    values = [kind.multiple(size) for size in sizes]
    numbers = [value for value in values if value]
    if len(numbers) < max(len(sizes), 2):
        return 0, []
    scale = math.gcd(*numbers)
    multiples = [number // scale for number in numbers]
    if multiples[-1] > _LARGEST_MULTIPLE:
        return 0, []
    return kind.magnitude(scale), multiples


def _cost_of_grid(scale: int, multiples: list[int], kind: Kind) -> int:
    meter = Meter()
    _code_grid(meter, scale, multiples, len(multiples), kind)
    return meter.units


def _cost_of_free(sizes: list[int], kind: Kind) -> int:
    meter = Meter()
    _code_free(meter, sizes, len(sizes), kind)
    return meter.units
