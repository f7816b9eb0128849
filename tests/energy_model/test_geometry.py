from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from energy_model.geometry import (
    conv_output,
    conv_transpose_output,
    dimensions,
    spread,
    spread_pairs,
    steps_inside,
)


@given(
    offset=st.integers(0, 6),
    steps=st.integers(1, 12),
    stride=st.integers(1, 5),
    before=st.integers(0, 9),
    dilation=st.integers(1, 4),
    size=st.integers(1, 12),
)
def test_steps_inside_against_trying_each(offset, steps, stride, before, dilation, size) -> None:
    met = [step for step in range(steps) if 0 <= step * stride + offset * dilation - before < size]
    assert list(steps_inside(offset, steps, stride, (before, 0), dilation, size)) == met


def test_output_sizes() -> None:
    assert conv_output(224, 11, 4, (2, 2), 1) == 55
    assert conv_output(10, 3, 2, (0, 1), 2) == 4
    assert conv_transpose_output(5, 3, 2, (1, 1), 1) == 9


def test_values_per_dimension() -> None:
    assert dimensions(3, 4) == 1
    assert dimensions(3, (4, 5)) == 2
    assert spread("stride", 2, 3) == (2, 2, 2)
    assert spread_pairs(1, 2) == ((1, 1), (1, 1))
    assert spread_pairs((1, (0, 2)), 2) == ((1, 1), (0, 2))
    with pytest.raises(ArgumentError, match=r"stride=.* has 2 values for 3"):
        spread("stride", (1, 2), 3)
    with pytest.raises(ArgumentError, match="padding"):
        spread_pairs(((1, 2, 3),), 1)
