from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_counts import Layer, layers, naive_multiplications, naive_refetch, shapes
from oracle_networks import ORACLE, VARIANTS, count_weights, parse_shape, variant_arguments

from energy_model.energy import Energy, activation_energy, layer_energy, nonzero_energy
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware, load_hardware
from energy_model.refetch import refetch
from energy_model.shapes import LayerShape
from energy_model.support import unfolded_nonzeros

EYERISS = load_hardware("eyeriss")
ROWS = [(net, v, i) for net in ORACLE for v in VARIANTS for i in range(len(ORACLE[net][v]))]


@pytest.mark.spread(1)
@pytest.mark.parametrize(("net", "variant", "index"), ROWS)
def test_every_row_of_the_published_model(net: str, variant: str, index: int) -> None:
    row = ORACLE[net][variant][index]
    shape = parse_shape(row["shape"])
    counts, inputs = variant_arguments(shape, variant)
    energy = layer_energy(shape, EYERISS, counts, inputs)
    assert (energy.weights, energy.compute) == (row["W"], row["C"])
    assert (energy.compute_relaxed, energy.activations) == (row["rC"], row["X"])
    assert energy.compute == 3 * row["macs"]
    nonzeros = shape.weights if counts is None else counts.sum()
    assert nonzeros == row["nw"]
    if not shape.is_linear:
        assert shape.positions == row["P"]
        assert unfolded_nonzeros(shape, inputs) == row["unf"]
        assert refetch(shape, EYERISS.input_cache_words, inputs).words == row["ov"]


@pytest.mark.spread(1)
@pytest.mark.parametrize("net", list(ORACLE))
@pytest.mark.parametrize("variant", VARIANTS)
def test_totals_of_the_published_model(net: str, variant: str) -> None:
    total = Energy.zero()
    for row in ORACLE[net][variant]:
        shape = parse_shape(row["shape"])
        total += layer_energy(shape, EYERISS, *variant_arguments(shape, variant))
    expected = ORACLE[net]["totals"][variant]
    parts = [total.weights, total.compute, total.activations, total.compute_relaxed]
    totals = [total.exact, total.relaxed]
    assert [*parts, *totals] == [expected[k] for k in ("W", "C", "X", "rC", "exact", "relaxed")]


# W, C exact, C relaxed, X, E exact of single layers.
SINGLE = [
    (LayerShape.conv(1, 1, 3, (4, 4)), 1890, 108, 108, 4252, 6250),
    (LayerShape.conv(2, 3, 3, (5, 5), padding=1), 13122, 3042, 4050, 28042, 44206),
    (
        LayerShape.conv(128, 128, 3, (14, 14), padding=1, groups=32),
        *(3933184, 2457600, 2709504, 12083200, 18473984),
    ),
    (
        LayerShape.conv(96, 96, 3, (112, 112), stride=2, padding=1, groups=96),
        *(4240512, 8032032, 8128512, 549890208, 562162752),
    ),
    (
        LayerShape.conv(256, 512, 1, (56, 56), stride=2),
        *(1831567360, 308281344, 308281344, 388161536, 2528010240),
    ),
    (
        LayerShape.conv(3, 64, 7, (224, 224), stride=2, padding=3),
        *(1289148160, 348643584, 354041856, 363643688, 2001435432),
    ),
    (
        LayerShape.conv(64, 64, 3, (224, 224), padding=1),
        *(30182653952, 5516083200, 5549064192, 5252390400, 40951127552),
    ),
    (
        LayerShape.linear(60000, 100),
        *(1242000000, 18000000, 18000000, 33220000, 1293220000),
    ),
    (
        LayerShape.linear(9216, 4096),
        *(7813988352, 113246208, 113246208, 56612864, 7983847424),
    ),
]


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: str(case[0]))
def test_single_layers(case: tuple) -> None:
    shape, *expected = case
    energy = layer_energy(shape, EYERISS)
    found = [energy.weights, energy.compute, energy.compute_relaxed, energy.activations]
    assert [*found, energy.exact] == expected
    assert not energy.fallback


def test_masked_fully_connected_layer_keeps_its_compute() -> None:
    inputs = np.arange(9216) < 4608
    energy = layer_energy(LayerShape.linear(9216, 4096), EYERISS, inputs=inputs)
    assert energy == Energy(7813988352, 113246208, 113246208, 28716032)
    assert energy.exact == 7955950592


def test_alexnet_second_layer_step_by_step() -> None:
    shape = LayerShape.conv(64, 192, 5, (27, 27), padding=2)
    assert unfolded_nonzeros(shape) == 1_065_024
    assert shape.macs == 729 * 307_200
    energy = layer_energy(shape, EYERISS)
    assert energy.activations == 9_331_200 + 27_993_600 + 89_462_016 + 204_484_608
    assert energy.weights == 3_698_688_000 + 112_435_200 + 223_948_800
    assert (energy.exact, energy.relaxed) == (4_979_797_248, 5_038_189_824)


def test_counts_above_two_to_the_24_keep_their_units() -> None:
    # SqueezeNet's stem: a float32 count loses 48 of these.
    stem = LayerShape.conv(3, 96, 7, (224, 224), stride=2)
    assert layer_energy(stem, EYERISS).compute == 502_994_016


def test_tokens_are_a_convolution_of_one_by_one() -> None:
    tokens = LayerShape.linear(768, 3072, positions=197)
    pixels = LayerShape.conv(768, 3072, 1, (197, 1))
    assert layer_energy(tokens, EYERISS) == layer_energy(pixels, EYERISS)


def test_one_token_costs_what_the_convolution_rule_says() -> None:
    # Below the input cache the two rules coincide.
    fc = layer_energy(LayerShape.linear(400, 120), EYERISS)
    assert fc == layer_energy(LayerShape.conv(400, 120, 1, (1, 1)), EYERISS)


@pytest.mark.slow
@settings(max_examples=150)
@given(layer=layers())
def test_energy_against_counting_one_by_one(layer: Layer) -> None:
    shape = layer.shape
    hardware = Hardware("small", 3, 2, input_cache_bytes=64, weight_cache_bytes=12)
    energy = layer_energy(shape, hardware, count_for(layer), layer.inputs)
    multiplications = naive_multiplications(shape, layer.weights, layer.inputs)
    assert energy.compute == 3 * multiplications
    unfolded = naive_multiplications(shape, np.ones_like(layer.weights), layer.inputs)
    unfolded //= shape.out_per_group
    tiles = -(-shape.out_per_group // 2)
    again = naive_refetch(shape, 32, layer.inputs)
    assert energy.fallback == (again is None)
    assume(again is not None)
    words = int(layer.inputs.sum()) + again + shape.positions * shape.out_channels
    assert energy.activations == 200 * words + unfolded * (6 * tiles + shape.out_per_group)
    nonzeros = int(layer.weights.sum())
    passes = -(-shape.positions // 3)
    fetched = min(nonzeros, 6) + passes * max(0, nonzeros - 6)
    used = (6 * passes + shape.positions) * nonzeros
    assert energy.weights == 200 * fetched + used
    assert energy.compute_relaxed == 3 * shape.positions * nonzeros


def count_for(layer: Layer) -> np.ndarray:
    return count_weights(layer.shape, layer.weights)


@settings(max_examples=100)
@given(layer=layers())
def test_relaxed_bounds_exact_and_meets_it_without_padding(layer: Layer) -> None:
    energy = layer_energy(layer.shape, EYERISS, count_for(layer), layer.inputs)
    assert energy.relaxed >= energy.exact
    unpadded = not layer.shape.transposed and not np.any(layer.shape.padding)
    if unpadded and layer.inputs.all():
        assert energy.relaxed == energy.exact


@settings(max_examples=100)
@given(layer=layers(), data=st.data())
def test_removing_a_weight_never_costs_energy(layer: Layer, data: st.DataObject) -> None:
    kept = np.flatnonzero(layer.weights)
    assume(kept.size)
    before = layer_energy(layer.shape, EYERISS, count_for(layer), layer.inputs)
    layer.weights.flat[data.draw(st.sampled_from(kept.tolist()))] = False
    after = layer_energy(layer.shape, EYERISS, count_for(layer), layer.inputs)
    assert after.relaxed < before.relaxed
    assert after.exact < before.exact


@settings(max_examples=100)
@given(layer=layers(), data=st.data())
def test_masking_an_input_never_adds_multiplications(layer: Layer, data: st.DataObject) -> None:
    used = np.flatnonzero(layer.inputs)
    assume(used.size)
    before = layer_energy(layer.shape, EYERISS, count_for(layer), layer.inputs)
    unfolded = unfolded_nonzeros(layer.shape, layer.inputs)
    layer.inputs.flat[data.draw(st.sampled_from(used.tolist()))] = False
    assert (
        layer_energy(layer.shape, EYERISS, count_for(layer), layer.inputs).compute <= before.compute
    )
    assert unfolded_nonzeros(layer.shape, layer.inputs) <= unfolded


def support_of_rows(counts: list[int], width: int) -> np.ndarray:
    return np.array([[column < count for column in range(width)] for count in counts])[np.newaxis]


def test_masking_an_input_can_cost_activation_energy() -> None:
    # Strips pack differently: the known counterexample to monotonicity in the inputs.
    shape = LayerShape.conv(1, 3, 2, (8, 4), stride=2)
    hardware = EYERISS.replace(input_cache_bytes=16)
    before = support_of_rows([2, 3, 3, 1, 4, 2, 3, 1], 4)
    after = support_of_rows([2, 3, 3, 1, 4, 1, 3, 1], 4)
    assert (before & after).sum() == after.sum() == before.sum() - 1
    assert [refetch(shape, 8, x).words for x in (before, after)] == [7, 10]
    energies = [activation_energy(shape, hardware, x)[0] for x in (before, after)]
    assert energies == [10171, 10562]


@settings(max_examples=60)
@given(shape=shapes(), data=st.data())
def test_dense_arguments_are_the_default(shape: LayerShape, data: st.DataObject) -> None:
    per_channel = np.full((shape.in_channels, *shape.kernel), shape.out_per_group)
    per_offset = per_channel.sum(axis=0)
    ones = np.ones((shape.in_channels, *shape.input_size), dtype=bool)
    dense = layer_energy(shape, EYERISS)
    assert dense == layer_energy(shape, EYERISS, per_offset)
    assert dense == layer_energy(shape, EYERISS, per_channel, ones)
    nonzeros = data.draw(st.integers(0, shape.weights))
    assert nonzero_energy(shape, EYERISS, shape.weights) + dense.activations == dense.relaxed
    assert nonzero_energy(shape, EYERISS, nonzeros) <= dense.relaxed - dense.activations


def test_stored_positions_are_charged_per_nonzero() -> None:
    shape = LayerShape.conv(64, 192, 5, (27, 27), padding=2)
    energy = layer_energy(shape, EYERISS.replace(index_bits=4))
    # 61 tiles; (200 + 366) / 4 = 141.5 and (12200 + 366) / 4 = 3141.5, rounded up.
    assert energy.positions == 142 * 4096 + 3142 * (307_200 - 4096)
    plain = layer_energy(shape, EYERISS)
    assert energy.relaxed - plain.relaxed == energy.exact - plain.exact == energy.positions


def test_strip_that_does_not_fit_is_flagged_and_spreads() -> None:
    wide = layer_energy(LayerShape.conv(64, 64, 3, (300, 300), padding=1), EYERISS)
    assert wide.fallback
    fits = layer_energy(LayerShape.conv(64, 64, 3, (100, 100), padding=1), EYERISS)
    assert not fits.fallback
    assert (fits + wide).fallback
    assert (2 * wide).fallback


def test_energies_add_and_multiply() -> None:
    energy = Energy(1, 2, 3, 4, 5)
    assert energy + Energy.zero() == energy
    assert energy + energy + energy == 3 * energy == energy * 3
    assert (energy.exact, energy.relaxed) == (12, 13)


def test_energy_round_trip() -> None:
    energy = Energy(1, 2, 3, 4, 5, True)
    values = energy.to_dict()
    assert (values["exact"], values["relaxed"]) == (12, 13)
    assert Energy.from_dict(values) == energy
    del values["compute"]
    with pytest.raises(ArgumentError, match="lacks compute"):
        Energy.from_dict(values)


@pytest.mark.parametrize(
    ("counts", "inputs", "message"),
    [
        (np.ones((4, 4), int), None, "do not fit kernel"),
        (np.ones((3, 3), int), np.ones((2, 5, 5), bool), "do not fit kernel"),
        (np.full((2, 3, 3), 5), None, "integers from 0 to 4"),
        (np.full((3, 3), 9), None, "integers from 0 to 8"),
        (np.full((3, 3), -1), None, "from -1"),
        (np.ones((3, 3)), None, "type float64"),
        (None, np.ones((2, 5, 4), bool), "does not fit inputs"),
    ],
)
def test_arguments_that_do_not_fit(counts, inputs, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        layer_energy(LayerShape.conv(2, 4, 3, (5, 5)), EYERISS, counts, inputs)


@pytest.mark.parametrize("nonzeros", [-1, 73])
def test_nonzeros_out_of_range(nonzeros: int) -> None:
    with pytest.raises(ArgumentError, match="72 weights"):
        nonzero_energy(LayerShape.conv(2, 4, 3, (5, 5)), EYERISS, nonzeros)
