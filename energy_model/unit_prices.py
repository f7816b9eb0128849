"""What moving or multiplying one element costs, by how many bits it has.

A word costs what the hardware says. Of fewer bits, an element costs its share of a word in DRAM,
cache and register file, the caches hold more of them, and a multiplication falls with the product
of both factors' widths:

    DRAM, cache, RF: price * bits / word      MAC: price * (weight bits * input bits) / word^2

More bits than a word are charged as a word. Sums are taken in integers of 1/256 of the hardware's
unit: with words of 16 bits nothing is rounded then. With other words, prices of narrower elements
are rounded up to the next 1/256.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from energy_model.hardware import Hardware
from energy_model.widths import Widths

PARTS = 256
"""Parts of one unit of energy that prices are counted in."""


@dataclass(frozen=True, slots=True)
class OperandPrices:
    """Prices of one element of an operand, in 1/256 of a unit.

    Attributes:
        dram: To or from DRAM.
        cache: From its cache.
        rf: From the register file.
        capacity: Elements that its cache holds.
    """

    dram: int
    cache: int
    rf: int
    capacity: int


@dataclass(frozen=True, slots=True)
class UnitPrices:
    """Prices of a layer's elements and operations, in 1/256 of a unit.

    Attributes:
        weights: Of a weight.
        inputs: Of an input.
        output: Of writing an output to DRAM.
        mac: Of one multiply-accumulate.
    """

    weights: OperandPrices
    inputs: OperandPrices
    output: int
    mac: int


@lru_cache(maxsize=1024)
def unit_prices(hardware: Hardware, widths: Widths) -> UnitPrices:
    """Prices on given hardware with operands of given widths.

    Args:
        hardware: The accelerator.
        widths: Bits of the operands.
    """
    word = hardware.word_bits
    weight_bits = charged_bits(widths.weights, hardware)
    input_bits = charged_bits(widths.inputs, hardware)
    output_bits = charged_bits(widths.outputs, hardware)
    return UnitPrices(
        weights=_operand(hardware, weight_bits, hardware.weight_cache_bytes),
        inputs=_operand(hardware, input_bits, hardware.input_cache_bytes),
        output=_share(hardware.dram_energy, output_bits, word),
        mac=_share(hardware.mac_energy, weight_bits * input_bits, word**2),
    )


def charged_bits(bits: int | None, hardware: Hardware) -> int:
    """The bits of an element that energy charges: no more than a word, which `None` stands for."""
    return hardware.word_bits if bits is None else min(bits, hardware.word_bits)


def in_units(parts: int) -> int | float:
    """An amount of 1/256 units in units: an integer where it is whole.

    A float is the exact value for anything below 2^45 units, and so are sums of such.
    """
    units, rest = divmod(parts, PARTS)
    return parts / PARTS if rest else units


def plain(value: float) -> int | float:
    """The same number, as an integer where it is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _operand(hardware: Hardware, bits: int, cache_bytes: int) -> OperandPrices:
    word = hardware.word_bits
    return OperandPrices(
        dram=_share(hardware.dram_energy, bits, word),
        cache=_share(hardware.cache_energy, bits, word),
        rf=_share(hardware.rf_energy, bits, word),
        capacity=cache_bytes * 8 // bits,
    )


def _share(price: int, bits: int, word: int) -> int:
    return -(-PARTS * price * bits // word)
