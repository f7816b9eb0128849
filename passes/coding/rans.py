"""Streams of bytes, entropy-coded with static frequencies that stand in front of them.

Range asymmetric numeral systems after Duda, "Asymmetric numeral systems", arXiv 1311.2540, 2013;
interleaved after Giesen, "Interleaved entropy coders", arXiv 1402.3392, 2014. The states are shared
by all streams that are coded together: `passes.coding.lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from passes.coding.fixed import log2
from passes.coding.frames import Buffer, Reader, Writer
from passes.coding.lanes import PRECISION, Counts, Symbols, pop, push
from passes.coding.models import ExpGolomb
from passes.coding.range_coder import Coder, Decoder, Encoder, damaged

_TOTAL = 1 << PRECISION
_ALPHABET = 256
_PART = 1 << 16
_MAX_LANES = 1 << 12
# A lane costs about 20 bits, and its symbols this many: a sixteenth of a percent is lost.
_BITS_PER_LANE = 1 << 15
# Of few symbols an eighth of a percent is lost, lest they take as long as many.
_BITS_PER_SHORT_LANE = 1 << 14
_SHORT_LANES = 256
# Steps that many, very compressible symbols take at most.
_MAX_STEPS = 1 << 16
# What an entry of a table takes, about.
_TABLE_BITS = 8


def histogram(symbols: Symbols) -> Counts:
    """How often each of the 256 symbols occurs."""
    counts = np.zeros(_ALPHABET, np.int64)
    # In parts: bytes are made eight times as long to be counted.
    for first in range(0, len(symbols), _PART):
        counts += np.bincount(symbols[first : first + _PART], minlength=_ALPHABET)
    return counts


def quantized(counts: Counts) -> Counts:
    """Frequencies out of 2^14 for counts; at least 1 wherever something was counted.

    Args:
        counts: Shape `(256,)`, one of them positive.

    Returns:
        Frequencies, int64 of the same shape; they add up to 2^14.
    """
    total = int(counts.sum())
    scaled = np.where(counts > 0, np.maximum(counts * _TOTAL // total, 1), 0)
    missing = _TOTAL - int(scaled.sum())
    while missing:
        largest = int(scaled.argmax())
        # Given at once to the largest, who feels it least; taken from the largest in small parts.
        step = missing if missing > 0 else -min(-missing, max(int(scaled[largest]) // 16, 1))
        scaled[largest] += step
        missing -= step
    return scaled


def stream_bits(counts: Counts) -> int:
    """About how many bits symbols with these counts take, with their table."""
    used = counts > 0
    if used.sum() < 2:
        return _TABLE_BITS
    each = (PRECISION << 16) - log2(quantized(counts)[used].astype(np.uint64))
    return (int((counts[used] * each).sum()) >> 16) + _TABLE_BITS * int(used.sum())


def encode_streams(streams: Sequence[Symbols]) -> bytes:
    """Code streams of bytes, each with its own frequencies.

    Args:
        streams: Shapes `(n_i,)`; any of them may be empty.

    Returns:
        What `decode_streams` reads.
    """
    out, coder, numbers = Writer(), Encoder(), ExpGolomb(fine=1)
    symbols, tables, bits = [], [], 0
    for stream in streams:
        counts = histogram(stream if len(stream) else np.zeros(1, np.uint8))
        table = _code_table(coder, numbers, quantized(counts))
        if not _is_constant(table):
            symbols.append(stream)
            tables.append(table)
            bits += stream_bits(counts)
    out.block(coder.finish())
    if symbols:
        lanes = _lanes(sum(map(len, symbols)), bits)
        states, words = push(symbols, tables, lanes)
        out.number(lanes)
        out.block(states.astype("<u4").tobytes())
        out.block(words.astype("<u2", copy=False).tobytes())
    return out.finish()


def decode_streams(data: Buffer, counts: Sequence[int]) -> list[Symbols]:
    """Read what `encode_streams` wrote.

    Args:
        data: All of it.
        counts: How many symbols each of the streams has.

    Returns:
        The streams, shapes `(counts[i],)`; not to be written to.

    Raises:
        StorageError: The data are damaged.
    """
    reader, numbers = Reader(data), ExpGolomb(fine=1)
    coder = Decoder(bytes(reader.block()))
    tables = [_code_table(coder, numbers, np.zeros(0, np.int64)) for _ in counts]
    coded = [place for place, table in enumerate(tables) if not _is_constant(table)]
    found = [np.broadcast_to(np.uint8(t.argmax()), n) for t, n in zip(tables, counts, strict=True)]
    if coded:
        states, words = _read_lanes(reader, sum(counts[place] for place in coded))
        streams = pop(states, words, [tables[c] for c in coded], [counts[c] for c in coded])
        for place, stream in zip(coded, streams, strict=True):
            found[place] = stream
    reader.end()
    return found


def _lanes(count: int, bits: int) -> int:
    short = min(bits // _BITS_PER_SHORT_LANE, _SHORT_LANES)
    return min(max(bits // _BITS_PER_LANE, short, -(-count // _MAX_STEPS), 1), _MAX_LANES)


def _read_lanes(reader: Reader, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """The states and words of so many symbols."""
    lanes = reader.number(_MAX_LANES)
    states, words = reader.block(), reader.block()
    if len(states) != 4 * lanes or len(words) % 2 or count > lanes * _MAX_STEPS:
        raise damaged()
    return np.frombuffer(states, "<u4").astype(np.uint32), np.frombuffer(words, "<u2")


def _is_constant(table: Counts) -> bool:
    return int(table.max()) == _TOTAL


def _code_table(coder: Coder, numbers: ExpGolomb, table: Counts) -> Counts:
    """Code frequencies up to the last symbol that has one; a decoder is given none."""
    used = np.flatnonzero(table)
    last = int(used[-1]) if len(used) else 0
    read = np.zeros(_ALPHABET, np.int64)
    if not coder.uniform(int(len(used) > 1), 2):
        read[coder.bits(last, 8)] = _TOTAL
        return read
    given = table.tolist() or [0] * _ALPHABET
    for symbol in range(coder.uniform(last, _ALPHABET) + 1):
        read[symbol] = number = numbers.code(coder, given[symbol])
        if number >= _TOTAL:
            raise damaged()
    if int(read.sum()) != _TOTAL:
        raise damaged()
    return read
