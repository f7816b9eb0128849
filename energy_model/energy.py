"""The energy of one use of one layer, split into weights, compute and activations.

The model is that of Yang, Zhu, Liu (ICLR 2019): an im2col product on an array of m output
positions by n output channels. Weights pass through their cache once per tile of m positions,
inputs through theirs once per tile of n channels, zeros are neither fetched nor computed, and
outputs are written once. "Exact" counts the multiplications that really meet two nonzeros;
"relaxed" charges every nonzero weight at every output position, and so is an upper bound that
depends on the input's support through the activations alone.

Symbols: P output positions, d output channels, g groups, tP = ceil(P/m), tD = ceil((d/g)/n),
nW, nX nonzero weights and inputs, U_X nonzeros of the unfolded input, R words fetched again,
k_W, k_X weights and inputs that their caches hold.

The paper's words all have one width. Narrower operands cost less, and the caches hold more of them:
see `energy_model.unit_prices`. Energies are then multiples of 1/256, and floats where not whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware
from energy_model.refetch import refetch
from energy_model.shapes import LayerShape
from energy_model.support import input_support, unfolded_nonzeros, window_hits
from energy_model.unit_prices import UnitPrices, in_units, plain, unit_prices
from energy_model.widths import WORDS, Widths

_KINDS = ("weights", "compute", "compute_relaxed", "activations", "positions")


@dataclasses.dataclass(frozen=True, slots=True)
class Energy:
    """Energies in the hardware's unit; they add, and multiply by a number of uses.

    Integers where they are whole, otherwise multiples of 1/256, which floats hold exactly.

    Attributes:
        weights: Moving the nonzero weights (E_W).
        compute: Multiplications of a nonzero weight with a nonzero input (exact E_C).
        compute_relaxed: The same, charging every nonzero weight at every output position.
        activations: Moving the inputs and writing the outputs (E_X).
        positions: Moving the stored positions of the nonzeros; 0 in the papers' model.
        fallback: Whether somewhere a strip of rows did not fit into the input cache.
    """

    weights: int | float
    compute: int | float
    compute_relaxed: int | float
    activations: int | float
    positions: int | float = 0
    fallback: bool = False

    def __post_init__(self) -> None:
        for name in _KINDS:
            object.__setattr__(self, name, plain(getattr(self, name)))

    @property
    def exact(self) -> int | float:
        """Total with the multiplications that really happen."""
        return plain(self.weights + self.compute + self.activations + self.positions)

    @property
    def relaxed(self) -> int | float:
        """Total with the upper bound of the multiplications; never below `exact`."""
        return plain(self.weights + self.compute_relaxed + self.activations + self.positions)

    @classmethod
    def zero(cls) -> Energy:
        """No energy: the neutral element of addition."""
        return cls(0, 0, 0, 0)

    def __add__(self, other: Energy) -> Energy:
        return Energy(
            self.weights + other.weights,
            self.compute + other.compute,
            self.compute_relaxed + other.compute_relaxed,
            self.activations + other.activations,
            self.positions + other.positions,
            self.fallback or other.fallback,
        )

    def __mul__(self, uses: int) -> Energy:
        return Energy(
            self.weights * uses,
            self.compute * uses,
            self.compute_relaxed * uses,
            self.activations * uses,
            self.positions * uses,
            self.fallback,
        )

    __rmul__ = __mul__

    def to_dict(self) -> dict[str, int | float | bool]:
        """The fields, and the totals `exact` and `relaxed`."""
        return {**dataclasses.asdict(self), "exact": self.exact, "relaxed": self.relaxed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Energy:
        """Reads what `to_dict` wrote; the totals are computed again.

        Raises:
            ArgumentError: A field is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names[:4] if name not in values]
        if missing:
            raise ArgumentError(
                f"an energy lacks {', '.join(missing)}", remedy="Give what to_dict wrote."
            )
        return cls(**{name: values[name] for name in names if name in values})


def layer_energy(
    shape: LayerShape,
    hardware: Hardware,
    weight_counts: NDArray[np.integer[Any]] | None = None,
    inputs: NDArray[np.bool_] | None = None,
    *,
    widths: Widths = WORDS,
) -> Energy:
    """Energy of one use of one layer, for one sample.

    Args:
        shape: The layer.
        hardware: The accelerator.
        weight_counts: Nonzero weights; None is all of them. `(in_channels, *kernel)`: for every
            input channel and kernel offset, over the output channels of the channel's group.
            `(*kernel)`: per kernel offset over all channels, enough when `inputs` is None.
        inputs: Support of the input, `(in_channels, *input_size)`; None is all ones. A fully
            connected layer ignores it when counting multiplications, as the papers do.
        widths: Bits of the operands; by default all are words.

    Raises:
        ArgumentError: Counts or inputs do not fit the layer.
    """
    counts = None if weight_counts is None else _checked_counts(shape, weight_counts, inputs)
    nonzeros = shape.weights if counts is None else int(counts.sum())
    activations, fallback = activation_energy(shape, hardware, inputs, widths=widths)
    prices = unit_prices(hardware, widths)
    return Energy(
        weights=in_units(_weight_energy(shape, hardware, prices, nonzeros)),
        compute=in_units(prices.mac * _multiplications(shape, counts, inputs)),
        compute_relaxed=in_units(prices.mac * shape.positions * nonzeros),
        activations=activations,
        positions=_position_energy(shape, hardware, prices, nonzeros),
        fallback=fallback,
    )


def activation_energy(
    shape: LayerShape,
    hardware: Hardware,
    inputs: NDArray[np.bool_] | None = None,
    *,
    widths: Widths = WORDS,
) -> tuple[int | float, bool]:
    """Energy of fetching a layer's inputs and writing its outputs (E_X).

        convolution:     DRAM (nX + R + P d) + cache U_X tD + RF U_X d/g
        fully connected: DRAM (min(nX, k_X) + tD max(0, nX - k_X) + d) + cache nX tD + RF nX d/g

    Args:
        shape: The layer; a transposed convolution is charged as its equivalent gather, whose
            inserted zeros are never fetched.
        hardware: The accelerator.
        inputs: Support of the input, `(in_channels, *input_size)`; None is all ones.
        widths: Bits of the operands. Narrower inputs pack differently into strips of rows, and may
            make R larger: energy falls with the widths of weights and outputs, but for inputs that
            is true only where R is 0.

    Returns:
        The energy, and whether a strip did not fit so that R is the fallback (see `refetch`).

    Raises:
        ArgumentError: `inputs` has another shape.
    """
    nonzeros = shape.inputs if inputs is None else int(input_support(shape, inputs).sum())
    tiles = -(-shape.out_per_group // hardware.array_columns)
    prices = unit_prices(hardware, widths)
    price = prices.inputs
    if shape.is_fully_connected:
        beyond = max(0, nonzeros - price.capacity)
        fetched, fallback = nonzeros - beyond + tiles * beyond, False
        unfolded = nonzeros
    else:
        again = refetch(shape, price.capacity, inputs)
        fetched, fallback = nonzeros + again.words, again.fallback
        unfolded = unfolded_nonzeros(shape, inputs)
    energy = price.dram * fetched
    energy += prices.output * shape.positions * shape.out_channels
    energy += price.cache * unfolded * tiles
    energy += price.rf * unfolded * shape.out_per_group
    return in_units(energy), fallback


def nonzero_energy(
    shape: LayerShape, hardware: Hardware, nonzeros: int, *, widths: Widths = WORDS
) -> int | float:
    """Relaxed energy of a number of nonzero weights, without the layer's activations.

    Convex and piecewise linear: one slope up to the weight cache's capacity, a steeper one beyond.

    Args:
        shape: The layer.
        hardware: The accelerator.
        nonzeros: Nonzero weights, 0 to `shape.weights`.
        widths: Bits of the operands.

    Raises:
        ArgumentError: `nonzeros` is out of range.
    """
    if not 0 <= nonzeros <= shape.weights:
        raise ArgumentError(
            f"{nonzeros} nonzeros in a layer of {shape.weights} weights",
            where=str(shape),
            remedy="Count the nonzeros of this layer's weight alone.",
        )
    prices = unit_prices(hardware, widths)
    compute = prices.mac * shape.positions * nonzeros
    moved = in_units(_weight_energy(shape, hardware, prices, nonzeros) + compute)
    return moved + _position_energy(shape, hardware, prices, nonzeros)


def position_tiles(shape: LayerShape, hardware: Hardware) -> int:
    """Tiles of output positions, each of which passes the weights through their cache (tP)."""
    return -(-shape.positions // hardware.array_rows)


def position_prices(shape: LayerShape, hardware: Hardware) -> tuple[int, int]:
    """Energy of moving the stored position of one nonzero: cached ones, and ones beyond the cache.

    Stored bits are charged as their share of a word, rounded up; both are 0 in the papers' model.
    """
    tiles = position_tiles(shape, hardware)
    cached, word = hardware.cache_energy * tiles, hardware.word_bits
    first = (hardware.dram_energy + cached) * hardware.index_bits
    beyond = (hardware.dram_energy * tiles + cached) * hardware.index_bits
    return -(-first // word), -(-beyond // word)


def _weight_energy(shape: LayerShape, hardware: Hardware, prices: UnitPrices, nonzeros: int) -> int:
    """E_W in 1/256; with P = 1 it is the rule of fully connected layers, (DRAM + cache + RF) nW."""
    tiles, price = position_tiles(shape, hardware), prices.weights
    beyond = max(0, nonzeros - price.capacity)
    energy = price.dram * (nonzeros - beyond + tiles * beyond)
    energy += price.cache * tiles * nonzeros
    return energy + price.rf * shape.positions * nonzeros


def _position_energy(
    shape: LayerShape, hardware: Hardware, prices: UnitPrices, nonzeros: int
) -> int:
    first, further = position_prices(shape, hardware)
    beyond = max(0, nonzeros - prices.weights.capacity)
    return first * (nonzeros - beyond) + further * beyond


def _multiplications(
    shape: LayerShape, counts: NDArray[np.int64] | None, inputs: NDArray[np.bool_] | None
) -> int:
    """Products of a nonzero weight with a nonzero input."""
    if shape.is_fully_connected:
        return shape.weights if counts is None else int(counts.sum())
    if counts is None:
        return shape.out_per_group * unfolded_nonzeros(shape, inputs)
    return int((counts * window_hits(shape, inputs)).sum())


def _checked_counts(
    shape: LayerShape, counts: NDArray[np.integer[Any]], inputs: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    given = np.asarray(counts)
    per_channel = given.shape == (shape.in_channels, *shape.kernel)
    if not per_channel and (given.shape != shape.kernel or inputs is not None):
        raise ArgumentError(
            f"weight counts of shape {given.shape} do not fit kernel {shape.kernel}",
            where=str(shape),
            remedy="Count per (in_channels, *kernel); per (*kernel) is enough with dense inputs.",
        )
    most = shape.out_per_group if per_channel else shape.weights // np.prod(shape.kernel)
    if given.dtype.kind not in "iu" or given.min() < 0 or given.max() > most:
        raise ArgumentError(
            f"weight counts of type {given.dtype} from {given.min()} to {given.max()} are not "
            f"integers from 0 to {most}",
            where=str(shape),
            remedy="Count nonzeros in int64.",
        )
    return given.astype(np.int64)
