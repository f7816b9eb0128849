from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import StorageError
from passes.coding.fixed import ONE
from passes.coding.models import BitTree, ExpGolomb, code_below, code_number
from passes.coding.range_coder import Bit, Coder, Decoder, Encoder, Meter

events = st.lists(st.tuples(st.integers(1, ONE - 1), st.integers(0, 1)), max_size=300)
numbers = st.lists(st.tuples(st.integers(1, 2**16), st.integers(0, 2**16)), max_size=100)


def encoded(bits: list[tuple[int, int]]) -> bytes:
    encoder = Encoder()
    for probability, bit in bits:
        assert encoder.code(probability, bit) == bit
    return encoder.finish()


@given(events)
def test_what_is_coded_is_decoded(bits: list[tuple[int, int]]) -> None:
    decoder = Decoder(encoded(bits))
    assert [decoder.code(p) for p, _ in bits] == [bit for _, bit in bits]


@given(numbers, events)
def test_uniform_numbers_and_bits_share_a_stream(
    pairs: list[tuple[int, int]], bits: list[tuple[int, int]]
) -> None:
    encoder = Encoder()
    for count, value in pairs:
        encoder.uniform(value % count, count)
    for probability, bit in bits:
        encoder.code(probability, bit)
    decoder = Decoder(encoder.finish())
    assert [decoder.uniform(0, count) for count, _ in pairs] == [v % c for c, v in pairs]
    assert [decoder.code(p) for p, _ in bits] == [bit for _, bit in bits]


def test_carries_run_through_bytes_of_255() -> None:
    # Zeros of tiny probability push the low end right below a power of two, then one carries.
    for tail in range(40):
        bits = [(1, 0), (ONE - 1, 0)] * tail + [(ONE - 1, 0)] * 7 + [(ONE // 2, 0)] * tail
        decoder = Decoder(encoded(bits))
        assert [decoder.code(p) for p, _ in bits] == [bit for _, bit in bits]


def exact_interval(bits: list[tuple[int, int]]) -> tuple[int, int, int]:
    """Low end, width and scale (bits) of the interval, with the coder's rounding, exactly."""
    low, width, scale = 0, 2**32 - 1, 32
    for probability, bit in bits:
        bound = width * probability >> 16
        low, width = (low, bound) if bit else (low + bound, width - bound)
        while width < 2**24:
            low, width, scale = low << 8, width << 8, scale + 8
    return low, width, scale


@given(events)
def test_the_tail_is_the_shortest_one(bits: list[tuple[int, int]]) -> None:
    data = encoded(bits)
    low, width, scale = exact_interval(bits)

    def inside(length: int, value: int) -> bool:
        return low <= value << (scale - 8 * length) < low + width

    assert inside(len(data), int.from_bytes(data, "big"))
    if data:
        shorter = len(data) - 1
        smallest = -(-low >> (scale - 8 * shorter))
        assert not inside(shorter, smallest), "a shorter number lies in the interval"


def test_the_tail_costs_little_on_average() -> None:
    generator = random.Random(0)
    excess = 0.0
    for _ in range(200):
        bits = [(p := generator.randrange(1000, ONE - 1000), int(generator.random() * ONE < p))
                for _ in range(100)]  # fmt: skip
        meter = Meter()
        for probability, bit in bits:
            meter.code(probability, bit)
        excess += 8 * len(encoded(bits)) - meter.total
    assert excess / 200 < 7


@given(events)
def test_the_meter_knows_the_length(bits: list[tuple[int, int]]) -> None:
    meter = Meter()
    for probability, bit in bits:
        meter.code(probability, bit)
    exact = sum(-math.log2((p if bit else ONE - p) / ONE) for p, bit in bits)
    assert meter.total == pytest.approx(exact, abs=1e-3 + 2e-5 * len(bits))
    # Zeros at the end are not written: it may be much less, never much more.
    assert 8 * len(encoded(bits)) < meter.total + 8.01


def test_a_damaged_uniform_number_is_refused() -> None:
    decoder = Decoder(b"\xff" * 8)
    with pytest.raises(StorageError, match="do not decode"):
        decoder.uniform(0, 3)


def test_an_adaptive_bit_is_the_estimate_of_krichevsky_and_trofimov() -> None:
    model, ones = Bit(), 0
    for count, bit in enumerate([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0]):
        assert model.probability / ONE == pytest.approx((ones + 0.5) / (count + 1), abs=2e-4)
        model.update(bit)
        ones += bit


def test_an_adaptive_bit_never_becomes_certain() -> None:
    model = Bit(limit=1023)
    for _ in range(200_000):
        model.update(1)
    assert model.probability == ONE - 1 or model.probability > ONE - 80
    for _ in range(200_000):
        model.update(0)
    assert 0 < model.probability < 80


@given(st.lists(st.integers(0, 2**40), max_size=40), st.integers(0, 6), st.integers(0, 4))
def test_exponential_golomb_numbers_come_back(values: list[int], order: int, fine: int) -> None:
    encoder, meter = Encoder(), Meter()
    for coder in (encoder, meter):
        model = ExpGolomb(order, fine)
        assert [model.code(coder, value) for value in values] == values
    data = encoder.finish()
    model, decoder = ExpGolomb(order, fine), Decoder(data)
    assert [model.code(decoder) for _ in values] == values
    assert 8 * len(data) < meter.total + 8.01


@given(st.lists(st.integers(0, 63), max_size=60))
def test_trees_come_back(symbols: list[int]) -> None:
    encoder, tree = Encoder(), BitTree(6)
    for symbol in symbols:
        tree.code(encoder, symbol)
    decoder, tree = Decoder(encoder.finish()), BitTree(6)
    assert [tree.code(decoder) for _ in symbols] == symbols


@given(st.integers(1, 2**70), st.data())
def test_numbers_below_any_count_cost_its_logarithm(count: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, count - 1))
    encoder, meter = Encoder(), Meter()
    assert code_below(meter, value, count) == code_below(encoder, value, count) == value
    assert code_below(Decoder(encoder.finish()), 0, count) == value
    assert meter.total <= math.log2(count) + 0.01


def test_a_number_that_is_not_below_is_refused() -> None:
    encoder = Encoder()
    encoder.uniform(2**15, 2**15 + 1)
    encoder.bits(1, 1)
    with pytest.raises(StorageError):
        code_below(Decoder(encoder.finish()), 0, 2**16 + 1)


class Ones(Decoder):
    """Reads nothing but ones."""

    __slots__ = ()

    def code(self, probability: int, bit: int = 0) -> int:
        return 1


def test_endless_prefixes_are_refused() -> None:
    with pytest.raises(StorageError):
        code_number(Ones(b""))


def test_adaptive_trees_reach_the_entropy() -> None:
    generator = random.Random(1)
    meter, tree = Meter(), BitTree(3, limit=1023)
    weights = [40, 20, 10, 10, 8, 6, 4, 2]
    symbols = generator.choices(range(8), weights, k=20_000)
    for symbol in symbols:
        tree.code(meter, symbol)
    counts = [symbols.count(symbol) for symbol in range(8)]
    entropy = -sum(c * math.log2(c / len(symbols)) for c in counts)
    assert entropy < meter.total < 1.005 * entropy + 64


def test_coders_have_one_interface() -> None:
    coders: list[Coder] = [Encoder(), Decoder(b""), Meter()]
    for coder in coders:
        model = Bit()
        assert coder.bit(model, 0) in (0, 1)
        assert 0 <= coder.bits(5, 3) < 8
