"""Widths of what a layer multiplies and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from energy_model.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits per element of a layer's operands; `None` is the hardware's word.

    Energy charges no more than a word for any of them.

    Attributes:
        weights: Bits of a weight.
        inputs: Bits of an input activation.
        outputs: Bits of an output activation.

    Raises:
        ArgumentError: A width is not a positive integer.
    """

    weights: int | None = None
    inputs: int | None = None
    outputs: int | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "inputs", "outputs"):
            bits = getattr(self, name)
            if bits is not None and (not isinstance(bits, int) or bits < 1):
                raise ArgumentError(
                    f"{name} of {bits!r} bits",
                    where="Widths",
                    remedy="Give a positive integer, or None for the hardware's word.",
                )

    def to_dict(self) -> dict[str, int | None]:
        """The fields, as `from_dict` reads them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Widths:
        """Reads what `to_dict` wrote; a width that is absent is a word.

        Raises:
            TypeError: A field is unknown.
            ArgumentError: As the class.
        """
        return cls(**values)


WORDS = Widths()
"""Every operand is a whole word."""
