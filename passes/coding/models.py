"""Adaptive models of numbers on top of adaptive bits."""

from __future__ import annotations

from passes.coding.range_coder import Bit, Coder, damaged

# Prefixes beyond this make numbers that no array holds.
_MAX_PREFIX = 65


class BitTree:
    """A symbol of a few bits, the first bit at the root of a tree of adaptive bits.

    Args:
        width: Bits of a symbol; there are 2^width symbols.
        limit: As of `Bit`.
    """

    __slots__ = ("_limit", "_nodes", "_width")

    def __init__(self, width: int, limit: int = 255) -> None:
        self._width = width
        self._limit = limit
        self._nodes: dict[int, Bit] = {}

    def code(self, coder: Coder, symbol: int = 0) -> int:
        """Code a symbol of `0` to `2^width - 1`."""
        node = 1
        for place in range(self._width - 1, -1, -1):
            model = self._nodes.get(node)
            if model is None:
                model = self._nodes[node] = Bit(self._limit)
            node = node << 1 | coder.bit(model, symbol >> place & 1)
        return node - (1 << self._width)


class ExpGolomb:
    """A number from 0 on, small ones cheap: its bit length in unary, then the bits below.

    The number plus 2^order is written. Bits of the unary prefix are adaptive, and so are the first
    bits after it, for each prefix apart; the others cost one bit each.

    Args:
        order: Numbers below 2^order have the shortest prefix.
        fine: How many bits after the prefix are adaptive.
        limit: As of `Bit`.
    """

    __slots__ = ("_fine", "_limit", "_order", "_prefix", "_suffix")

    def __init__(self, order: int = 0, fine: int = 2, limit: int = 255) -> None:
        self._order = order
        self._fine = fine
        self._limit = limit
        self._prefix: list[Bit] = []
        self._suffix: list[BitTree] = []

    def code(self, coder: Coder, number: int = 0) -> int:
        """Code a number from 0 on.

        Raises:
            StorageError: A decoder read a number that is too long.
        """
        length = (number + (1 << self._order)).bit_length() - 1 - self._order
        prefix = 0
        while coder.bit(self._prefix_bit(prefix), int(prefix < length)):
            prefix += 1
            if prefix > _MAX_PREFIX:
                raise damaged()
        below = prefix + self._order
        first = min(self._fine, below)
        rest = below - first
        low = (number + (1 << self._order)) & ((1 << below) - 1)
        low = self._suffix[prefix].code(coder, low >> rest) << rest | coder.bits(low, rest)
        return (1 << below) + low - (1 << self._order)

    def _prefix_bit(self, place: int) -> Bit:
        if place == len(self._prefix):
            self._prefix.append(Bit(self._limit))
            below = place + self._order
            self._suffix.append(BitTree(min(self._fine, below), self._limit))
        return self._prefix[place]


def code_number(coder: Coder, number: int = 0) -> int:
    """Code a single number from 0 on that nothing is known of: about 2 log2 n + 1 bits."""
    return ExpGolomb(fine=0).code(coder, number)


def code_below(coder: Coder, number: int, count: int) -> int:
    """Code one of `count` numbers of equal probability, `count` of any size.

    Raises:
        StorageError: A decoder read a number that is not below `count`.
    """
    shift = max((count - 1).bit_length() - 16, 0)
    high = coder.uniform(number >> shift, ((count - 1) >> shift) + 1)
    result = high << shift | coder.bits(number, shift)
    if result >= count:
        raise damaged()
    return result
