"""What a budget can limit, and in which units."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction

from energy_model.errors import BudgetError
from energy_model.units import BYTES, JOULES, MACS, SECONDS, Units, counting_units, read_quantity


@dataclass(frozen=True, slots=True)
class Measure:
    """One key of a budget.

    Attributes:
        what: What it is, for messages.
        unit: The base unit of absolute limits.
        one: One base unit in words, for messages.
        units: Every unit of absolute limits, as multiples of the base unit.
        example: An absolute limit as a user writes it.
        bare_integers: Whether an integer without a unit is an absolute limit.
        joules: Whether joules are understood too.
    """

    what: str
    unit: str
    one: str
    units: Units
    example: str
    bare_integers: bool = True
    joules: bool = False

    @property
    def base_units(self) -> tuple[str, ...]:
        """The units that a limit may be kept in."""
        return (self.unit, "J") if self.joules else (self.unit,)

    @property
    def whole_units(self) -> tuple[str, ...]:
        """The base units of which there are only whole ones."""
        return () if self.unit == "s" else (self.unit,)

    @property
    def absolute_advice(self) -> str:
        """How to write an absolute limit."""
        integers = "integers or " if self.bare_integers else ""
        return f'{integers}numbers with a unit, e.g. "{self.example}"'

    def examples(self, key: str) -> str:
        """A relative and an absolute limit, ready to be copied."""
        return f'{key}="25%" or {key}="{self.example}"'

    def read(self, text: str) -> tuple[Fraction, str]:
        """An absolute quantity in its base unit, and that unit; counts are rounded down.

        Raises:
            BudgetError: Malformed, or an unknown unit.
        """
        if self.joules and text.rstrip().endswith("J"):
            return read_quantity(text, JOULES), "J"
        value = read_quantity(text, {**self.units, **JOULES} if self.joules else self.units)
        return (Fraction(value // 1) if self.whole_units else value), self.unit

    def display_units(self, value: Fraction, unit: str) -> Units:
        """The units to print a limit in, such that it reads back as an absolute limit."""
        if unit == "J":
            return JOULES
        # "1" alone has two readings, and bare weights and parameters read best: "20k".
        bare = self.unit in ("weight", "param") and value != 1
        letter = "" if bare else self.unit
        return {
            name: scale
            for name, scale in self.units.items()
            if name.endswith(letter) and (not bare or len(name) < 2)
        }


_BITS: Units = {
    **counting_units("bit"),
    **{unit: 8 * scale for unit, scale in BYTES.items()},
}

MEASURES = {
    "energy": Measure(
        "modelled energy", "MAC", "the energy of one MAC", MACS, "20 GMAC", joules=True
    ),
    "size": Measure("model file", "B", "one byte", BYTES, "2 MB"),
    "archive": Measure("packed file", "B", "one byte", BYTES, "2 MB"),
    "ram": Measure("activation memory", "B", "one byte", BYTES, "2 MB"),
    "weight_bits": Measure("weight bits", "bit", "one bit", _BITS, "2 Mbit"),
    "nonzeros": Measure("weights", "weight", "one weight", counting_units("weight"), "20k"),
    "params": Measure("parameters", "param", "one parameter", counting_units("param"), "2M"),
    "macs": Measure("MACs", "MAC", "one MAC", MACS, "1.5G"),
    "sparse_macs": Measure("MACs with nonzero weights", "MAC", "one MAC", MACS, "150M"),
    "latency": Measure("latency", "s", "one second", SECONDS, "3 ms", bare_integers=False),
}
"""Key of a budget to its measure, in the order in which budgets print."""


def find_measure(key: str) -> Measure:
    """The measure of a key.

    Raises:
        BudgetError: Unknown key; the known ones are listed.
    """
    if key in MEASURES:
        return MEASURES[key]
    alike = difflib.get_close_matches(key, MEASURES, n=1)
    guess = f"Did you mean {alike[0]}? " if alike else ""
    raise BudgetError(
        f"unknown key {key!r}",
        where="budget",
        remedy=f"{guess}Known keys: {', '.join(MEASURES)}; and sparsity (>=).",
    )
