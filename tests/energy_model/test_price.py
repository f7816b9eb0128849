from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_counts import shapes

from energy_model.energy import activation_energy, layer_energy, nonzero_energy
from energy_model.errors import ArgumentError
from energy_model.hardware import Hardware, load_hardware
from energy_model.price import WeightPrice, weight_price
from energy_model.shapes import LayerShape

EYERISS = load_hardware("eyeriss")


@pytest.mark.parametrize(
    ("shape", "first", "beyond"),
    [
        (LayerShape.conv(3, 64, 11, (224, 224), stride=4, padding=2), 13818, 64218),
        (LayerShape.conv(64, 192, 5, (27, 27), padding=2), 3482, 15482),
        (LayerShape.conv(192, 384, 3, (13, 13), padding=1), 966, 3766),
        (LayerShape.linear(9216, 4096), 210, 210),
        (LayerShape.conv(1, 6, 5, (32, 32)), 3732, 200 * 66 + 6 * 66 + 4 * 784),
        (LayerShape.conv(6, 16, 5, (14, 14)), 654, 200 * 9 + 6 * 9 + 400),
    ],
    ids=str,
)
def test_published_prices(shape: LayerShape, first: int, beyond: int) -> None:
    assert weight_price(shape, EYERISS) == WeightPrice(first, beyond, 4096)


@settings(max_examples=100)
@given(shape=shapes(), cache=st.integers(2, 40), index_bits=st.integers(0, 16))
def test_price_is_the_relaxed_energy_of_every_count(shape, cache: int, index_bits: int) -> None:
    hardware = Hardware("small", 3, 2, weight_cache_bytes=cache, index_bits=index_bits)
    price = weight_price(shape, hardware)
    assert price.capacity == cache // 2
    assert price.first <= price.beyond
    total = 0
    for nonzeros in range(shape.weights + 1):
        assert price.energy(nonzeros) == nonzero_energy(shape, hardware, nonzeros) == total
        total += price.marginal(nonzeros)
    activations, _ = activation_energy(shape, hardware)
    assert activations + price.energy(shape.weights) == layer_energy(shape, hardware).relaxed


def test_kink_at_the_weight_cache() -> None:
    price = WeightPrice(3, 10, 4)
    assert [price.energy(n) for n in (0, 3, 4, 5, 6)] == [0, 9, 12, 22, 32]
    assert [price.marginal(rank) for rank in (0, 3, 4)] == [3, 3, 10]


def test_prices_of_several_uses() -> None:
    price = WeightPrice(3, 10, 4)
    assert price + price == 2 * price == price * 2 == WeightPrice(6, 20, 4)
    with pytest.raises(ArgumentError, match="caches of 4 and 5"):
        price + WeightPrice(3, 10, 5)
