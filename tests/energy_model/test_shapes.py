from __future__ import annotations

import pytest

from energy_model.errors import ArgumentError
from energy_model.shapes import LayerShape


def test_convolution_fills_in_its_sizes() -> None:
    shape = LayerShape.conv(3, 64, 11, (224, 224), stride=4, padding=2)
    assert (shape.kernel, shape.stride, shape.dilation) == ((11, 11), (4, 4), (1, 1))
    assert shape.padding == ((2, 2), (2, 2))
    assert shape.output_size == (55, 55)
    assert (shape.positions, shape.weights, shape.inputs) == (3025, 23232, 3 * 224 * 224)
    assert shape.macs == 70_276_800
    assert hash(shape) == hash(LayerShape.conv(3, 64, (11, 11), (224, 224), stride=4, padding=2))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (LayerShape.conv(3, 64, 11, (224, 224), stride=4, padding=2), "3x224x224>64 k11 s4 p2"),
        (LayerShape.conv(4, 8, (1, 3), (6, 6), padding=(0, 1)), "4x6x6>8 k1x3 p0x1"),
        (LayerShape.conv(4, 8, 3, (9,), padding=[(2, 0)], dilation=2), "4x9>8 k3 p2:0 d2"),
        (LayerShape.conv(8, 8, 3, (9, 9, 9), groups=8), "8x9x9x9>8 k3 g8"),
        (LayerShape.conv_transpose(4, 2, 4, (7, 7), stride=2), "4x7x7>2 k4 s2 transposed"),
        (LayerShape.linear(9216, 4096), "fc 9216>4096"),
        (LayerShape.linear(768, 3072, positions=197), "fc 768>3072 @197"),
    ],
)
def test_text(shape: LayerShape, text: str) -> None:
    assert str(shape) == text


def test_single_integers_are_one_dimension() -> None:
    assert LayerShape.conv(4, 8, 3, 10).output_size == (8,)
    assert LayerShape.conv(4, 8, (3, 1), 10).input_size == (10, 10)


def test_asymmetric_padding_and_dilation() -> None:
    shape = LayerShape.conv(1, 1, 4, (10, 10), padding=((1, 2), (0, 3)), dilation=(1, 2))
    assert shape.output_size == (10, 7)


def test_transposed_convolution() -> None:
    shape = LayerShape.conv_transpose(8, 4, 3, (5, 5), stride=2, padding=1, output_padding=1)
    assert shape.output_size == (10, 10)
    assert shape.macs == 8 * 4 * 9 * 25
    given = LayerShape.conv_transpose(8, 4, 3, (5, 5), stride=2, padding=1, output_size=(10, 10))
    assert given == shape


def test_grouped_and_linear_counts() -> None:
    depthwise = LayerShape.conv(96, 96, 3, (112, 112), groups=96)
    assert (depthwise.weights, depthwise.out_per_group) == (864, 1)
    tokens = LayerShape.linear(768, 3072, positions=197)
    assert (tokens.weights, tokens.macs) == (768 * 3072, 768 * 3072 * 197)
    assert LayerShape.linear(400, 120).is_fully_connected
    assert not tokens.is_fully_connected
    assert not LayerShape.conv(400, 120, 1, (1, 1)).is_fully_connected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LayerShape.conv(3, 64, 3, (8, 8), groups=3), "do not divide out_channels=64"),
        (lambda: LayerShape.conv(4, 63, 3, (8, 8), groups=3), "do not divide in_channels=4"),
        (lambda: LayerShape.conv(0, 64, 3, (8, 8)), "in_channels holds 0"),
        (lambda: LayerShape.conv(3, 64, 3.0, (8, 8)), "kernel holds 3.0"),
        (lambda: LayerShape.conv(3, 64, 3, (8, 8), stride=0), "stride holds 0"),
        (lambda: LayerShape.conv(3, 64, 3, (8, 8), padding=-1), "padding holds -1"),
        (lambda: LayerShape.conv(3, 64, 9, (8, 8)), "output_size holds 0"),
        (lambda: LayerShape.conv(3, 64, (3, 3), (8,)), "1 values for 2"),
        (lambda: LayerShape.conv(3, 64, 3, (8, 8), padding=(1, 1, 1)), "does not fit 2"),
        (lambda: LayerShape.conv(3, 64, 3, (8, 8), padding=((1, 1, 1), 1)), "does not fit 2"),
        (lambda: LayerShape.conv(3, 64, 3, (8, 8), output_size=(6, 7)), "6 along dimension 1"),
        (
            lambda: LayerShape.conv_transpose(3, 6, 3, (8, 8), stride=2, output_padding=2),
            "17 along dimension 0, up to 1 more",
        ),
        (lambda: LayerShape.linear(True, 3), "in_channels holds True"),
        (
            lambda: LayerShape(1, 1, (3,), (1, 1), ((0, 0),), (1,), 1, (8,), (6,)),
            "different numbers of spatial dimensions",
        ),
    ],
)
def test_impossible_shapes(build, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()
