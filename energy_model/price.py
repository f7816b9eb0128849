"""What one more nonzero weight costs: the item costs of the weighted sparse projection.

Source: Yang, Zhu, Liu, ICLR 2019. A layer's relaxed energy is convex and piecewise linear in its
number of nonzeros, with slopes

    first  = DRAM    + cache tP + (RF + MAC) P    for as many as the weight cache holds
    beyond = DRAM tP + cache tP + (RF + MAC) P    for every further one

where P is the number of output positions and tP of tiles of them. Narrow operands scale all four
prices, and the cache holds more narrow weights: see `energy_model.unit_prices`.
"""

from __future__ import annotations

from dataclasses import dataclass

from energy_model.energy import position_prices, position_tiles
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from energy_model.shapes import LayerShape
from energy_model.unit_prices import in_units, plain, unit_prices
from energy_model.widths import WORDS, Widths


@dataclass(frozen=True, slots=True)
class WeightPrice:
    """Marginal energy of a weight, in the hardware's unit: multiples of 1/256.

    Prices add when one weight is used in several places, and multiply by a number of uses. A weight
    has one width, so that its cache holds equally many in all its uses; inputs and outputs may be
    of other widths in each of them.

    Attributes:
        first: Of each of the first `capacity` nonzeros of the layer.
        beyond: Of every further one; never below `first`.
        capacity: Weights that the weight cache holds.
    """

    first: int | float
    beyond: int | float
    capacity: int

    def __post_init__(self) -> None:
        for name in ("first", "beyond"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def energy(self, nonzeros: int) -> int | float:
        """Relaxed energy of `nonzeros` weights, without the layer's activations."""
        cached = min(nonzeros, self.capacity)
        return plain(self.first * cached + self.beyond * (nonzeros - cached))

    def marginal(self, rank: int) -> int | float:
        """Energy of the weight of a 0-based rank in its layer."""
        return self.first if rank < self.capacity else self.beyond

    def __add__(self, other: WeightPrice) -> WeightPrice:
        if self.capacity != other.capacity:
            raise ArgumentError(
                f"prices for caches of {self.capacity} and {other.capacity} weights do not add",
                remedy="Price every use of a weight on the same hardware and with the same width.",
            )
        return WeightPrice(self.first + other.first, self.beyond + other.beyond, self.capacity)

    def __mul__(self, uses: int) -> WeightPrice:
        return WeightPrice(self.first * uses, self.beyond * uses, self.capacity)

    __rmul__ = __mul__


def weight_price(shape: LayerShape, hardware: Hardware, *, widths: Widths = WORDS) -> WeightPrice:
    """Price of one weight in one use of a layer, the charge for its stored position included.

    Args:
        shape: The layer.
        hardware: The accelerator.
        widths: Bits of the operands.
    """
    tiles = position_tiles(shape, hardware)
    prices = unit_prices(hardware, widths)
    price = prices.weights
    used = price.cache * tiles + (price.rf + prices.mac) * shape.positions
    index_first, index_beyond = position_prices(shape, hardware)
    return WeightPrice(
        first=in_units(price.dram + used) + index_first,
        beyond=in_units(price.dram * tiles + used) + index_beyond,
        capacity=price.capacity,
    )
