from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model import units
from energy_model.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("40 kB", 40_000),
        ("2MB", 2_000_000),
        ("1 KiB", 1024),
        (" 1.5 MiB ", 1_572_864),
        ("1 GB", 10**9),
        ("7 B", 7),
        (12, 12),
        ("12", 12),
    ],
)
def test_bytes(text: str | int, value: int) -> None:
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 KB", '"kB" for 1000 bytes or "KiB" for 1024 bytes'),
        ("2 mb", "Did you mean MB"),
        ("2 parsecs", 'Known units: "B", "kB"'),
        ("two MB", "not a number with a unit"),
        ("", "not a number"),
        ("1e999 B", "not a number|unknown unit"),
    ],
)
def test_bytes_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        units.parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500 us", Fraction(1, 2000)),
        ("500µs", Fraction(1, 2000)),
        ("3 ms", Fraction(3, 1000)),
        ("0.2 s", Fraction(1, 5)),
    ],
)
def test_seconds(text: str, value: Fraction) -> None:
    assert units.parse_seconds(text) == value


def test_counts_shares_and_energies() -> None:
    assert [units.parse_count(t) for t in ("20k", "2M", "1.5G", 7)] == [
        20_000,
        2 * 10**6,
        15 * 10**8,
        7,
    ]
    assert units.parse_share("25%") == units.parse_share("0.25") == units.parse_share(0.25)
    assert units.parse_share(0.1) == Fraction(1, 10)
    assert (
        units.parse_energy("20G") == units.parse_energy("20 GMAC") == (Fraction(20 * 10**9), "MAC")
    )
    assert units.parse_energy("3 mJ") == (Fraction(3, 1000), "J")
    assert units.parse_energy("2 pJ") == (Fraction(2, 10**12), "J")
    with pytest.raises(BudgetError, match="unknown unit 'm'"):
        units.parse_count("2m")


TABLES = [units.BYTES, units.SECONDS, units.MACS, units.JOULES]


@given(st.integers(1, 10**15), st.integers(0, 9), st.sampled_from(TABLES))
def test_exact_text_reads_back(number: int, digits: int, table: units.Units) -> None:
    value = Fraction(number, 10**digits)
    assert units.read_quantity(units.exact_text(value, table), table) == value


def test_exact_text_is_short() -> None:
    assert units.exact_text(Fraction(2_000_000), units.BYTES) == "2 MB"
    assert units.exact_text(Fraction(1024), units.BYTES) == "1 KiB"
    assert units.exact_text(Fraction(1, 2000), units.SECONDS) == "0.5 ms"
    assert units.exact_text(Fraction(20_000), units.COUNTS) == "20k"


def test_exact_decimals() -> None:
    values = [Fraction(25, 100), Fraction(3), Fraction(-1, 8), Fraction(1, 10**12)]
    assert [units.exact_decimal(v) for v in values] == ["0.25", "3", "-0.125", "0.000000000001"]
    with pytest.raises(BudgetError, match="1/3 has no finite decimal form"):
        units.exact_decimal(Fraction(1, 3))


def test_texts_for_people() -> None:
    counts = [units.format_count(n) for n in (0, 999, 61_470, 999_999, 27_445_303_656, 10**17)]
    assert counts == ["0", "999", "61.47k", "1M", "27.45G", "1e+05T"]
    assert [units.format_bytes(n) for n in (12, 244_403_660)] == ["12 B", "244.4 MB"]
    assert [units.format_seconds(t) for t in (2.5, 0.0032, 5e-5)] == ["2.5 s", "3.2 ms", "50 us"]
    joules = [units.format_joules(e) for e in (0, 1e-14, 999.96e-9, 0.00234, 2.5e-6, 5000)]
    assert joules == ["0 fJ", "10 fJ", "1 uJ", "2.34 mJ", "2.5 uJ", "5000 J"]
