from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.hardware import Hardware, load_hardware
from energy_model.unit_prices import (
    PARTS,
    OperandPrices,
    UnitPrices,
    charged_bits,
    in_units,
    plain,
    unit_prices,
)
from energy_model.widths import WORDS, Widths

EYERISS = load_hardware("eyeriss")


def test_words_cost_what_the_hardware_says() -> None:
    expected = UnitPrices(
        weights=OperandPrices(200 * 256, 6 * 256, 256, 4096),
        inputs=OperandPrices(200 * 256, 6 * 256, 256, 51200),
        output=200 * 256,
        mac=3 * 256,
    )
    assert unit_prices(EYERISS, WORDS) == expected
    assert unit_prices(EYERISS, Widths(16, 16, 16)) == expected
    assert unit_prices(EYERISS, Widths(32, 17, 64)) == expected


def test_narrow_operands_by_hand() -> None:
    # 4 of 16 bits: 50, 1.5, 0.25; 8 of 16: 100, 3, 0.5; 12 of 16: 150; 3 * 4 * 8 / 256 = 0.375.
    assert unit_prices(EYERISS, Widths(4, 8, 12)) == UnitPrices(
        weights=OperandPrices(50 * 256, 384, 64, 16384),
        inputs=OperandPrices(100 * 256, 768, 128, 102400),
        output=150 * 256,
        mac=96,
    )


@given(
    bits=st.tuples(*[st.integers(1, 16)] * 3),
    prices=st.tuples(*[st.integers(1, 40_000)] * 4),
)
def test_with_words_of_16_bits_nothing_is_rounded(bits: tuple, prices: tuple) -> None:
    names = ("mac_energy", "dram_energy", "cache_energy", "rf_energy")
    hardware = Hardware("x", **dict(zip(names, prices, strict=True)))
    found = unit_prices(hardware, Widths(*bits))
    mac, dram, cache, rf = prices
    for operand, width in ((found.weights, bits[0]), (found.inputs, bits[1])):
        shares = [Fraction(price * width, 16) * PARTS for price in (dram, cache, rf)]
        assert [operand.dram, operand.cache, operand.rf] == shares
    assert found.output == Fraction(dram * bits[2], 16) * PARTS
    assert found.mac == Fraction(mac * bits[0] * bits[1], 256) * PARTS


@pytest.mark.slow
@given(word=st.integers(1, 40), bits=st.integers(1, 50))
def test_with_other_words_prices_round_up_to_a_part(word: int, bits: int) -> None:
    hardware = Hardware("x", word_bits=word)
    narrow = min(bits, word)
    found = unit_prices(hardware, Widths(bits, bits, bits))
    exact = Fraction(200 * narrow * PARTS, word)
    assert 0 <= found.weights.dram - exact < 1
    assert 0 <= found.mac - Fraction(3 * narrow**2 * PARTS, word**2) < 1
    assert found.inputs.capacity == 102400 * 8 // narrow
    if bits >= word:
        assert found == unit_prices(hardware, WORDS)


def test_no_more_than_a_word_is_charged() -> None:
    assert [charged_bits(bits, EYERISS) for bits in (None, 4, 16, 32)] == [16, 4, 16, 16]


@given(st.integers(0, 2**53 - 1))
def test_amounts_are_exact_and_whole_ones_integers(parts: int) -> None:
    found = in_units(parts)
    assert Fraction(found) == Fraction(parts, 256)
    assert isinstance(found, int) == (parts % 256 == 0)


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (3.0, 3), (0.5, 0.5), (-2.0, -2)])
def test_plain_numbers(value: float, expected: float) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)
