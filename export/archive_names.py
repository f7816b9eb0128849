"""Names of values in a skeleton: most are told by where they stand, or have stood before.

What is read in the file's order: nodes with what they read and write, then the initialisers that
they have read, then inputs and outputs. An exporter counts its names (`conv2d_1`, `conv2d_2`), and
calls nodes by what they write.
"""

from __future__ import annotations

from export.archive_wire import IrregularError, Kind, Source, put_varint

END, PLAIN, EXPECTED, KNOWN, COUNTED = range(5)
"""Bytes that no name contains: the end of one, any bytes with their length, what is expected here,
what stood before, and an end that is the next number."""

_RECENT, _OPEN = 64, 1024
_LONGEST = 255
_CONTROLS = frozenset(range(5))


class Names:
    """What is known of the names while a skeleton is written, or read, from front to back."""

    def __init__(self) -> None:
        self._recent: list[bytes] = []
        self._open: list[bytes] = []
        self._cursor = 0
        self._made: set[bytes] = set()
        self._seen: set[bytes] = set()
        self._counts: dict[bytes, int] = {}
        self._written = b""
        self._first = b""
        self._place = 0

    def begin_node(self) -> None:
        """A node begins."""
        self._place, self._first = 0, b""

    def write(self, out: bytearray, kind: Kind, name: bytes) -> None:
        """Append a name."""
        if name and name == self._expected(kind):
            out.append(EXPECTED)
        elif not name:
            out.append(END)
        elif len(name) > _LONGEST or not _CONTROLS.isdisjoint(name):
            _write_plain(out, name)
        elif name in (listed := self._listed(kind)):
            out.append(KNOWN)
            put_varint(out, listed.index(name))
        else:
            stem, number = _split(name)
            if number is not None and number == self._counts.get(stem, 0) + 1:
                out += stem
                out.append(COUNTED)
            else:
                out += name
                out.append(END)
        self._note(kind, name)

    def read(self, source: Source, kind: Kind) -> bytes:
        """Take a name that `write` has written.

        Raises:
            IrregularError: It is not one.
        """
        first = source.data[source.position] if source.position < source.end else END
        if first == EXPECTED:
            source.position += 1
            name = self._expected(kind)
        elif first == KNOWN:
            source.position += 1
            listed, index = self._listed(kind), source.number()
            if index >= len(listed):
                raise IrregularError("a name is not known")
            name = listed[index]
        elif first in (END, PLAIN):
            name = read_text(source)
        else:
            name = self._spelled(source)
        self._note(kind, name)
        return name

    def _spelled(self, source: Source) -> bytes:
        begin = source.position
        for position in range(begin, min(source.end, begin + _LONGEST + 1)):
            if source.data[position] in _CONTROLS:
                break
        else:
            raise IrregularError("a name has no end")
        name = source.data[begin:position]
        source.position = position + 1
        if source.data[position] == COUNTED:
            return b"%s_%d" % (name, self._counts.get(name, 0) + 1)
        if source.data[position] != END:
            raise IrregularError("a name has another end")
        return name

    def _expected(self, kind: Kind) -> bytes:
        """The likeliest name here; empty for none."""
        if kind is Kind.INPUT:
            return self._written if self._place == 0 else b""
        if kind is Kind.NODE:
            return b"node_" + self._first if self._first else b""
        if kind is Kind.TENSOR:
            return self._open[self._cursor] if self._cursor < len(self._open) else b""
        if kind is Kind.VALUE:
            return self._open[0] if self._open else self._written
        return b""

    def _listed(self, kind: Kind) -> list[bytes]:
        # Not all of a long list: a file may have its tensors in any order.
        return self._open[:_OPEN] if kind in (Kind.TENSOR, Kind.VALUE) else self._recent

    def _note(self, kind: Kind, name: bytes) -> None:
        if not name:
            return
        stem, number = _split(name)
        if number is not None:
            self._counts[stem] = number
        if kind is Kind.INPUT:
            self._place += 1
            if name not in self._seen:
                self._seen.add(name)
                if name not in self._made:
                    self._open.append(name)
            self._remember(name)
        elif kind is Kind.OUTPUT:
            self._made.add(name)
            self._first = self._first or name
            self._written = self._first
            self._remember(name)
        elif name in (listed := self._listed(kind)) and kind is not Kind.NODE:
            place = listed.index(name)
            self._open.pop(place)
            if kind is Kind.TENSOR:
                self._cursor = place

    def _remember(self, name: bytes) -> None:
        """Put a name in front of those that stood last."""
        if name in self._recent:
            self._recent.remove(name)
        self._recent.insert(0, name)
        del self._recent[_RECENT:]


def _split(name: bytes) -> tuple[bytes, int | None]:
    """A name without the number behind its last underscore, and the number."""
    stem, _, digits = name.rpartition(b"_")
    counted = stem and digits.isdigit() and len(digits) < 9 and not digits.startswith(b"0")
    return (stem, int(digits)) if counted else (name, None)


def write_text(out: bytearray, text: bytes) -> None:
    """Append bytes up to an `END`, or with their length where they would not be told apart."""
    if END in text or text[:1] == bytes([PLAIN]):
        _write_plain(out, text)
    else:
        out += text
        out.append(END)


def _write_plain(out: bytearray, text: bytes) -> None:
    out.append(PLAIN)
    put_varint(out, len(text))
    out += text


def read_text(source: Source) -> bytes:
    """Take bytes that `write_text` has written.

    Raises:
        IrregularError: They have no end.
    """
    if source.position < source.end and source.data[source.position] == PLAIN:
        source.position += 1
        return source.take(source.number())
    end = source.data.find(END, source.position)
    if end < 0:
        raise IrregularError("a text has no end")
    text = source.take(end - source.position)
    source.position += 1
    return text
