"""Adaptive binary range coding: many small things in one stream, without flushes between them.

Three coders have the same interface, so that one function describes a format once: the `Encoder`
writes the bits it is given, the `Decoder` ignores what it is given and returns what it reads, and
the `Meter` only adds up what the bits would cost.

Carry propagation after Schindler, "A fast renormalisation for arithmetic coding", DCC 1998.
"""

from __future__ import annotations

from typing import Protocol

from energy_model.errors import StorageError
from passes.coding.fixed import COST, ONE, PRECISION

_TOP = 1 << 32
_BOTTOM = 1 << 24
# Symbols of equal probability are coded in parts of at most so many bits.
_PART = 16
_HALF = ONE // 2
# Rates of adaptation: 1 / (n + 2) after n bits gives the estimate of Krichevsky and Trofimov.
_RECIPROCAL = [ONE // (n + 2) for n in range(1024)]


class Bit:
    """The adaptive probability of a bit.

    It is the estimate of Krichevsky and Trofimov at first, `(ones + 1/2) / (n + 1)`, and forgets
    what lies far more than `limit` bits back later.

    Args:
        limit: Bits after which the rate of adaptation stays as it is, at most 1023.
        probability: First guess of a one, out of `ONE`.
        count: How many bits the first guess is worth.
    """

    __slots__ = ("count", "limit", "wide")

    def __init__(self, limit: int = 255, probability: int = _HALF, count: int = 0) -> None:
        self.wide = probability << 12
        self.count = count
        self.limit = limit

    @property
    def probability(self) -> int:
        """The probability of a one, out of `ONE`, never 0 or `ONE`."""
        wide = self.wide >> 12
        return wide if 0 < wide < ONE else (1 if wide <= 0 else ONE - 1)

    def update(self, bit: int) -> None:
        """Learn from a bit."""
        target = (ONE << 12) if bit else 0
        self.wide += (target - self.wide) * _RECIPROCAL[self.count] >> PRECISION
        if self.count < self.limit:
            self.count += 1


class Coder(Protocol):
    """What encoder, decoder and meter have in common."""

    def code(self, probability: int, bit: int) -> int:
        """Code a bit.

        Args:
            probability: Of a one, `1` to `ONE - 1`.
            bit: 0 or 1; ignored by a decoder.

        Returns:
            The bit: the one given, or the one read.
        """

    def uniform(self, value: int, count: int) -> int:
        """Code one of `count` values of equal probability; `count` is at most 2^16."""

    def bit(self, model: Bit, value: int = 0) -> int:
        """Code a bit with an adaptive probability, and let it learn."""

    def bits(self, value: int, count: int) -> int:
        """Code the `count` low bits of a number, each with probability 1/2."""


class _Shared:
    """Everything that follows from `code` and `uniform`."""

    __slots__ = ()

    def code(self, probability: int, bit: int) -> int:
        raise NotImplementedError

    def uniform(self, value: int, count: int) -> int:
        raise NotImplementedError

    def bit(self, model: Bit, value: int = 0) -> int:
        """Code a bit with an adaptive probability, and let it learn."""
        value = self.code(model.probability, value)
        model.update(value)
        return value

    def bits(self, value: int, count: int) -> int:
        """Code the `count` low bits of a number, each with probability 1/2."""
        result = 0
        while count > 0:
            part = min(count, _PART)
            count -= part
            piece = value >> count & ((1 << part) - 1)
            result = result << part | self.uniform(piece, 1 << part)
        return result


class Encoder(_Shared):
    """Writes bits."""

    __slots__ = ("_low", "_out", "_range")

    def __init__(self) -> None:
        self._low = 0
        self._range = _TOP - 1
        self._out = bytearray()

    def code(self, probability: int, bit: int) -> int:
        """Write a bit of the given probability of a one; returns it."""
        bound = self._range * probability >> PRECISION
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        while self._range < _BOTTOM:
            self._shift()
        return bit

    def uniform(self, value: int, count: int) -> int:
        """Write one of `count` values of equal probability; returns it."""
        self._range //= count
        self._low += self._range * value
        while self._range < _BOTTOM:
            self._shift()
        return value

    def finish(self) -> bytes:
        """The bytes so far, as few as can be; nothing may be written afterwards.

        The decoder reads zeros beyond the end: of all numbers in the last interval the one with
        the most zeros at its end is taken, and these are left out.
        """
        low, top = self._low, self._low + self._range
        for zeros in range(33, -1, -1):
            value = (low + (1 << zeros) - 1) >> zeros << zeros
            if value < top:
                break
        self._low = value
        for _ in range(4):
            self._shift()
        return bytes(self._out).rstrip(b"\0")

    def _shift(self) -> None:
        if self._low >= _TOP:
            self._low -= _TOP
            place = len(self._out) - 1
            while self._out[place] == 255:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1
        self._out.append(self._low >> 24)
        self._low = (self._low << 8) & (_TOP - 1)
        self._range <<= 8


class Decoder(_Shared):
    """Reads what an `Encoder` wrote.

    Args:
        data: The bytes; whoever keeps them knows their length.
    """

    __slots__ = ("_code", "_data", "_place", "_range")

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._place = 4
        self._range = _TOP - 1
        self._code = int.from_bytes(self._data[:4].ljust(4, b"\0"), "big")

    def code(self, probability: int, bit: int = 0) -> int:
        """Read a bit of the given probability of a one; the argument `bit` is ignored."""
        bound = self._range * probability >> PRECISION
        if self._code < bound:
            self._range = bound
            bit = 1
        else:
            self._code -= bound
            self._range -= bound
            bit = 0
        while self._range < _BOTTOM:
            self._shift()
        return bit

    def uniform(self, value: int, count: int) -> int:
        """Read one of `count` values of equal probability; the argument `value` is ignored.

        Raises:
            StorageError: No encoder wrote this.
        """
        self._range //= count
        value = self._code // self._range
        if value >= count:
            raise damaged()
        self._code -= self._range * value
        while self._range < _BOTTOM:
            self._shift()
        return value

    def _shift(self) -> None:
        place = self._place
        byte = self._data[place] if place < len(self._data) else 0
        self._code = self._code << 8 | byte
        self._place = place + 1
        self._range <<= 8


class Meter(_Shared):
    """Adds up what bits would cost, without writing any."""

    __slots__ = ("units",)

    def __init__(self) -> None:
        self.units = 0

    @property
    def total(self) -> float:
        """Bits so far."""
        return self.units / ONE

    def code(self, probability: int, bit: int) -> int:
        """Count a bit of the given probability of a one; returns it."""
        self.units += COST[probability if bit else ONE - probability]
        return bit

    def uniform(self, value: int, count: int) -> int:
        """Count one of `count` values of equal probability; returns it."""
        self.units += (PRECISION << PRECISION) - COST[count]
        return value


def damaged(what: str = "coded data do not decode") -> StorageError:
    """The error of a stream that no encoder wrote."""
    return StorageError(
        what, where="archive", remedy="The file is damaged: restore it from a copy or pack again."
    )
