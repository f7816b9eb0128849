from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import CompressionError, StorageError
from passes.coding.frames import Reader, Writer
from passes.coding.lanes import PRECISION, Symbols
from passes.coding.models import ExpGolomb
from passes.coding.range_coder import Decoder, Encoder
from passes.coding.rans import (
    _code_table,
    decode_streams,
    encode_streams,
    histogram,
    quantized,
    stream_bits,
)


def slow_decoder(data: bytes, counts: list[int]) -> list[list[int]]:
    """One symbol after the other, in plain integers, from the definition of rANS."""
    reader = Reader(data)
    coder, numbers = Decoder(bytes(reader.block())), ExpGolomb(fine=1)
    tables = [_code_table(coder, numbers, np.zeros(0, np.int64)).tolist() for _ in counts]
    result = [
        [table.index(2**PRECISION)] * n if 2**PRECISION in table else []
        for table, n in zip(tables, counts, strict=True)
    ]
    if max(map(max, tables)) == 2**PRECISION == min(map(max, tables)):
        reader.end()
        return result
    lanes = reader.number(1 << 20)
    states = np.frombuffer(reader.block(), "<u4").tolist()
    assert len(states) == lanes
    words = iter(np.frombuffer(reader.block(), "<u2").tolist())
    reader.end()
    index = 0
    for table, symbols, count in zip(tables, result, counts, strict=True):
        starts = [sum(table[:symbol]) for symbol in range(257)]
        while len(symbols) < count:
            state = states[index % lanes]
            slot = state % 2**PRECISION
            symbol = next(s for s in range(256) if starts[s] <= slot < starts[s + 1])
            state = table[symbol] * (state >> PRECISION) + slot - starts[symbol]
            if state < 2**16:
                state = state << 16 | next(words)
            states[index % lanes] = state
            symbols.append(symbol)
            index += 1
    assert set(states) <= {2**16}
    assert next(words, None) is None
    return result


def encode_symbols(symbols: Symbols) -> bytes:
    return encode_streams([symbols])


def decode_symbols(data: bytes, count: int) -> Symbols:
    return decode_streams(data, [count])[0]


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_bytes_come_back(streams: list[bytes]) -> None:
    arrays = [np.frombuffer(stream, np.uint8) for stream in streams]
    counts = [len(stream) for stream in streams]
    data = encode_streams(arrays)
    assert [found.tobytes() for found in decode_streams(data, counts)] == streams
    if streams:
        assert [bytes(found) for found in slow_decoder(data, counts)] == streams


def geometric(count: int, p: float = 0.2, seed: int = 0) -> Symbols:
    symbols = np.minimum(np.random.default_rng(seed).geometric(p, count), 255).astype(np.uint8)
    symbols[:2] = 0, 9
    return symbols


@pytest.mark.parametrize("count", [2, 100, 3000])
def test_a_slow_decoder_reads_the_same(count: int) -> None:
    symbols = geometric(count)
    data = encode_symbols(symbols)
    assert slow_decoder(data, [count]) == [symbols.tolist()]


def test_a_slow_decoder_reads_many_lanes_and_many_streams() -> None:
    streams = [
        np.random.default_rng(1).integers(0, 200, 20_000).astype(np.uint8),
        geometric(7, 0.5),
        np.full(50, 3, np.uint8),
        geometric(11_111, 0.05),
        np.zeros(0, np.uint8),
        geometric(2),
    ]
    counts = [len(stream) for stream in streams]
    data = encode_streams(streams)
    assert slow_decoder(data, counts) == [stream.tolist() for stream in streams]
    assert [s.tolist() for s in decode_streams(data, counts)] == [s.tolist() for s in streams]


@pytest.mark.slow
def test_together_streams_cost_less_than_apart() -> None:
    streams = [geometric(3000, seed=seed) for seed in range(20)]
    together = len(encode_streams(streams))
    assert together < sum(len(encode_symbols(stream)) for stream in streams) - 100


def test_a_stream_too_many_or_too_few_is_noticed() -> None:
    data = encode_streams([geometric(3000), geometric(500, 0.5)])
    for counts in ([3000], [3500], [3000, 499], [2999, 501], [3000, 500, 4]):
        with pytest.raises(StorageError):
            decode_streams(data, counts)


def test_more_symbols_than_lanes_can_hold_are_refused() -> None:
    out, coder = Writer(), Encoder()
    _code_table(coder, ExpGolomb(fine=1), quantized(histogram(geometric(100))))
    out.block(coder.finish())
    out.number(1)
    out.block((1 << 16).to_bytes(4, "little"))
    out.block(b"")
    with pytest.raises(StorageError):
        decode_symbols(out.finish(), 1 << 40)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 10**9), min_size=256, max_size=256), st.integers(2, 256))
def test_frequencies_add_up_and_keep_every_symbol(counts: list[int], used: int) -> None:
    array = np.array(counts[:used] + [0] * (256 - used), np.int64)
    array[:2] += 1
    table = quantized(array)
    assert table.sum() == 2**PRECISION
    assert ((table > 0) == (array > 0)).all()


@pytest.mark.spread(1)
@pytest.mark.parametrize("weights", [[1] * 256, [0.9] + [0.1 / 15] * 15, [0.5, 0.5], [0.99, 0.01]])
def test_long_streams_cost_their_entropy(weights: list[float]) -> None:
    share = np.array(weights) / sum(weights)
    symbols = np.random.default_rng(2).choice(len(share), 1 << 20, p=share).astype(np.uint8)
    counts = histogram(symbols)
    counts = counts[counts > 0]
    entropy = -float((counts * np.log2(counts / len(symbols))).sum())
    data = encode_symbols(symbols)
    assert entropy / 8 <= len(data) < 1.02 * entropy / 8
    assert abs(stream_bits(histogram(symbols)) - 8 * len(data)) < 0.02 * entropy
    assert (decode_symbols(data, len(symbols)) == symbols).all()


def test_a_single_symbol_costs_nothing() -> None:
    symbols = np.full(100_000, 77, np.uint8)
    data = encode_symbols(symbols)
    assert len(data) < 5
    assert (decode_symbols(data, 100_000) == symbols).all()
    assert len(decode_symbols(encode_symbols(symbols[:0]), 0)) == 0


def test_damage_is_noticed() -> None:
    symbols = np.random.default_rng(3).integers(0, 9, 600).astype(np.uint8)
    data = encode_symbols(symbols)
    # The table is checked by its sum only; every word of the states and after them counts.
    for place in range(len(data) - 200, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(StorageError):
            decode_symbols(bytes(damaged), 600)
    for length in range(0, len(data), 11):
        with pytest.raises(StorageError):
            decode_symbols(data[:length], 600)
    with pytest.raises(StorageError):
        decode_symbols(data, 601)


@settings(max_examples=150)
@given(st.binary(max_size=80), st.integers(0, 500))
def test_random_bytes_are_symbols_or_an_error(data: bytes, count: int) -> None:
    try:
        symbols: Any = decode_symbols(data, count)
    except CompressionError:
        return
    assert symbols.shape == (count,)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=10), st.lists(st.binary(max_size=20)))
def test_frames_come_back(numbers: list[int], blocks: list[bytes]) -> None:
    out = Writer()
    for number in numbers:
        out.number(number)
    for block in blocks:
        out.block(block)
    reader = Reader(out.finish())
    assert len(out.finish()) == out.size
    assert [reader.number(2**64 - 1) for _ in numbers] == numbers
    assert [bytes(reader.block()) for _ in blocks] == blocks
    reader.end()
    with pytest.raises(StorageError):
        reader.number(9)


def test_a_frame_takes_another_one_without_copying_it() -> None:
    first, second = Writer(), Writer()
    first.number(7)
    block = memoryview(bytes(1000))
    second.block(block)
    first.extend(second)
    assert first.size == 1 + 2 + 1000
    assert any(part is block for part in first.parts)
    assert first.finish() == b"".join(first.parts) == b"\x07\xe8\x07" + bytes(1000)


def test_numbers_that_are_too_large_and_rests_are_refused() -> None:
    out = Writer()
    out.number(300)
    with pytest.raises(StorageError):
        Reader(out.finish()).number(299)
    with pytest.raises(StorageError):
        Reader(b"\xff" * 12).number(1 << 80)
    with pytest.raises(StorageError):
        Reader(b"\x05abc").block()
    with pytest.raises(StorageError):
        Reader(b"x").end()
    assert math.isfinite(Reader(b"\x07").number(7))
