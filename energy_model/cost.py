"""What layers cost, as rows that add up and as a table that prints."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from energy_model.energy import Energy
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from energy_model.unit_prices import plain
from energy_model.widths import WORDS, Widths

_SUMMED = ("macs", "weights", "nonzeros", "floor", "dense")


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one layer, or of several together, per sample.

    Attributes:
        name: The layer's path in the model.
        macs: Multiply-accumulates of the dense layer, by the field's convention.
        weights: Elements of the weight, without bias.
        nonzeros: Nonzero elements of the weight.
        bits: Stored bits per weight; in a total of unlike rows the mean over nonzero weights.
        energy: Energy by kind, in the hardware's unit; multiples of 1/256.
        floor: Relaxed energy with all weights zero, in the same unit: that of the activations.
        dense: Relaxed energy with every weight nonzero and every operand a whole word, in the same
            unit: what the layer costs before anything is removed or narrowed.
        shape: Geometry in words.
        note: What a reader must know: a fallback, an opaque layer, several uses.
        charged: Bits per weight that energy charges, no more than a word; in a total as `bits`.
            None in tables of before widths were known: the lesser of `bits` and a word.
        widths: Bits of the operands of all uses of the layer, as energy was told; `None` is a word.
            A total has none.
    """

    name: str
    macs: int
    weights: int
    nonzeros: int
    bits: int | float
    energy: Energy
    floor: int | float
    dense: int | float
    shape: str = ""
    note: str = ""
    charged: int | float | None = None
    widths: Widths = WORDS

    @classmethod
    def total(cls, rows: Iterable[Cost], name: str = "total") -> Cost:
        """The sum of rows; no rows cost nothing.

        Args:
            rows: The rows to add.
            name: Name of the sum.
        """
        parts = tuple(rows)
        sums = {field: plain(sum(getattr(row, field) for row in parts)) for field in _SUMMED}
        energy = sum((row.energy for row in parts), Energy.zero())
        charged = [row.charged for row in parts if row.charged is not None]
        return cls(
            name=name,
            bits=_mean([row.bits for row in parts], parts),
            energy=energy,
            charged=_mean(charged, parts) if charged and len(charged) == len(parts) else None,
            **sums,  # type: ignore[arg-type]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, as `from_dict` reads them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "energy": self.energy.to_dict(), "widths": self.widths.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cost:
        """Reads what `to_dict` wrote, also before there were `charged` and `widths`.

        Raises:
            ArgumentError: A field is missing or unknown.
        """
        try:
            energy = Energy.from_dict(values["energy"])
            widths = Widths.from_dict(values.get("widths", {}))
            return cls(**{**values, "energy": energy, "widths": widths})
        except (KeyError, TypeError) as error:
            raise ArgumentError(
                f"not a cost ({error})", remedy="Give what to_dict wrote."
            ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class CostTable:
    """A row per layer and their total, on one hardware profile; prints as a table.

    Attributes:
        rows: One cost per layer, in the model's order; the names differ.
        hardware: The profile that the energies belong to.
        total: The sum of the rows.

    Raises:
        ArgumentError: Two rows have one name.
    """

    rows: tuple[Cost, ...]
    hardware: Hardware
    total: Cost = dataclasses.field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "total", Cost.total(self.rows))
        names = [row.name for row in self.rows]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ArgumentError(
                f"several rows are named {', '.join(sorted(twice))}",
                remedy="Add the costs of one layer's uses before making a table.",
            )

    def __getitem__(self, name: str) -> Cost:
        for row in self.rows:
            if row.name == name:
                return row
        alike = difflib.get_close_matches(name, [row.name for row in self.rows])
        raise ArgumentError(
            f"no layer is named {name!r}",
            remedy=f"Did you mean {' or '.join(alike)}?" if alike else "See the table's rows.",
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Cost]:
        return iter(self.rows)

    def __str__(self) -> str:
        # Rich is needed by those who print only, and takes a while to import.
        from energy_model.cost_text import render_costs

        return render_costs(self)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `hardware`, `rows`, `total` and the energies' `unit`."""
        return {
            "hardware": self.hardware.to_dict(),
            "unit": self.hardware.unit,
            "rows": [row.to_dict() for row in self.rows],
            "total": self.total.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostTable:
        """Reads what `to_dict` wrote; the total is computed again.

        Raises:
            ArgumentError: A part is missing or malformed.
        """
        missing = [part for part in ("hardware", "rows") if part not in values]
        if missing:
            raise ArgumentError(
                f"a cost table lacks {', '.join(missing)}", remedy="Give what to_dict wrote."
            )
        rows = tuple(Cost.from_dict(row) for row in values["rows"])
        return cls(rows, Hardware.from_dict(values["hardware"]))


def _mean(bits: Sequence[int | float], rows: Sequence[Cost]) -> int | float:
    """The mean over nonzero weights of what each row has for every weight."""
    if len(set(bits)) <= 1:
        return bits[0] if bits else 0
    # Zeros have no width of their own; where nothing is left, every weight counts.
    kept = "nonzeros" if any(row.nonzeros for row in rows) else "weights"
    counts = [getattr(row, kept) for row in rows]
    total = sum(each * count for each, count in zip(bits, counts, strict=True))
    return total / sum(counts) if any(counts) else 0
