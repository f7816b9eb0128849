"""Prices of inputs against the energy that they are part of, and against loops over all windows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_counts import naive_refetch, naive_row_by_row, shapes
from oracle_networks import every_other

from energy_model.energy import activation_energy
from energy_model.hardware import Hardware
from energy_model.input_price import input_prices, inputs_met, window_counts
from energy_model.refetch import refetch
from energy_model.shapes import LayerShape

ODD = Hardware(
    "odd",
    array_rows=3,
    array_columns=2,
    input_cache_bytes=2 * 40,
    dram_energy=101,
    cache_energy=7,
    rf_energy=5,
)


def reads(shape: LayerShape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (kernel offset, input position) that meet, one for each output that they serve."""
    found = []
    for offset in np.ndindex(*shape.kernel):
        lines = []
        for axis, tap in enumerate(offset):
            step, spread = shape.stride[axis], shape.dilation[axis]
            before = shape.padding[axis][0]
            inputs, outputs = shape.input_size[axis], shape.output_size[axis]
            if shape.transposed:
                line = [i for i in range(inputs) if 0 <= i * step + tap * spread - before < outputs]
            else:
                every = (o * step + tap * spread - before for o in range(outputs))
                line = [i for i in every if 0 <= i < inputs]
            lines.append(line)
        found += [(offset, position) for position in itertools.product(*lines)]
    return found


@pytest.mark.slow
@settings(max_examples=200)
@given(shape=shapes())
def test_windows_that_read_an_input_against_counting(shape: LayerShape) -> None:
    counts = np.zeros(shape.input_size, dtype=np.int64)
    for _, position in reads(shape):
        counts[position] += 1
    found = window_counts(shape)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, counts)


@settings(max_examples=150)
@given(shape=shapes(), seed=st.integers(0, 999), density=st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_inputs_that_some_weight_reads_against_a_loop(
    shape: LayerShape, seed: int, density: float
) -> None:
    size = (shape.in_channels, *shape.kernel)
    weights = np.random.default_rng(seed).random(size) < density
    met = np.zeros((shape.in_channels, *shape.input_size), dtype=bool)
    for offset, position in reads(shape):
        for channel in range(shape.in_channels):
            met[(channel, *position)] |= weights[(channel, *offset)]
    np.testing.assert_array_equal(inputs_met(shape, weights), met)


@pytest.mark.slow
@settings(max_examples=200)
@given(shape=shapes(), capacity=st.sampled_from([1, 12, 60, 10_000]))
def test_prices_outputs_and_what_is_fetched_again_are_the_energy(
    shape: LayerShape, capacity: int
) -> None:
    hardware = Hardware(
        "odd", array_columns=2, input_cache_bytes=2 * capacity, dram_energy=101, rf_energy=5
    )
    prices = input_prices(shape, hardware)
    assert prices.shape == (shape.in_channels, *shape.input_size)
    assert prices.dtype == np.int64
    assert prices.min() >= hardware.dram_energy
    full = np.ones(prices.shape, dtype=bool)
    again = naive_refetch(shape, capacity, full)
    again = naive_row_by_row(shape, full) if again is None else again
    written = shape.positions * shape.out_channels
    total = int(prices.sum()) + hardware.dram_energy * (written + again)
    assert total == activation_energy(shape, hardware)[0]


@settings(max_examples=100)
@given(shape=shapes(), seed=st.integers(0, 999))
def test_masked_inputs_save_their_prices(shape: LayerShape, seed: int) -> None:
    """True for any mask, but for the rows that are fetched again."""
    inputs = np.random.default_rng(seed).random((shape.in_channels, *shape.input_size)) < 0.6
    words = ODD.input_cache_words
    before = activation_energy(shape, ODD)[0] - 101 * refetch(shape, words).words
    after = activation_energy(shape, ODD, inputs)[0] - 101 * refetch(shape, words, inputs).words
    assert before - after == int(input_prices(shape, ODD)[~inputs].sum())


def test_prices_by_hand() -> None:
    # A 1-D kernel of 3 over 4 inputs, unpadded: the ends are read once, the others twice.
    shape = LayerShape.conv(2, 5, 3, 4)
    assert window_counts(shape).tolist() == [1, 2, 2, 1]
    # ceil(5 / 2) = 3 tiles of channels: 3 * 7 of the cache and 5 * 5 of the register file a read.
    assert input_prices(shape, ODD).tolist() == [[147, 193, 193, 147]] * 2
    # The same per group: d / g = 1, one tile.
    grouped = LayerShape.conv(2, 2, 3, 4, groups=2)
    assert input_prices(grouped, ODD).tolist() == [[113, 125, 125, 113]] * 2


def test_inputs_that_no_window_reaches_cost_their_fetch() -> None:
    shape = LayerShape.conv(1, 3, 1, (4,), stride=2)
    assert window_counts(shape).tolist() == [1, 0, 1, 0]
    assert input_prices(shape, ODD)[0, 1] == ODD.dram_energy
    assert not inputs_met(shape, np.ones((1, 1), dtype=bool))[0, 1]


def test_prices_of_the_large_oracle_layer() -> None:
    # AlexNet, second convolution: 331,271,424, of which 729 * 192 outputs; nothing fetched again.
    shape = LayerShape.conv(64, 192, (5, 5), (27, 27), padding=2)
    prices = input_prices(shape, Hardware("eyeriss"))
    assert int(prices.sum()) == 331_271_424 - 200 * 729 * 192
    # Half of the mask: the oracle's variant, to the last integer.
    kept = every_other(64, 27, 27)
    assert int(prices[kept].sum()) == 179_632_512 - 200 * 729 * 192


def test_prices_may_be_changed_without_harm() -> None:
    shape = LayerShape.conv(3, 2, 3, (5, 5))
    prices = input_prices(shape, ODD)
    prices[0] = 0
    assert input_prices(shape, ODD)[0].min() > 0
    assert prices[1].min() > 0, "channels must not share memory"


def test_the_loops_themselves_see_a_difference() -> None:
    shape = LayerShape.conv(1, 1, (2, 2), (3, 3))
    assert len(reads(shape)) == math.prod(shape.kernel) * math.prod(shape.output_size)
    assert window_counts(shape).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
