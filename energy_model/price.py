"""What one more nonzero weight costs: the item costs of the weighted sparse projection.

Source: Yang, Zhu, Liu, ICLR 2019. A layer's relaxed energy is convex and piecewise linear in its
number of nonzeros, with slopes

    first  = DRAM    + cache tP + (RF + MAC) P    for as many as the weight cache holds
    beyond = DRAM tP + cache tP + (RF + MAC) P    for every further one

where P is the number of output positions and tP of tiles of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from energy_model.energy import position_prices, position_tiles
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from energy_model.shapes import LayerShape


@dataclass(frozen=True, slots=True)
class WeightPrice:
    """Marginal energy of a weight, in multiples of one MAC's energy.

    Prices add when one weight is used in several places, and multiply by a number of uses.

    Attributes:
        first: Of each of the first `capacity` nonzeros of the layer.
        beyond: Of every further one; never below `first`.
        capacity: Weights that the weight cache holds.
    """

    first: int
    beyond: int
    capacity: int

    def energy(self, nonzeros: int) -> int:
        """Relaxed energy of `nonzeros` weights, without the layer's activations."""
        cached = min(nonzeros, self.capacity)
        return self.first * cached + self.beyond * (nonzeros - cached)

    def marginal(self, rank: int) -> int:
        """Energy of the weight of a 0-based rank in its layer."""
        return self.first if rank < self.capacity else self.beyond

    def __add__(self, other: WeightPrice) -> WeightPrice:
        if self.capacity != other.capacity:
            raise ArgumentError(
                f"prices for caches of {self.capacity} and {other.capacity} words do not add",
                remedy="Price every use of a weight on the same hardware.",
            )
        return WeightPrice(self.first + other.first, self.beyond + other.beyond, self.capacity)

    def __mul__(self, uses: int) -> WeightPrice:
        return WeightPrice(self.first * uses, self.beyond * uses, self.capacity)

    __rmul__ = __mul__


def weight_price(shape: LayerShape, hardware: Hardware) -> WeightPrice:
    """Price of one weight in one use of a layer, the charge for its stored position included.

    Args:
        shape: The layer.
        hardware: The accelerator.
    """
    tiles = position_tiles(shape, hardware)
    used = hardware.cache_energy * tiles
    used += (hardware.rf_energy + hardware.mac_energy) * shape.positions
    index_first, index_beyond = position_prices(shape, hardware)
    return WeightPrice(
        first=hardware.dram_energy + used + index_first,
        beyond=hardware.dram_energy * tiles + used + index_beyond,
        capacity=hardware.weight_cache_words,
    )
