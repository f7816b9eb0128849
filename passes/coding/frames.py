"""Numbers and blocks of bytes one after the other, read back with every length checked."""

from __future__ import annotations

from collections.abc import Sequence

from passes.coding.range_coder import damaged

Buffer = bytes | memoryview

# A number takes at most so many bytes of seven bits.
_LONGEST = 10


class Writer:
    """Bytes that grow.

    Attributes:
        size: How many there are so far.
    """

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[Buffer] = []

    def number(self, value: int) -> None:
        """Append a number from 0 to 2^64 - 1, seven bits in a byte, the low ones first."""
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
        self._append(bytes(out))

    def block(self, data: Buffer) -> None:
        """Append bytes with their length; they are not copied before the end."""
        self.number(len(data))
        self._append(data)

    def extend(self, other: Writer) -> None:
        """Append everything that another writer holds."""
        self._parts += other._parts
        self.size += other.size

    @property
    def parts(self) -> Sequence[Buffer]:
        """Everything that was appended, in pieces: nothing is copied."""
        return self._parts

    def finish(self) -> bytes:
        """Everything that was appended."""
        return b"".join(self._parts)

    def _append(self, data: Buffer) -> None:
        self._parts.append(data)
        self.size += len(data)


class Reader:
    """Reads what a `Writer` wrote.

    Args:
        data: All of it.
    """

    __slots__ = ("_data", "_place")

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._place = 0

    def number(self, most: int) -> int:
        """Read a number.

        Args:
            most: The largest that can be right.

        Raises:
            StorageError: The data end before, or the number is larger.
        """
        result = 0
        for place in range(_LONGEST):
            byte = self._take(1)[0]
            result |= (byte & 127) << (7 * place)
            if byte < 128:
                if result > most:
                    raise damaged()
                return result
        raise damaged()

    def block(self) -> memoryview:
        """Read bytes with their length; a view, not a copy.

        Raises:
            StorageError: The data end before.
        """
        return self._take(self.number(len(self._data)))

    def end(self) -> None:
        """Check that everything was read.

        Raises:
            StorageError: Something is left.
        """
        if self._place != len(self._data):
            raise damaged()

    def _take(self, count: int) -> memoryview:
        end = self._place + count
        if end > len(self._data):
            raise damaged()
        part = self._data[self._place : end]
        self._place = end
        return part
