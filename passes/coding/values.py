"""Values that are written each for itself: biases, scales, weights that nobody quantized."""

from __future__ import annotations

from passes.coding.levels import code_exponent, trailing_zeros
from passes.coding.models import BitTree, ExpGolomb
from passes.coding.patterns import Kind, Level
from passes.coding.range_coder import Bit, Coder, damaged

# First bits of a fraction that are adaptive, where there are enough values to learn from.
_FINE = 2
_MANY = 256
_CLASSES = 3


def code_values(coder: Coder, values: list[Level], count: int, kind: Kind) -> list[Level]:
    """Code values in order: sign, distance of the exponent from the largest one, fraction.

    Low bits that are zero in all values are left out: a float32 that a float16 or a bfloat16 can
    hold costs no more than that. The exponent of an integer is its bit length.

    Args:
        coder: Encoder, meter or decoder.
        values: `count` of them; ignored by a decoder.
        count: Known to both sides.
        kind: What an element is.

    Returns:
        The values.

    Raises:
        StorageError: A decoder read values that do not exist.
    """
    most = kind.width - 1 if kind.fraction is None else kind.fraction
    zeros = coder.uniform(trailing_zeros([size for _, size in values], most), most + 1)
    given = [(negative, size >> zeros) for negative, size in values] or [(False, 0)] * count
    fraction = None if kind.fraction is None else kind.fraction - zeros
    largest = max((_exponent(size, fraction) for _, size in given), default=0)
    if fraction is None:
        largest = coder.uniform(largest, kind.width + 1)
    else:
        largest = code_exponent(coder, largest, kind)
    signs, distances = Bit(), ExpGolomb(0)
    fine = _FINE if count >= _MANY else 0
    trees: dict[tuple[int, int], BitTree] = {}
    result: list[Level] = []
    for negative, size in given:
        if kind.signed:
            negative = bool(coder.bit(signs, int(negative)))
        distance = distances.code(coder, largest - _exponent(size, fraction))
        exponent = largest - distance
        if exponent < 0:
            raise damaged()
        below = max(exponent - 1, 0) if fraction is None else fraction
        first = min(fine, below)
        low = size & ((1 << below) - 1)
        tree = trees.setdefault((first, min(distance, _CLASSES)), BitTree(first))
        top = tree.code(coder, low >> (below - first))
        low = top << (below - first) | coder.bits(low, below - first)
        head = min(exponent, 1) if fraction is None else exponent
        size = (head << below | low) << zeros
        if size > kind.largest:
            raise damaged()
        result.append((negative, size))
    return result


def _exponent(size: int, fraction: int | None) -> int:
    return size.bit_length() if fraction is None else size >> fraction
