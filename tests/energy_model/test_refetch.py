from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_counts import Layer, layers, naive_refetch, naive_row_by_row

from energy_model.errors import ArgumentError
from energy_model.refetch import Refetch, refetch
from energy_model.shapes import LayerShape


@pytest.mark.parametrize(
    ("padding", "stride", "capacity", "words"),
    [(0, 1, 40, 20), (0, 1, 30, 60), (0, 1, 60, 0), (1, 2, 35, 30)],
)
def test_six_rows_of_ten(padding: int, stride: int, capacity: int, words: int) -> None:
    shape = LayerShape.conv(1, 1, (3, 1), (6, 10), stride=(stride, 1), padding=(padding, 0))
    assert refetch(shape, capacity) == Refetch(words)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (LayerShape.conv(96, 96, 3, (112, 112), stride=2, padding=1, groups=96), 1_150_464),
        (LayerShape.conv(3, 64, 7, (224, 224), stride=2, padding=3), 11_424),
        (LayerShape.conv(64, 64, 3, (224, 224), padding=1), 6_336_512),
        (LayerShape.conv(256, 512, 1, (56, 56), stride=2), 0),
    ],
    ids=str,
)
def test_large_layers(shape: LayerShape, words: int) -> None:
    assert refetch(shape, 51_200) == Refetch(words)


@pytest.mark.slow
@settings(max_examples=300)
@given(layer=layers(), capacity=st.integers(1, 60))
def test_against_the_strip_loop(layer: Layer, capacity: int) -> None:
    found = refetch(layer.shape, capacity, layer.inputs)
    strips = naive_refetch(layer.shape, capacity, layer.inputs)
    assert found.fallback == (strips is None)
    expected = naive_row_by_row(layer.shape, layer.inputs) if strips is None else strips
    assert found.words == expected


@pytest.mark.slow
@settings(max_examples=100)
@given(kernel=st.integers(1, 4), rows=st.integers(4, 12), padding=st.integers(0, 3), data=st.data())
def test_row_by_row_bounds_strips_of_undilated_windows(
    kernel: int, rows: int, padding: int, data: st.DataObject
) -> None:
    shape = LayerShape.conv(2, 1, (kernel, 1), (rows, 3), padding=(padding, 0))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    inputs = random.random((2, rows, 3)) < 0.7
    bound = refetch(shape, 0, inputs) if inputs.any() else Refetch(0, True)
    for capacity in range(1, 80):
        found = refetch(shape, capacity, inputs)
        assert found.words <= bound.words


def test_fallback_counts_every_row_of_every_window() -> None:
    # Four windows of three rows of ten; six first touches.
    shape = LayerShape.conv(1, 1, (3, 1), (6, 10))
    assert refetch(shape, 29) == Refetch(10 * (4 * 3 - 6), fallback=True)
    # A window of one row never fetches anything again, whatever fits.
    assert refetch(LayerShape.conv(1, 1, 1, (6, 10)), 9) == Refetch(0, fallback=True)


def test_empty_input_fits_anywhere() -> None:
    shape = LayerShape.conv(1, 1, 3, (6, 10))
    assert refetch(shape, 1, np.zeros((1, 6, 10), dtype=bool)) == Refetch(0)


def test_transposed_rows_are_spread_out() -> None:
    # Rows 0 0 10 0 10 0 10 0 0, of which seven windows of three rows are taken at stride 1.
    shape = LayerShape.conv_transpose(1, 1, (3, 1), (3, 10), stride=(2, 1))
    assert shape.output_size == (7, 10)
    assert refetch(shape, 30) == Refetch(0)
    assert refetch(shape, 20) == Refetch(10)
    assert refetch(shape, 19) == Refetch(60, fallback=True)


def test_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match="does not fit"):
        refetch(LayerShape.conv(2, 2, 3, (4, 4)), 100, np.ones((1, 4, 4), dtype=bool))
