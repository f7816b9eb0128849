"""Positions of nonzeros: every coding gives them back, fillers fall on zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from export.gaps import GAP_WIDTHS, decode_gaps, encode_gaps, fillers, pack_bits, pack_nibbles

POSITIONS = st.lists(st.integers(0, 200_000), max_size=30, unique=True).map(
    lambda values: np.array(sorted(values), dtype=np.int64)
)


@settings(max_examples=150)
@given(POSITIONS, st.sampled_from(GAP_WIDTHS))
def test_gaps_give_the_positions_back_and_fillers_fall_between_them(positions, width):
    gaps, places = encode_gaps(positions, width)
    assert gaps.max(initial=0) < 2**width
    entries = decode_gaps(gaps)
    np.testing.assert_array_equal(entries[places], positions)
    assert (np.diff(entries) > 0).all()
    assert len(gaps) == len(positions) + fillers(positions, width).sum()
    others = np.delete(entries, places)
    assert not set(others) & set(positions)
    # No filler comes after the last nonzero: it would lie outside of the tensor.
    assert entries.max(initial=-1) == positions.max(initial=-1)


@pytest.mark.parametrize(
    ("positions", "width", "expected"),
    [
        ([0], 8, [0]),
        ([255], 8, [255]),
        ([256], 8, [255, 1]),
        ([510], 8, [255, 255]),
        ([3, 3 + 255, 3 + 2 * 255 + 1], 8, [3, 255, 255, 1]),
        ([15, 31], 4, [15, 15, 1]),
        ([65536], 16, [65535, 1]),
        ([], 4, []),
    ],
)
def test_gaps_written_by_hand(positions, width, expected):
    gaps, _ = encode_gaps(np.array(positions, dtype=np.int64), width)
    assert gaps.tolist() == expected


@given(st.lists(st.integers(-8, 7), max_size=9), st.lists(st.integers(0, 15), max_size=9))
def test_nibbles_lie_as_onnx_lays_them(signed, unsigned):
    for values, kind in ((signed, TensorProto.INT4), (unsigned, TensorProto.UINT4)):
        raw = pack_nibbles(np.array(values, np.int64))
        assert len(raw) == (len(values) + 1) // 2
        tensor = TensorProto(data_type=kind, dims=[len(values)], raw_data=raw)
        assert numpy_helper.to_array(tensor).astype(int).tolist() == values


@given(st.integers(1, 40), st.data())
def test_bits_are_set_at_the_positions(size, data):
    kept = data.draw(st.sets(st.integers(0, size - 1)))
    raw = pack_bits(np.array(sorted(kept), np.int64), size)
    assert len(raw) == (size + 7) // 8
    assert {i for i in range(len(raw) * 8) if raw[i // 8] >> i % 8 & 1} == kept
