"""Quantities with units, read and written exactly (fractions, never floating point).

kB is 1000 bytes and KiB 1024; k, M, G, T count in thousands; energies are multiples of one MAC's
energy ("20 GMAC", "20G") or joules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from energy_model.errors import BudgetError

Units = Mapping[str, Fraction]

_NUMBER = re.compile(
    r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*(.*?)\s*", re.DOTALL
)
_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def counting_units(word: str) -> dict[str, Fraction]:
    """Units of a count: bare, with k, M, G or T, and each followed by `word` or its plural."""
    nouns = ("", word, f"{word}s") if word else ("",)
    return {p + noun: Fraction(scale) for noun in nouns for p, scale in _PREFIXES.items()}


BYTES: Units = {
    **{f"{prefix}B": Fraction(scale) for prefix, scale in _PREFIXES.items()},
    "KiB": Fraction(2**10),
    "MiB": Fraction(2**20),
    "GiB": Fraction(2**30),
}
SECONDS: Units = {
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
}
JOULES: Units = {
    "J": Fraction(1),
    "mJ": Fraction(1, 10**3),
    "uJ": Fraction(1, 10**6),
    "nJ": Fraction(1, 10**9),
    "pJ": Fraction(1, 10**12),
}
# Those that energies are printed in, from the smallest.
_JOULES = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1.0}
COUNTS: Units = counting_units("")
MACS: Units = counting_units("MAC")


def split_quantity(text: str) -> tuple[Fraction, str]:
    """Splits `"2.5 MB"` into its exact number and its unit (`""` when there is none).

    Raises:
        BudgetError: It does not begin with a number.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise BudgetError(f"{text!r} is not a number with a unit", remedy='Write it like "2 MB".')
    return Fraction(match[1]), match[2]


def read_quantity(text: str, units: Units) -> Fraction:
    """Reads a number with one of `units`, in the unit whose scale is 1.

    Raises:
        BudgetError: Not a number, or another unit; the known ones are listed.
    """
    number, unit = split_quantity(text)
    if unit not in units:
        raise BudgetError(f"unknown unit {unit!r} in {text!r}", remedy=_unit_advice(unit, units))
    return number * units[unit]


def parse_bytes(quantity: str | int) -> int:
    """Bytes of `"40 kB"`, `"2 MB"`, `"1 KiB"` or a plain number of bytes; fractions round down.

    Raises:
        BudgetError: Malformed, or another unit.
    """
    return int(read_quantity(str(quantity), {"": Fraction(1), **BYTES}))


def parse_seconds(quantity: str) -> Fraction:
    """Seconds of `"500 us"`, `"3 ms"` or `"0.2 s"`, exactly.

    Raises:
        BudgetError: Malformed, or another unit.
    """
    return read_quantity(quantity, SECONDS)


def parse_count(quantity: str | int) -> int:
    """The count of `"20k"`, `"2M"`, `"1.5G"` or a plain number; fractions round down.

    Raises:
        BudgetError: Malformed, or another unit.
    """
    return int(read_quantity(str(quantity), COUNTS))


def parse_energy(quantity: str | int) -> tuple[Fraction, str]:
    """An energy with its unit: `"MAC"` for `"20G"` or `"20 GMAC"`, `"J"` for `"3 mJ"`.

    Raises:
        BudgetError: Malformed, or another unit.
    """
    value = read_quantity(str(quantity), {**MACS, **JOULES})
    return value, "J" if split_quantity(str(quantity))[1] in JOULES else "MAC"


def parse_share(quantity: str | float) -> Fraction:
    """The share of `"25%"`, `"0.25"` or `0.25`, exactly as its decimal digits say.

    Raises:
        BudgetError: Malformed.
    """
    return read_quantity(str(quantity), {"": Fraction(1), "%": Fraction(1, 100)})


def exact_decimal(value: Fraction) -> str:
    """All decimal digits of a fraction.

    Raises:
        BudgetError: It has infinitely many.
    """
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
        # A finite expansion has no more digits than its denominator has bits.
        if digits > value.denominator.bit_length():
            raise BudgetError(f"{value} has no finite decimal form", remedy="Round it first.")
    scaled = str(abs(int(value * 10**digits))).rjust(digits + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{scaled[:-digits]}.{scaled[-digits:]}" if digits else scaled)


def exact_text(value: Fraction, units: Units) -> str:
    """The shortest text that `read_quantity` reads back as exactly `value`.

    Raises:
        BudgetError: `value` has no finite decimal form in any unit.
    """
    texts = []
    for unit, scale in units.items():
        gap = "" if unit in _PREFIXES else " "
        texts.append(f"{exact_decimal(value / scale)}{gap}{unit}")
    return min(texts, key=len)


def format_count(value: float) -> str:
    """A count for people, to four digits: `"61.09M"`."""
    return _scaled(value)


def format_bytes(value: float) -> str:
    """Bytes for people, to four digits, in units of 1000: `"244.4 MB"`."""
    text = _scaled(value)
    prefix = text[-1] if text[-1].isalpha() else ""
    return f"{text.removesuffix(prefix)} {prefix}B"


def format_seconds(value: float) -> str:
    """Seconds for people, to four digits: `"3.2 ms"`."""
    unit = "s" if value >= 1 else "ms" if value >= 1e-3 else "us"
    return f"{value / SECONDS[unit]:.4g} {unit}"


def format_joules(value: float) -> str:
    """Joules for people, to four digits: `"2.34 mJ"`."""
    scaled = ((f"{value / scale:.4g}", unit) for unit, scale in _JOULES.items())
    # Compared after rounding, as in `_scaled`.
    fitting = (f"{text} {unit}" for text, unit in scaled if abs(float(text)) < 1000)
    return next(fitting, f"{value:.4g} J")


def _scaled(value: float) -> str:
    # Compared after rounding: 999,999 is 1M, not 1000k.
    texts = ((f"{value / scale:.4g}", prefix) for prefix, scale in _PREFIXES.items())
    fitting = (text + prefix for text, prefix in texts if abs(float(text)) < 1000)
    return next(fitting, f"{value / _PREFIXES['T']:.4g}T")


def _unit_advice(unit: str, units: Units) -> str:
    if unit == "KB" and "kB" in units:
        return 'Write "kB" for 1000 bytes or "KiB" for 1024 bytes.'
    alike = [known for known in units if known and known.lower() == unit.lower()]
    known = ", ".join(f'"{name}"' for name in units if name)
    return (f"Did you mean {' or '.join(alike)}? " if alike else "") + f"Known units: {known}."
