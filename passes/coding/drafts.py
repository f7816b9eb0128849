"""What is to be written, with an estimate of its size, before anything is entropy-coded.

Ways to write the same thing are drafted and compared; of the drafts that are kept, all streams of
symbols are coded together (`passes.coding.rans`), and stand in front of the numbers and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from passes.coding.frames import Buffer, Reader, Writer
from passes.coding.lanes import Symbols
from passes.coding.rans import decode_streams, encode_streams, histogram, stream_bits

Later = Callable[[], Symbols]
"""Gives symbols, once `DraftReader.decode` has been called."""


class Draft:
    """Numbers, blocks and streams of symbols, in the order in which they are read."""

    __slots__ = ("_bits", "_frame", "_streams")

    def __init__(self) -> None:
        self._frame = Writer()
        self._streams: list[Symbols] = []
        self._bits = 0

    @property
    def bits(self) -> int:
        """About how many bits it takes, without the few bytes in front of everything."""
        return 8 * self._frame.size + self._bits

    def number(self, value: int) -> None:
        """Append a number from 0 to 2^64 - 1."""
        self._frame.number(value)

    def block(self, data: Buffer) -> None:
        """Append bytes with their length."""
        self._frame.block(data)

    def symbols(self, symbols: Symbols) -> None:
        """Append bytes that are entropy-coded; their number is not written.

        Args:
            symbols: Shape `(n,)`; kept, not copied.
        """
        self._streams.append(symbols)
        self._bits += stream_bits(histogram(symbols))

    def extend(self, other: Draft) -> None:
        """Append everything of another draft."""
        self._frame.extend(other._frame)
        self._streams += other._streams
        self._bits += other._bits

    def finish(self) -> Writer:
        """Everything that was appended, for a `DraftReader`."""
        out = Writer()
        out.block(encode_streams(self._streams))
        out.extend(self._frame)
        return out


class DraftReader:
    """Reads what a `Draft` finished: numbers and blocks at once, symbols all together later.

    Args:
        data: All of it.

    Raises:
        StorageError: The data end too early.
    """

    __slots__ = ("_coded", "_counts", "_found", "_frame")

    def __init__(self, data: Buffer) -> None:
        self._frame = Reader(data)
        self._coded = self._frame.block()
        self._counts: list[int] = []
        self._found: Sequence[Symbols] = ()

    def number(self, most: int) -> int:
        """Read a number.

        Args:
            most: The largest that can be right.

        Raises:
            StorageError: The data end before, or the number is larger.
        """
        return self._frame.number(most)

    def block(self) -> memoryview:
        """Read bytes with their length; a view, not a copy.

        Raises:
            StorageError: The data end before.
        """
        return self._frame.block()

    def symbols(self, count: int) -> Later:
        """Announce so many symbols.

        Returns:
            What gives them after `decode`; they are not to be written to.
        """
        place = len(self._counts)
        self._counts.append(count)
        return lambda: self._found[place]

    def decode(self) -> None:
        """Decode all symbols that were announced; nothing may be left.

        Raises:
            StorageError: The data are damaged.
        """
        self._frame.end()
        self._found = decode_streams(self._coded, self._counts)
