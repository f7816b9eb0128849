"""Energy of one use of a weight at any width: the energy model's formula, with its tables kept.

The energy of a use is that of `energy_model.energy` for the cut shape with all weights nonzero. Of
its parts, only the words fetched again take long to count, and they depend on the input channels
alone; see `activation_energy` for the formula.
"""

from __future__ import annotations

from energy_model.energy import nonzero_energy
from energy_model.hardware import Hardware
from energy_model.refetch import refetch
from energy_model.shapes import LayerShape
from energy_model.support import unfolded_nonzeros
from energy_model.unit_prices import PARTS, unit_prices
from passes.graph import Use
from passes.structure.geometry import Arrangement


class UseEnergy:
    """Relaxed energy of one use by the kept lengths of its weight's first two dimensions.

    Args:
        use: The use at full width, without a mask on its inputs.
        how: What the two dimensions are.
        hardware: The accelerator.
    """

    def __init__(self, use: Use, how: Arrangement, hardware: Hardware) -> None:
        self._shape, self._how, self._count = use.shape, how, use.count
        self._columns = hardware.array_columns
        self._prices = unit_prices(hardware, use.widths)
        self._per_weight = use.shape.weights
        self._inputs: dict[int, tuple[int, int, int]] = {}
        size, capacity = use.shape.weights, self._prices.weights.capacity
        self._cached = min(size, capacity)
        whole = _parts(nonzero_energy(use.shape, hardware, size, widths=use.widths))
        kept = _parts(nonzero_energy(use.shape, hardware, self._cached, widths=use.widths))
        # Convex and piecewise linear, with one bend where the cache is full.
        self._slope = kept // max(1, self._cached)
        self._steep = (whole - kept) // max(1, size - self._cached)

    def parts(self, rows: int, columns: int, full: tuple[int, int]) -> int:
        """The energy in 1/256 of the hardware's unit.

        Args:
            rows: Indices kept along the weight's first dimension.
            columns: Along its second.
            full: Both lengths in the teacher.
        """
        shape, how = self._shape, self._how
        if how.depthwise:
            inputs = groups = rows * shape.in_channels // shape.out_channels
            outputs = rows
        elif how.outputs_first:
            groups = shape.groups
            inputs, outputs = columns * groups, rows
        else:
            groups = shape.groups
            inputs, outputs = rows, columns * groups
        if inputs not in self._inputs:
            self._inputs[inputs] = self._by_inputs(how.cut(shape, rows, columns))
        fixed, tile, output = self._inputs[inputs]
        each = outputs // groups
        weights = self._per_weight // (full[0] * full[1]) * rows * columns
        beyond = max(0, weights - self._cached)
        moved = self._slope * (weights - beyond) + self._steep * beyond
        activations = fixed + tile * -(-each // self._columns) + output * each
        written = self._prices.output * shape.positions * outputs
        return (activations + written + moved) * self._count

    def _by_inputs(self, shape: LayerShape) -> tuple[int, int, int]:
        """What the inputs cost: once, for every tile of output channels, for every channel."""
        price, nonzeros = self._prices.inputs, shape.inputs
        if shape.is_fully_connected:
            beyond = max(0, nonzeros - price.capacity)
            fixed, unfolded = price.dram * (nonzeros - beyond), nonzeros
            return fixed, price.dram * beyond + price.cache * unfolded, price.rf * unfolded
        again = refetch(shape, price.capacity).words
        unfolded = unfolded_nonzeros(shape)
        return price.dram * (nonzeros + again), price.cache * unfolded, price.rf * unfolded


def _parts(energy: float) -> int:
    return round(energy * PARTS)
