from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from naive_counts import Layer, layers, naive_hits, shapes

from energy_model.errors import ArgumentError
from energy_model.shapes import LayerShape
from energy_model.support import input_support, unfolded_nonzeros, window_hits


@pytest.mark.slow
@settings(max_examples=200)
@given(layer=layers())
def test_masked_hits_against_counting(layer: Layer) -> None:
    hits = window_hits(layer.shape, layer.inputs)
    assert hits.dtype == np.int64
    np.testing.assert_array_equal(hits, naive_hits(layer.shape, layer.inputs))
    assert unfolded_nonzeros(layer.shape, layer.inputs) == hits.sum()


@pytest.mark.slow
@settings(max_examples=200)
@given(shape=shapes())
def test_dense_hits_are_those_of_a_full_mask(shape: LayerShape) -> None:
    hits = window_hits(shape)
    assert hits.shape == (1, *shape.kernel)
    full = window_hits(shape, np.ones((shape.in_channels, *shape.input_size), dtype=bool))
    np.testing.assert_array_equal(np.broadcast_to(hits, full.shape), full)
    assert unfolded_nonzeros(shape) == full.sum()


def test_offsets_that_only_meet_padding() -> None:
    # Both outer taps lie in the padding at every position.
    shape = LayerShape.conv(1, 1, 3, (1,), padding=5, dilation=5)
    assert window_hits(shape).tolist() == [[0, 1, 0]]
    far = LayerShape.conv(1, 1, 3, (2,), padding=9, stride=20, dilation=9)
    assert window_hits(far).tolist() == [[0, 1, 0]]


def test_mask_of_another_shape() -> None:
    with pytest.raises(ArgumentError, match=r"\(2, 5\) does not fit inputs of shape \(2, 4\)"):
        window_hits(LayerShape.conv(2, 2, 3, 4), np.ones((2, 5), dtype=bool))
    with pytest.raises(ArgumentError, match="does not fit"):
        input_support(LayerShape.linear(3, 2, positions=4), np.ones(3, dtype=bool))
    assert input_support(LayerShape.linear(3, 2), np.array([0, 1, 2])).tolist() == [
        [False],
        [True],
        [True],
    ]
