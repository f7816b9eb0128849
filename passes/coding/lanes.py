"""Interleaved rANS: thousands of states that advance together, one step of numpy after the other.

States lie in [2^16, 2^32) and are refilled by words of 16 bits, at most one for a symbol; words
stand in the order in which the decoder needs them. Streams with tables of their own share the
states: symbol i of all streams one after the other belongs to state i mod lanes. So a step has as
many lanes as all streams have bits for, and the bytes of a state are paid for once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from passes.coding.range_coder import damaged

Symbols = NDArray[np.uint8]
Counts = NDArray[np.int64]
States = NDArray[np.uint32]
Words = NDArray[np.uint16]

PRECISION = 14
"""Bits of a frequency."""

_LOWEST = np.uint32(1 << 16)
_WORD = np.uint32(16)
_SHIFT = np.uint32(PRECISION)
# A state that is a frequency, or more, times two to this overflows when its symbol is pushed.
_OVERFLOW = np.uint32(32 - PRECISION)
_TOTAL = np.uint32(1 << PRECISION)
_LOW = np.uint32((1 << PRECISION) - 1)
# Symbols whose frequencies are looked up at once.
_BLOCK = 1 << 15


def push(streams: Sequence[Symbols], tables: Sequence[Counts], lanes: int) -> tuple[States, Words]:
    """Push the symbols of all streams, the last one first.

    Args:
        streams: Shapes `(n_i,)`, n_i positive.
        tables: Frequencies, shapes `(256,)`, at least two of each positive; they add up to 2^14.
        lanes: How many states there are.

    Returns:
        The states after all symbols, and the words that were pushed out of them.
    """
    states = np.full(lanes, _LOWEST, np.uint32)
    words = np.empty(sum(map(len, streams)) + lanes, np.uint16)
    place = len(words)
    for frequencies, starts in _looked_up(streams, tables, lanes):
        for first in range((len(starts) - 1) // lanes * lanes, -1, -lanes):
            frequency = frequencies[first : first + lanes]
            state = states[: len(frequency)]
            full = (state >> _OVERFLOW >= frequency).nonzero()[0]
            pushed = state[full]
            place -= len(full)
            words[place : place + len(full)] = pushed
            state[full] = pushed >> _WORD
            quotient = state // frequency
            # state = quotient * 2^14 + start + state mod frequency
            quotient *= _TOTAL - frequency
            state += quotient
            state += starts[first : first + lanes]
    return states, words[place:]


def _looked_up(
    streams: Sequence[Symbols], tables: Sequence[Counts], lanes: int
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint32]]]:
    """Frequencies of the symbols and where their intervals start, in blocks, the last one first."""
    bounds = np.cumsum([0, *map(len, streams)]).tolist()
    size = max(_BLOCK // lanes, 1) * lanes
    frequencies, starts = np.empty((2, size), np.uint32)
    stream = len(streams) - 1
    for first in range((bounds[-1] - 1) // size * size, -1, -size):
        end = last = min(first + size, bounds[-1])
        while end > first:
            begin = max(first, bounds[stream])
            symbols = streams[stream][begin - bounds[stream] : end - bounds[stream]]
            table, part = tables[stream], slice(begin - first, end - first)
            table.astype(np.uint32).take(symbols, out=frequencies[part], mode="clip")
            start = (np.cumsum(table) - table).astype(np.uint32)
            start.take(symbols, out=starts[part], mode="clip")
            stream -= begin == bounds[stream]
            end = begin
        yield frequencies[: last - first], starts[: last - first]


def pop(
    states: States, words: Words, tables: Sequence[Counts], sizes: Sequence[int]
) -> list[Symbols]:
    """Pop symbols off the states, which must end where the encoder began.

    Args:
        states: After all symbols; they are changed.
        words: In the order in which they are needed.
        tables: As they were pushed with.
        sizes: How many symbols each stream has.

    Returns:
        The streams, of these sizes.

    Raises:
        StorageError: No encoder made these states and words.
    """
    bounds = np.cumsum([0, *sizes]).tolist()
    symbols = np.empty(bounds[-1], np.uint8)
    lanes, place, stream = len(states), 0, 0
    slots, parts = np.empty(lanes, np.int64), np.empty(lanes, np.uint32)
    symbol_of, part_of = _by_slot(tables[0])
    for first in range(0, len(symbols), lanes):
        begin, last = first, min(first + lanes, len(symbols))
        state, slot, part = states[: last - first], slots[: last - first], parts[: last - first]
        np.bitwise_and(state, _LOW, out=slot)
        while begin < last:
            if begin == bounds[stream + 1]:
                stream += 1
                symbol_of, part_of = _by_slot(tables[stream])
                continue
            end = min(bounds[stream + 1], last)
            inside = slot[begin - first : end - first]
            symbol_of.take(inside, out=symbols[begin:end], mode="clip")
            part_of.take(inside, out=part[begin - first : end - first], mode="clip")
            begin = end
        # state = (state div 2^14) * frequency + slot - start
        state >>= _SHIFT
        state *= part >> _SHIFT
        part &= _LOW
        state += part
        empty = (state < _LOWEST).nonzero()[0]
        refill = words[place : place + len(empty)]
        if len(refill) != len(empty):
            raise damaged()
        place += len(empty)
        state[empty] = state[empty] << _WORD | refill
    if place != len(words) or (states != _LOWEST).any():
        raise damaged()
    return np.split(symbols, bounds[1:-1])


def _by_slot(table: Counts) -> tuple[Symbols, NDArray[np.uint32]]:
    """For each of the 2^14 slots its symbol; and its frequency, and 14 bits below slot - start."""
    symbol_of = np.repeat(np.arange(len(table), dtype=np.uint8), table)
    starts = np.repeat(np.cumsum(table) - table, table)
    part_of = np.repeat(table, table) << PRECISION | np.arange(len(starts)) - starts
    return symbol_of, part_of.astype(np.uint32)
