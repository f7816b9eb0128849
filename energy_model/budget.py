"""Upper limits on what a compressed model may cost, read once, at the edge.

`"energy<=25%, size<=2 MB"`: a comma means and. Floats in (0, 1] and percentages are shares of the
original dense model; integers and numbers with units are absolute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral
from typing import Any

import numpy as np

from energy_model.errors import BudgetError
from energy_model.hardware import Hardware
from energy_model.measures import MEASURES, Measure, find_measure
from energy_model.units import (
    counting_units,
    exact_decimal,
    exact_text,
    parse_share,
    split_quantity,
)

Quantity = str | int | float
"""A share (`0.25`, `"25%"`) or an absolute amount (`40_000`, `"40 kB"`)."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One upper limit.

    Attributes:
        key: What is limited, e.g. `"energy"`.
        value: The limit in `unit`, exactly.
        unit: `"share"` of the original, or the absolute base unit: `"MAC"` (multiples of one MAC's
            energy, or MACs), `"J"`, `"B"`, `"bit"`, `"weight"`, `"param"`, `"s"`.
        bits: Of weight bits only: `value` is the share of every layer's weights that is kept,
            rounded up layer by layer, each at so many bits. See `joint_budget`.

    Raises:
        BudgetError: Unknown key or unit, a value that is not positive, a share above 1, a count
            that is not whole, or a value without a finite decimal form.
    """

    key: str
    value: Fraction
    unit: str = "share"
    bits: Fraction | None = None

    def __post_init__(self) -> None:
        measure = find_measure(self.key)
        if self.unit not in ("share", *measure.base_units):
            raise BudgetError(
                f"{self.unit!r} is not a unit of this limit",
                where=self.key,
                remedy=f"Known: share, {', '.join(measure.base_units)}.",
            )
        object.__setattr__(self, "value", Fraction(self.value))
        exact_decimal(self.value)
        if self.value <= 0:
            raise BudgetError(
                f"a limit of {exact_decimal(self.value)} leaves nothing of the model",
                where=self.key,
                remedy=f"Give a positive limit, e.g. {measure.examples(self.key)}.",
            )
        if self.relative and self.value > 1:
            raise BudgetError(
                f"{exact_decimal(self.value)} is a share above 1",
                where=self.key,
                remedy=f"Shares end at 100%; absolute limits are {measure.absolute_advice}.",
            )
        if self.unit in measure.whole_units and self.value.denominator != 1:
            raise BudgetError(
                f"{self.value} is not a whole number of {self.unit}",
                where=self.key,
                remedy="Round it down.",
            )
        if self.bits is not None:
            self._check_bits(Fraction(self.bits))

    def _check_bits(self, bits: Fraction) -> None:
        object.__setattr__(self, "bits", bits)
        exact_decimal(bits)
        if self.key != "weight_bits" or not self.relative or not 0 < bits <= 32:
            raise BudgetError(
                f"a share at {exact_decimal(bits)} bits",
                where=self.key,
                remedy="Write a share of the weights at up to 32 bits: weight_bits<=0.54% x 3 bit.",
            )

    @property
    def relative(self) -> bool:
        """Whether the limit is a share of the original dense model."""
        return self.unit == "share"

    @property
    def text(self) -> str:
        """The value alone as the grammar writes it: `"25%"`, `"2 MB"`."""
        if self.relative:
            each = "" if self.bits is None else f" x {exact_decimal(self.bits)} bit"
            return f"{exact_decimal(self.value * 100)}%{each}"
        return exact_text(self.value, MEASURES[self.key].display_units(self.value, self.unit))

    def __str__(self) -> str:
        return f"{self.key}<={self.text}"

    def resolve(
        self,
        base: float | None = None,
        hardware: Hardware | None = None,
        layers: Sequence[int] = (),
    ) -> int | float:
        """The absolute limit in the key's own unit.

        Args:
            base: The original's value, needed for a share: an integer count, or seconds.
            hardware: The profile that knows the joules of one MAC, needed for joules.
            layers: Weights of every layer, needed for a share at so many bits.

        Returns:
            Seconds (float) for latency; for every other key the largest allowed integer,
            floor(share x base) without rounding errors.

        Raises:
            BudgetError: `base` is missing, or the profile does not know its joules.
        """
        value = self.value
        if self.bits is not None:
            value = self.bits * sum(math.ceil(value * size) for size in layers)
        elif self.relative:
            value *= self._checked_base(base)
        elif self.unit == "J":
            value /= self._joules_per_mac(hardware)
        return float(value) if self.key == "latency" else math.floor(value)

    def _checked_base(self, base: float | None) -> Fraction:
        if base is None or not math.isfinite(base) or base < 0:
            raise BudgetError(
                f"{self} is relative to the original, whose {self.key} is {base}",
                remedy=f"Give an absolute limit: {MEASURES[self.key].absolute_advice}.",
            )
        return Fraction(base)

    def _joules_per_mac(self, hardware: Hardware | None) -> Fraction:
        if hardware is None or hardware.joules_per_mac is None:
            name = "no hardware profile" if hardware is None else f"profile {hardware.name!r}"
            raise BudgetError(
                f"{self} is in joules, but {name} gives the joules of one MAC",
                remedy='Use hardware="horowitz", set joules_per_mac in a profile of your own, or '
                'write "25%" or "20 GMAC".',
            )
        # As the digits in the profile say: the nearest binary fraction could floor one too low.
        return Fraction(str(hardware.joules_per_mac))


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Upper limits that hold together.

    `Budget(energy="25%", size="2 MB")`, or `Budget.parse("energy<=25%, size<=2 MB")`.

    Attributes:
        limits: One limit per key, in a fixed order of keys, so that equal budgets compare equal.

    Raises:
        BudgetError: No limit, an unknown key, a duplicate, or a value that cannot be read.
    """

    limits: tuple[Limit, ...]

    def __init__(self, **quantities: Quantity) -> None:
        limits = (_read_limit(key, quantity) for key, quantity in quantities.items())
        object.__setattr__(self, "limits", _ordered(limits))

    @classmethod
    def from_limits(cls, limits: Iterable[Limit]) -> Budget:
        """A budget of limits that are already read.

        Raises:
            BudgetError: No limit, or two of one key.
        """
        budget = cls.__new__(cls)
        object.__setattr__(budget, "limits", _ordered(limits))
        return budget

    @classmethod
    def parse(cls, budget: str | Mapping[str, Quantity] | Budget) -> Budget:
        """Reads a budget in any of its forms.

        Args:
            budget: `"energy<=25%, size<=2 MB"`, a mapping of keys to quantities, or a `Budget`
                (returned as it is). `"sparsity>=90%"` stands for `"nonzeros<=10%"`.

        Raises:
            BudgetError: As the class.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            return cls.from_limits(_read_clauses(budget))
        if isinstance(budget, Mapping):
            return cls.from_limits(_read_limit(str(key), value) for key, value in budget.items())
        raise BudgetError(
            f"{type(budget).__name__} is not a budget",
            where="budget",
            remedy='Give a string such as "energy<=25%, size<=2 MB", a dict, or a Budget.',
        )

    def get(self, key: str) -> Limit | None:
        """The limit of a key, or None."""
        return next((limit for limit in self.limits if limit.key == key), None)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits))

    def to_dict(self) -> dict[str, str]:
        """Key to quantity, as `from_dict` reads it."""
        return {limit.key: limit.text for limit in self.limits}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """Reads what `to_dict` wrote.

        Raises:
            BudgetError: As the class.
        """
        return cls.parse(values)


_FORM = 'Write "energy<=25%", "size<=2 MB" or "sparsity>=90%"; a comma means and.'
_SPARSITY_FORM = 'Write "sparsity>=90%" or the same as "nonzeros<=10%".'


def _ordered(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    found: dict[str, Limit] = {}
    for limit in limits:
        if limit.key in found:
            raise BudgetError(
                f"two limits on {limit.key}: {found[limit.key]} and {limit}",
                remedy="Keep one of them (sparsity counts as a limit on nonzeros).",
            )
        found[limit.key] = limit
    if not found:
        raise BudgetError("the budget is empty", remedy=_FORM)
    return tuple(found[key] for key in MEASURES if key in found)


def _read_clauses(text: str) -> list[Limit]:
    if not text.strip():
        raise BudgetError("the budget is empty", remedy=_FORM)
    return [_read_clause(clause.strip()) for clause in text.split(",")]


def _read_clause(clause: str) -> Limit:
    operator = ">=" if ">=" in clause else "<="
    key, found, quantity = (part.strip() for part in clause.partition(operator))
    if not found or not key.isidentifier() or not quantity:
        raise BudgetError(f"cannot read {clause!r}", where="budget", remedy=_FORM)
    if (operator == ">=") != (key == "sparsity"):
        raise BudgetError(
            f"{clause!r} has the wrong direction",
            where="budget",
            remedy=_SPARSITY_FORM if key == "sparsity" else f'Write "{key}<={quantity}".',
        )
    return _read_limit(key, quantity)


def _read_limit(key: str, quantity: Quantity) -> Limit:
    if key == "sparsity":
        return _read_sparsity(quantity)
    if key == "flops":
        raise _flops_error(quantity)
    measure = find_measure(key)
    try:
        if isinstance(quantity, str) and " x " in quantity:
            return _read_product(key, quantity)
        return Limit(key, *_read_quantity(key, measure, quantity))
    except BudgetError as error:
        raise BudgetError(error.what, where=error.where or key, remedy=error.remedy) from error


def _read_product(key: str, text: str) -> Limit:
    """A share at so many bits: `"0.54% x 3 bit"`."""
    share, _, bits = text.partition(" x ")
    return Limit(key, parse_share(share), bits=_read_bits(bits, ("bit", "bits")))


def _read_bits(text: str, units: tuple[str, ...]) -> Fraction:
    number, unit = split_quantity(text)
    if unit not in units:
        raise BudgetError(f"{text!r} are no bits", remedy='Write it like "0.54% x 3 bit".')
    return number


def joint_budget(nnz: float | str, bits: float | str) -> Budget:
    """The nominal size as the papers write it: a share of the weights, each at so many bits.

    S = bits x sum over layers of ceil(nnz x weights of the layer), rounded down (Yang, Gui, Zhu,
    Liu, CVPR 2020; their `nnz_budget` and `bit_budget`). Only the product matters: both the
    number of weights and their bits are chosen for every layer.

    Args:
        nnz: Share of the weights, above 0, up to 1.
        bits: Bits of a weight, up to 32.

    Raises:
        BudgetError: One of them is not allowed.
    """
    number = _read_bits(str(bits), ("", "bit", "bits"))
    return Budget.from_limits([Limit("weight_bits", parse_share(str(nnz)), bits=number)])


def _read_quantity(key: str, measure: Measure, quantity: Quantity) -> tuple[Fraction, str]:
    if isinstance(quantity, str):
        return _read_text(key, measure, quantity)
    if isinstance(quantity, Integral) and not isinstance(quantity, bool):
        return _read_integer(key, measure, int(quantity))
    if isinstance(quantity, (float, np.floating)) and math.isfinite(quantity):
        # By its decimal digits: 0.1 is a tenth, not the nearest binary fraction.
        return Fraction(str(quantity)), "share"
    raise BudgetError(
        f"{quantity!r} is not a limit",
        remedy=f"Give a share such as 0.25 or {measure.examples(key)}.",
    )


def _read_text(key: str, measure: Measure, text: str) -> tuple[Fraction, str]:
    number, unit = split_quantity(text)
    if unit == "%":
        return number / 100, "share"
    if unit:
        return measure.read(text)
    bare = text.strip()
    if bare.lstrip("+-").isdigit():
        return _read_integer(key, measure, int(number))
    return number, "share"


def _read_integer(key: str, measure: Measure, value: int) -> tuple[Fraction, str]:
    if value == 1:
        raise BudgetError(
            "1 can be read in two ways",
            remedy=f'Write {key}="100%" (or 1.0) for all of the original\'s {measure.what}, or '
            f'{key}="1 {measure.unit}" for {measure.one}.',
        )
    if not measure.bare_integers and value > 0:
        raise BudgetError(
            f"{value} has no unit", remedy=f"Absolute limits are {measure.absolute_advice}."
        )
    return Fraction(value), measure.unit


def _read_sparsity(quantity: Quantity) -> Limit:
    value = parse_share(quantity) if isinstance(quantity, (str, float, np.floating)) else None
    if value is None or not 0 < value < 1:
        raise BudgetError(
            f"sparsity of {quantity!r} is not a share between 0 and 100%",
            where="budget",
            remedy=_SPARSITY_FORM,
        )
    return Limit("nonzeros", 1 - value)


def _flops_error(quantity: Quantity) -> BudgetError:
    measure = replace(MEASURES["macs"], units=counting_units("FLOP"))
    try:
        value, unit = _read_quantity("macs", measure, quantity)
        limit = Limit("macs", value if unit == "share" else Fraction(value // 2), unit)
    except BudgetError:
        limit = Limit("macs", Fraction(1, 2))
    return BudgetError(
        "flops is not a key, because it is counted in two ways",
        where="budget",
        remedy=f'1 MAC = 2 FLOPs: write "{limit}".',
    )
