"""The support of an input mask as a value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from energy_model.input_support import InputSupport

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=6)
MASKS = arrays.arrays(np.bool_, SHAPES)


@settings(max_examples=150)
@given(mask=MASKS)
def test_round_trip(mask: np.ndarray) -> None:
    support = InputSupport.of(mask)
    np.testing.assert_array_equal(support.array, mask)
    assert support.array.dtype == np.bool_
    assert support.array.shape == mask.shape
    assert (support.size, support.kept) == (mask.size, int(mask.sum()))


@settings(max_examples=150)
@given(mask=MASKS, flip=st.integers(0, 10_000))
def test_equal_exactly_when_the_entries_are(mask: np.ndarray, flip: int) -> None:
    support, same = InputSupport.of(mask), InputSupport.of(mask.copy())
    assert support == same
    assert hash(support) == hash(same)
    other = mask.copy()
    other.reshape(-1)[flip % mask.size] ^= True
    assert InputSupport.of(other) != support
    assert len({support, same, InputSupport.of(other)}) == 2


def test_the_shape_is_part_of_the_value() -> None:
    # The same packed bytes, and yet another support.
    assert InputSupport.of(np.ones((2, 6))) != InputSupport.of(np.ones((3, 4)))
    assert InputSupport.of(np.zeros(9)) != InputSupport.of(np.zeros(10))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8, np.bool_])
def test_of_any_type_what_is_not_zero_is_kept(dtype: type) -> None:
    values = np.array([[0, 1, 2], [-0.0, 0.4, 0]])
    expected = values.astype(dtype) != 0
    assert InputSupport.of(values.astype(dtype)) == InputSupport.of(expected)


def test_order_in_memory_does_not_matter() -> None:
    mask = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    turned = np.asfortranarray(mask)
    assert InputSupport.of(turned) == InputSupport.of(mask)
    assert InputSupport.of(mask.transpose(2, 0, 1)).array.shape == (5, 3, 4)
    assert InputSupport.of(mask[:, ::2]) == InputSupport.of(mask[:, ::2].copy())


def test_text() -> None:
    support = InputSupport.of(np.arange(2_000).reshape(2, 1000) % 2)
    assert str(support) == "input mask keeps 1,000 of 2,000"
    assert len(support.packed) == 250
