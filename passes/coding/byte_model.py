"""Bytes of a structured file, by context mixing: protobuf skeletons, names, small tables.

Every bit is predicted by what followed the same last bytes (of several numbers of them), the same
ones with all digits alike (`conv_12` and `conv_3`), the same word, the two bytes before the last
one, the same place after a zero, and by the longest match before; a mixer whose weights depend on
how much of this is known joins them. After Mahoney, "Adaptive weighing of context models for
lossless data compression", 2005, in integers. A prior text is read first, so that data like it
cost little. About 15 us for a bit.
"""

from __future__ import annotations

from functools import lru_cache
from operator import mul

from passes.coding.fixed import LIMIT, LN, ONE, PRECISION, SQUASH
from passes.coding.mixing import weight
from passes.coding.range_coder import Coder, Decoder, Encoder, Meter

# How many last bytes are contexts, and how many with digits alike.
_ORDERS = (0, 1, 2, 3, 4, 5, 7)
_BLURRED = (5, 8)
# Those, the word, the two bytes before the last one, and the place after a zero.
_TABLES = len(_ORDERS) + len(_BLURRED) + 3
# A match begins with so many bytes, and is the more trusted the longer it is, up to a length.
_MATCH = 6
_LONGEST = 31
_LONG = 16
_MOST_COUNT = 60
_MOST_HITS = 1000
# The other bit was seen: no more than this is left of a count.
_FADED = 2
_RATE = 30
_RATE_BITS = 20
_FIRST_WEIGHT = weight(0.35)
_ZERO, _DIGITS = ord("0"), range(ord("0"), ord("9") + 1)

# A state is how often a zero and a one were seen: zeros * _STATES + ones.
_STATES = _MOST_COUNT + 1


def _after(bit: int) -> list[int]:
    """The state that follows each state when a bit is seen."""
    most, faded = _MOST_COUNT, _FADED
    return [
        min(zeros, faded) * _STATES + min(ones + 1, most)
        if bit
        else min(zeros + 1, most) * _STATES + min(ones, faded)
        for zeros in range(_STATES)
        for ones in range(_STATES)
    ]


_AFTER = (_after(0), _after(1))
# Log-odds of a one in each state.
_ODDS = [
    LN[10 * ones + 1] - LN[10 * zeros + 1] for zeros in range(_STATES) for ones in range(_STATES)
]

Node = dict[int, int]
"""States of a context, by the bits of the byte so far behind a leading one."""


def encode_bytes(out: Encoder | Meter, data: bytes, prior: bytes = b"") -> None:
    """Write bytes; their number is not written.

    Args:
        out: Where to.
        data: The bytes, some ten thousand at most.
        prior: A text that the data may resemble; reading needs the same.
    """
    model = _primed(bytes(prior)).copy()
    for byte in data:
        model.code(out, byte)


def decode_bytes(source: Decoder, length: int, prior: bytes = b"") -> bytes:
    """Read bytes; any stream gives some.

    Args:
        source: Where from.
        length: How many.
        prior: As it was when they were written.
    """
    model = _primed(bytes(prior)).copy()
    return bytes(model.code(source) for _ in range(length))


class ByteModel:
    """Predicts bytes one after the other, and learns."""

    def __init__(self) -> None:
        self._history = bytearray()
        self._blurred = bytearray()
        self._tables: list[dict[int, Node]] = [{} for _ in range(_TABLES)]
        self._weights = [[_FIRST_WEIGHT] * (_TABLES + 1) for _ in range(3 * (len(_ORDERS) + 1))]
        self._word = 0
        self._zero = 0
        self._places: dict[bytes, int] = {}
        self._match = 0
        self._length = 0
        # Misses and hits, by the length of the match.
        self._hits = [[2, 2 + 2 * length] for length in range(_LONGEST + 1)]

    def copy(self) -> ByteModel:
        """Another one that knows the same."""
        other = ByteModel()
        other._history, other._blurred = self._history.copy(), self._blurred.copy()
        other._tables = [
            {key: node.copy() for key, node in table.items()} for table in self._tables
        ]
        other._weights = [weights[:] for weights in self._weights]
        other._word, other._zero = self._word, self._zero
        other._match, other._length = self._match, self._length
        other._places = self._places.copy()
        other._hits = [hits[:] for hits in self._hits]
        return other

    def code(self, coder: Coder, byte: int = 0) -> int:
        """Code a byte, and learn from it.

        Returns:
            The byte: the one given, or the one read.
        """
        nodes = self._nodes()
        known = 3 * sum(1 for node in nodes[: len(_ORDERS)] if node)
        expected = self._history[self._match] if self._length else 0
        matching = self._length > 0
        symbol = 1
        for place in range(7, -1, -1):
            guess = expected >> place & 1 if matching else -1
            bit = self._code_bit(coder, nodes, symbol, known, guess, byte >> place & 1)
            matching = matching and guess == bit
            symbol = symbol << 1 | bit
        self._append(symbol & 255, matching)
        return symbol & 255

    def _nodes(self) -> list[Node]:
        """For every context what is known of the bits after it."""
        history, blurred, zero = self._history, self._blurred, self._zero
        keys = [_last(history, order) for order in _ORDERS]
        keys += [_last(blurred, order) for order in _BLURRED]
        after_zero = int.from_bytes(history[zero : zero + 2], "big")
        keys += [
            self._word,
            int.from_bytes(history[-3:-1], "big"),
            (len(history) - zero) << 16 | after_zero,
        ]
        return [table.setdefault(key, {}) for table, key in zip(self._tables, keys, strict=True)]

    def _code_bit(
        self, coder: Coder, nodes: list[Node], symbol: int, known: int, guess: int, bit: int
    ) -> int:
        states = [node.get(symbol, 0) for node in nodes]
        inputs = [_ODDS[state] for state in states]
        hits = self._hits[min(self._length, _LONGEST)]
        if guess < 0:
            inputs.append(0)
        else:
            odds = LN[hits[1]] - LN[hits[0]]
            inputs.append(odds if guess else -odds)
            known += 1 if self._length < _LONG else 2
        weights = self._weights[known]
        total = sum(map(mul, weights, inputs)) >> PRECISION
        probability = SQUASH[min(max(total, -LIMIT), LIMIT) + LIMIT]
        bit = coder.code(probability, bit)
        error = (bit * ONE - probability) * _RATE
        half = 1 << (_RATE_BITS - 1)
        for place, odds in enumerate(inputs):
            weights[place] += odds * error + half >> _RATE_BITS
        after = _AFTER[bit]
        for node, state in zip(nodes, states, strict=True):
            node[symbol] = after[state]
        if guess >= 0:
            hits[guess == bit] += 1
            if max(hits) > _MOST_HITS:
                hits[:] = [hits[0] // 2 + 1, hits[1] // 2 + 1]
        return bit

    def _append(self, byte: int, matched: bool) -> None:
        history = self._history
        history.append(byte)
        self._blurred.append(_ZERO if byte in _DIGITS else byte)
        letter = byte < 128 and chr(byte).isalnum()
        self._word = (self._word * 0x2F0B4C47 + byte + 1) & 0xFFFFFFFF if letter else 0
        if byte == 0:
            self._zero = len(history)
        self._length = self._length + 1 if matched else 0
        self._match += 1
        tail = bytes(history[-_MATCH:])
        if not self._length and tail in self._places:
            self._match = self._places[tail]
            self._length = self._common()
        self._places[tail] = len(history)

    def _common(self) -> int:
        """How many bytes before the match are the same as the last ones."""
        history, length = self._history, 0
        most = min(_LONGEST, self._match)
        while length < most and history[self._match - 1 - length] == history[-1 - length]:
            length += 1
        return length


def _last(history: bytearray, order: int) -> int:
    return int.from_bytes(history[len(history) - order :] if order else b"", "big")


@lru_cache(maxsize=4)
def _primed(prior: bytes) -> ByteModel:
    """A model that has read a text; to be copied, for models learn."""
    model, meter = ByteModel(), Meter()
    for byte in prior:
        model.code(meter, byte)
    return model
