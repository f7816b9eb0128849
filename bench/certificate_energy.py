"""The energy of a layer, for `check_certificate.py`: Yang, Zhu, Liu, ICLR 2019, with narrow words.

Shares no code with the compiler's model. An element of fewer bits than a word costs its share of
one in DRAM, cache and register file, its cache holds more of them, and a multiplication falls with
the product of both widths. All sums are integers of 1/256 of the hardware's unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MACS = ("macs", "sparse_macs")
ENERGY = ("weights", "compute", "compute_relaxed", "activations", "positions", "exact", "relaxed")
PARTS = 256

Number = int | float
Support = NDArray[np.bool_]


class Axis(NamedTuple):
    """One spatial axis of a layer, seen as a gather from padded positions.

    `source`, of shape (padded size,), is the input at each padded position, -1 where there is none.
    `stride` is the distance of two outputs and `dilation` that of two taps, in positions.
    """

    source: NDArray[np.int64]
    kernel: int = 1
    stride: int = 1
    dilation: int = 1

    def met(self) -> NDArray[np.int64]:
        """Padded positions that each tap meets at each output, shape (kernel, outputs)."""
        starts = np.arange(0, len(self.source) - (self.kernel - 1) * self.dilation, self.stride)
        return np.arange(self.kernel)[:, None] * self.dilation + starts


class Bits(NamedTuple):
    """Bits of a layer's operands; None is a word."""

    weights: int | None = None
    inputs: int | None = None
    outputs: int | None = None


class Use(NamedTuple):
    """One use of a weight by one node, repeated `times` (the time steps of a recurrence).

    `nonzero` has shape (groups, C_out / groups, C_in / groups, *kernel), `inputs` (C_in, *sizes),
    or (1, *sizes) when alike in all channels. Input strips are cut along the first of `axes`, for a
    matrix product (`linear`) its positions. `mac_positions`: MACs of a weight, None for outputs.
    `weight` names what holds the weight.
    """

    nonzero: Support
    inputs: Support
    axes: tuple[Axis, ...]
    linear: bool = False
    mac_positions: int | None = None
    times: int = 1
    bits: Bits = Bits()
    weight: str = ""


def refetched(rows: NDArray[np.int64], axis: Axis, capacity: int) -> int:
    """Inputs fetched again because strips of `rows` that fit into `capacity` inputs overlap.

    `rows` are inputs per padded row; where no window fits, every output fetches its rows anew.
    """
    total = begin = previous = 0
    window = (axis.kernel - 1) * axis.dilation + 1
    while begin + window <= len(rows):
        total += int(rows[begin : max(begin, previous)].sum())
        fits = int(np.count_nonzero(np.cumsum(rows[begin:]) <= capacity))
        if fits < window:
            return int(rows[axis.met()].sum() - rows[np.unique(axis.met())].sum())
        previous = begin + fits
        begin += ((fits - window) // axis.stride + 1) * axis.stride
    return total


class Prices(NamedTuple):
    """What one element of an operand costs, in 1/256; `fits`: elements that its cache holds."""

    dram: int
    cache: int
    register: int
    fits: int

    @classmethod
    def of(cls, hardware: Mapping[str, Any], bits: int, cache: str) -> Prices:
        """Of elements of so many bits that pass through that cache."""
        word = hardware["word_bits"]
        units = ("dram", "cache", "rf")
        dram, sram, register = (_share(hardware[f"{at}_energy"], bits, word) for at in units)
        return cls(dram, sram, register, hardware[f"{cache}_cache_bytes"] * 8 // bits)


def _share(energy: int, bits: int, word: int) -> int:
    return -(-PARTS * energy * bits // word)


def energy_of(use: Use, hardware: Mapping[str, Any]) -> dict[str, int]:
    """Energy of one use by part and in total, in 1/256 units per sample, and its `MACS`."""
    word, index = hardware["word_bits"], hardware["index_bits"]
    wide, narrow, written = (word if b is None else min(b, word) for b in use.bits)
    weight, value = Prices.of(hardware, wide, "weight"), Prices.of(hardware, narrow, "input")
    mac = _share(hardware["mac_energy"], wide * narrow, word**2)
    groups, out_channels, in_channels = use.nonzero.shape[:3]
    channels = groups * in_channels
    positions = math.prod(axis.met().shape[1] for axis in use.axes)
    row_tiles = -(-positions // hardware["array_rows"])
    column_tiles = -(-out_channels // hardware["array_columns"])
    count = int(np.count_nonzero(use.nonzero))
    resident, beyond = min(count, weight.fits), max(0, count - weight.fits)
    alike = channels // len(use.inputs)
    inputs = alike * int(np.count_nonzero(use.inputs))
    # Index -1, where no input is, picks the zero that is appended along every axis.
    hits = np.pad(use.inputs, [(0, 0)] + [(0, 1)] * len(use.axes)).astype(np.int64)
    rows = alike * hits.sum(axis=(0, *range(2, hits.ndim)))[use.axes[0].source]
    again = (column_tiles - 1) * max(0, inputs - value.fits)
    if not use.linear or positions > 1:
        again = refetched(rows, use.axes[0], value.fits)
    # What each tap meets over all positions: padding is neither fetched nor multiplied.
    for place, axis in enumerate(use.axes, start=1):
        hits = hits.take(axis.source[axis.met()], axis=place).sum(axis=place + 1)
    unfolded = alike * int(hits.sum())
    weights = use.nonzero.sum(axis=1, dtype=np.int64).reshape(channels, *hits.shape[1:])
    dram, cache = hardware["dram_energy"], hardware["cache_energy"]
    outputs = positions * groups * out_channels
    parts = {
        "weights": weight.dram * (resident + row_tiles * beyond)
        + (weight.cache * row_tiles + weight.register * positions) * count,
        "compute": mac * int((weights * hits).sum()),
        "compute_relaxed": mac * positions * count,
        "activations": value.dram * (inputs + again)
        + _share(dram, written, word) * outputs
        + (value.cache * column_tiles + value.register * out_channels) * unfolded,
        "positions": resident * PARTS * -(-(dram + cache * row_tiles) * index // word)
        + beyond * PARTS * -(-(dram + cache) * row_tiles * index // word),
        "macs": use.nonzero.size * (use.mac_positions or positions),
        "sparse_macs": count * (use.mac_positions or positions),
    }
    fixed = parts["weights"] + parts["activations"] + parts["positions"]
    parts |= {"exact": fixed + parts["compute"], "relaxed": fixed + parts["compute_relaxed"]}
    return {part: use.times * amount for part, amount in parts.items()}


def totals(costs: Iterable[Mapping[str, int]]) -> dict[str, Number]:
    """The sum of what `energy_of` found: energy by part, in the hardware's unit, and `MACS`."""
    each = list(costs)
    sums = {key: sum(cost[key] for cost in each) for key in (*ENERGY, *MACS)}
    return {key: n if key in MACS else _in_units(n) for key, n in sums.items()}


def _in_units(parts: int) -> Number:
    """An amount of 1/256 units in units: an integer where it is whole."""
    units, rest = divmod(parts, PARTS)
    return parts / PARTS if rest else units
