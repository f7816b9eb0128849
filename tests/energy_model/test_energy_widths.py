"""Energies of narrow operands: by hand, against fractions, and what must fall with the bits."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_counts import (
    Layer,
    layers,
    naive_multiplications,
    naive_refetch,
    naive_row_by_row,
    shapes,
)
from oracle_networks import ORACLE, VARIANTS, parse_shape, variant_arguments

from energy_model.energy import Energy, activation_energy, layer_energy, nonzero_energy
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware, load_hardware
from energy_model.input_price import input_prices
from energy_model.price import WeightPrice, weight_price
from energy_model.refetch import refetch
from energy_model.shapes import LayerShape
from energy_model.widths import WORDS, Widths

EYERISS = load_hardware("eyeriss")
CONV = LayerShape.conv(2, 3, 3, (5, 5), padding=1)
DEPTHWISE = LayerShape.conv(96, 96, 3, (112, 112), stride=2, padding=1, groups=96)
CLASSIFIER = LayerShape.linear(9216, 4096)
WIDE = LayerShape.linear(60000, 100)
BEYOND = LayerShape.conv(64, 192, 5, (27, 27), padding=2)

# (weights, inputs, outputs), then W, C exact, C relaxed, X: computed by hand from the counts.
BY_HAND = [
    # At words 13122, 3042, 4050, 28042, of which 15000 write the outputs. Nothing is refetched.
    (CONV, (8, 8, 8), 6561, 760.5, 1012.5, 14021),
    (CONV, (4, 8, 8), 3280.5, 380.25, 506.25, 14021),
    (CONV, (8, 16, 16), 6561, 1521, 2025, 28042),
    (CONV, (8, 8, 16), 6561, 760.5, 1012.5, 15000 + 13042 // 2),
    (CONV, (3, 5, 7), 13122 * 3 / 16, 3042 * 15 / 256, 4050 * 15 / 256, 15000 * 7 / 16 + 4075.625),
    # Twice as many inputs fit: strips of 9 rows instead of 4 fetch 14 rows again instead of 107.
    # 100 (1204224 + 150528) + 100 * 301056 + (3 + 0.5) 2677344
    (DEPTHWISE, (8, 8, 8), 2120256, 2008008, 2032128, 174951504),
    (DEPTHWISE, (4, 8, 8), 1060128, 1004004, 1016064, 174951504),
    (DEPTHWISE, (8, 16, 16), 2120256, 4016016, 4064256, 549890208),
    (CLASSIFIER, (8, 8, 8), 3906994176, 28311552, 28311552, 28306432),
    (CLASSIFIER, (4, 8, 8), 1953497088, 14155776, 14155776, 28306432),
    (CLASSIFIER, (8, 16, 16), 3906994176, 56623104, 56623104, 56612864),
    # 60000 inputs exceed the cache of 51200 words, and fit as 102400 bytes.
    (WIDE, (8, 8, 8), 621000000, 4500000, 4500000, 6000000 + 10000 + 1440000 + 3000000),
    # 307200 weights, of which the cache holds 4096, 8192 or 16384; 61 tiles of positions.
    (BEYOND, (16, 16, 16), 4035072000, 613453824, 671846400, 331271424),
    (BEYOND, (8, 8, 8), 1992960000, 153363456, 167961600, 165635712),
    (BEYOND, (4, 8, 8), 971904000, 76681728, 83980800, 165635712),
    (BEYOND, (8, 16, 16), 1992960000, 306726912, 335923200, 331271424),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: f"{case[0]} {case[1]}")
def test_by_hand(case: tuple) -> None:
    shape, bits, *expected = case
    energy = layer_energy(shape, EYERISS, widths=Widths(*bits))
    found = [energy.weights, energy.compute, energy.compute_relaxed, energy.activations]
    assert found == expected
    assert energy.relaxed == expected[0] + expected[2] + expected[3]
    assert all(isinstance(x, int) == float(x).is_integer() for x in found)


@pytest.mark.parametrize("net", ["lenet5", pytest.param("alexnet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_words_are_the_published_model(net: str, variant: str) -> None:
    for row in ORACLE[net][variant]:
        shape = parse_shape(row["shape"])
        arguments = variant_arguments(shape, variant)
        energy = layer_energy(shape, EYERISS, *arguments, widths=Widths(16, 32, 16))
        assert energy == layer_energy(shape, EYERISS, *arguments)
        assert all(isinstance(x, int) for x in (energy.exact, energy.relaxed))


def ceiled(value: Fraction) -> Fraction:
    """The next multiple of 1/256."""
    return Fraction(math.ceil(value * 256), 256)


def straight(layer: Layer, hardware: Hardware, bits: tuple[int, int, int]) -> list[Fraction]:
    """W, C exact, C relaxed and X by the formulas as they are written, in fractions."""
    shape, word = layer.shape, hardware.word_bits
    w, a, o = (min(b, word) for b in bits)
    dram, cache, rf = hardware.dram_energy, hardware.cache_energy, hardware.rf_energy
    mac = ceiled(Fraction(hardware.mac_energy * w * a, word**2))
    dram_w, cache_w, rf_w = (ceiled(Fraction(price * w, word)) for price in (dram, cache, rf))
    dram_a, cache_a, rf_a = (ceiled(Fraction(price * a, word)) for price in (dram, cache, rf))
    kept, holds = int(layer.weights.sum()), hardware.weight_cache_bytes * 8 // w
    passes = math.ceil(shape.positions / hardware.array_rows)
    fetched = min(kept, holds) + passes * max(0, kept - holds)
    weights = dram_w * fetched + cache_w * passes * kept + rf_w * shape.positions * kept
    dense = np.ones_like(layer.weights)
    unfolded = naive_multiplications(shape, dense, layer.inputs) // shape.out_per_group
    tiles = math.ceil(shape.out_per_group / hardware.array_columns)
    again = naive_refetch(shape, hardware.input_cache_bytes * 8 // a, layer.inputs)
    again = naive_row_by_row(shape, layer.inputs) if again is None else again
    moved = dram_a * (int(layer.inputs.sum()) + again)
    moved += ceiled(Fraction(dram * o, word)) * shape.positions * shape.out_channels
    moved += cache_a * unfolded * tiles + rf_a * unfolded * shape.out_per_group
    products = naive_multiplications(shape, layer.weights, layer.inputs)
    return [weights, mac * products, mac * shape.positions * kept, moved]


def counts_of(layer: Layer) -> np.ndarray:
    shape = layer.shape
    grouped = layer.weights.reshape(shape.groups, shape.out_per_group, -1, *shape.kernel)
    return grouped.sum(axis=1).reshape(shape.in_channels, *shape.kernel).astype(np.int64)


WIDTHS = st.tuples(*[st.integers(1, 20)] * 3)


@pytest.mark.slow
@settings(max_examples=80)
@given(layer=layers(), bits=WIDTHS, word=st.sampled_from([8, 12, 16]))
def test_against_fractions(layer: Layer, bits: tuple, word: int) -> None:
    hardware = Hardware("small", 3, 2, input_cache_bytes=64, weight_cache_bytes=12, word_bits=word)
    energy = layer_energy(
        layer.shape, hardware, counts_of(layer), layer.inputs, widths=Widths(*bits)
    )
    found = [energy.weights, energy.compute, energy.compute_relaxed, energy.activations]
    expected = straight(layer, hardware, bits)
    assert [Fraction(x) for x in found] == expected
    assert Fraction(energy.exact) == expected[0] + expected[1] + expected[3]


@settings(max_examples=60)
@given(shape=shapes(), cache=st.integers(4, 40), index=st.integers(0, 16), bits=WIDTHS)
def test_price_is_the_relaxed_energy_of_every_count(
    shape: LayerShape, cache: int, index: int, bits: tuple
) -> None:
    hardware = Hardware("small", 3, 2, weight_cache_bytes=cache, index_bits=index)
    widths = Widths(*bits)
    price = weight_price(shape, hardware, widths=widths)
    assert price.capacity == cache * 8 // min(bits[0], 16)
    assert price.first <= price.beyond
    total = 0
    for nonzeros in range(shape.weights + 1):
        energy = nonzero_energy(shape, hardware, nonzeros, widths=widths)
        assert price.energy(nonzeros) == energy == total
        total += price.marginal(nonzeros)
    activations, _ = activation_energy(shape, hardware, widths=widths)
    whole = layer_energy(shape, hardware, widths=widths).relaxed
    assert activations + price.energy(shape.weights) == whole


@settings(max_examples=80)
@given(layer=layers(), bits=WIDTHS, which=st.sampled_from(["weights", "inputs", "outputs"]))
def test_energy_falls_with_every_width(layer: Layer, bits: tuple, which: str) -> None:
    """But for the inputs that are fetched again: see the next test."""
    hardware = Hardware("small", 3, 2, input_cache_bytes=64, weight_cache_bytes=12, index_bits=3)
    wide = Widths(*bits)
    narrow = replace(wide, **{which: max(1, getattr(wide, which) - 1)})
    parts = []
    for widths in (wide, narrow):
        energy = layer_energy(layer.shape, hardware, counts_of(layer), layer.inputs, widths=widths)
        charged = min(widths.inputs, 16)
        again = 0
        if which == "inputs":
            again = refetch(layer.shape, 64 * 8 // charged, layer.inputs).words
        own = energy.activations - 200 * charged * again / 16
        parts.append(
            (energy.weights, energy.compute, energy.compute_relaxed, own, energy.positions)
        )
    assert all(after <= before for before, after in zip(*parts, strict=True))


def test_narrower_inputs_may_pack_worse() -> None:
    # 3 rows of 13 bits fit into 48 bits, and 4 of 12 bits: their strips overlap by 2 rows, not 1.
    shape = LayerShape.conv(1, 1, (3, 1), (5, 1), stride=(2, 1))
    hardware = Hardware("tiny", input_cache_bytes=6)
    thirteen, _ = activation_energy(shape, hardware, widths=Widths(inputs=13))
    twelve, _ = activation_energy(shape, hardware, widths=Widths(inputs=12))
    assert twelve - thirteen == 150 * 7 - 162.5 * 6 - 7 * 6 / 16
    assert twelve > thirteen


@settings(max_examples=60)
@given(shape=shapes(), seed=st.integers(0, 999), bits=WIDTHS)
def test_masked_inputs_save_their_prices(shape: LayerShape, seed: int, bits: tuple) -> None:
    hardware, widths = Hardware("odd", 3, 2, input_cache_bytes=80, rf_energy=5), Widths(*bits)
    prices = input_prices(shape, hardware, widths=widths)
    assert prices.shape == (shape.in_channels, *shape.input_size)
    inputs = np.random.default_rng(seed).random(prices.shape) < 0.6
    charged = min(bits[1], 16)

    def own(mask: np.ndarray | None) -> float:
        again = refetch(shape, 640 // charged, mask).words
        energy, _ = activation_energy(shape, hardware, mask, widths=widths)
        return energy - 200 * charged * again / 16

    assert own(None) - own(inputs) == prices[~inputs].sum()


def test_prices_of_inputs_are_integers_where_all_are_whole() -> None:
    shape = LayerShape.conv(2, 5, 3, 4)
    assert input_prices(shape, EYERISS, widths=WORDS).dtype == np.int64
    halves = input_prices(shape, EYERISS, widths=Widths(inputs=8))
    # One tile of channels: 100, and 3 + 5 * 0.5 for each of 1, 2, 2, 1 windows.
    assert halves.tolist() == [[105.5, 111, 111, 105.5]] * 2
    even = LayerShape.conv(2, 6, 3, 4)
    assert input_prices(even, EYERISS, widths=Widths(inputs=8)).dtype == np.int64
    halves[0] = 0
    assert halves[1].min() > 0, "channels must not share memory"


def test_prices_of_uses_with_other_inputs_add() -> None:
    one = weight_price(CONV, EYERISS, widths=Widths(8, 8, 8))
    other = weight_price(CONV, EYERISS, widths=Widths(8))
    # DRAM 100, cache 3 * 3, RF 25 / 2; MAC 75 / 4 or 75 / 2.
    assert (one.first, other.first) == (140.25, 159)
    assert one + other == WeightPrice(299.25, 2 * (300 + 9 + 12.5) + 56.25, 8192)
    with pytest.raises(ArgumentError, match="caches of 8192 and 4096 weights do not add"):
        one + weight_price(CONV, EYERISS)


def test_energies_that_become_whole_are_integers() -> None:
    half = Energy(0.5, 0.25, 0.5, 1)
    both = half + half
    assert (both.weights, both.compute) == (1, 0.5)
    assert isinstance(both.weights, int)
    assert isinstance((half * 4).compute, int)
    assert isinstance(both.relaxed, int)
    assert half.exact == 1.75
    assert Energy.from_dict(half.to_dict()) == half
