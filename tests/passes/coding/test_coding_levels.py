from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, StorageError
from passes.coding.levels import code_levels, trailing_zeros
from passes.coding.patterns import (
    BFLOAT16,
    Kind,
    Level,
    array_of,
    bits_of,
    by_value,
    join_bits,
    kind_of,
    split_bits,
)
from passes.coding.range_coder import Decoder, Encoder, Meter
from passes.coding.values import code_values

FLOAT = kind_of(np.dtype(np.float32))
TYPES = ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
KINDS = [*(kind_of(np.dtype(name)) for name in TYPES), BFLOAT16]


def levels_of(values: list[float], dtype: str = "f4") -> list[Level]:
    array = np.array(values, dtype)
    kind = kind_of(array.dtype)
    negative, size = split_bits(bits_of(array), kind)
    return list(zip(negative.tolist(), size.tolist(), strict=True))


def level_bits(levels: list[Level], kind: Kind) -> float:
    meter, encoder = Meter(), Encoder()
    assert code_levels(meter, levels, kind) == code_levels(encoder, levels, kind)
    read = code_levels(Decoder(encoder.finish()), [], kind)
    assert read == sorted(set(levels), key=by_value)
    return meter.total


@given(st.sampled_from(KINDS), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_levels_and_values_of_any_bits_come_back(kind: Kind, patterns: list[int]) -> None:
    bits = np.array([p % 2**kind.width for p in patterns], f"u{kind.width // 8}")
    negative, size = split_bits(bits, kind)
    levels = list(zip(negative.tolist(), size.tolist(), strict=True))
    assert (join_bits(levels, kind) == bits).all()
    assert level_bits(levels, kind) > 0
    encoder = Encoder()
    assert code_values(encoder, levels, len(levels), kind) == levels
    assert code_values(Decoder(encoder.finish()), [], len(levels), kind) == levels


@given(st.lists(st.integers(-128, 128).filter(bool), min_size=2, max_size=12, unique=True))
def test_levels_on_a_grid_come_back_and_cost_little(multiples: list[int]) -> None:
    scale = np.float32(0.0123412)
    scale = np.frombuffer(np.uint32(scale.view(np.uint32) & 0xFFFFFF00).tobytes(), np.float32)[0]
    levels = levels_of([float(scale) * m for m in multiples])
    assert level_bits(levels, FLOAT) < 40 + 12 * len(multiples)


def test_a_grid_is_cheaper_than_its_levels_one_by_one() -> None:
    grid = levels_of([0.7109375 * m for m in range(-7, 8) if m])
    free = levels_of([0.7109375 * m + 0.00390625 * (m % 3) for m in range(-7, 8) if m])
    assert level_bits(grid, FLOAT) < 45 < level_bits(free, FLOAT)


def test_rounded_levels_cost_what_their_bits_need() -> None:
    coarse = levels_of([-0.375, -0.125, 0.140625, 0.40625])
    fine = levels_of([-0.37512345, -0.1251234, 0.140612345, 0.4061234])
    assert level_bits(coarse, FLOAT) + 4 * 15 < level_bits(fine, FLOAT)


def test_a_grid_of_subnormals_and_the_largest_float() -> None:
    tiny = np.float32(1.4e-45)
    level_bits(levels_of([float(tiny * k) for k in (1, 2, 3, 100)]), FLOAT)
    level_bits(levels_of([3.4028235e38, -3.4028235e38, 1.7014117e38]), FLOAT)
    level_bits(levels_of([float("inf"), 1.0, -0.0, float("nan")]), FLOAT)


def test_multiples_are_the_inverse_of_magnitudes() -> None:
    for kind in KINDS:
        for size in [0, 1, 2, kind.largest // 3, kind.largest // 2]:
            multiple = kind.multiple(size)
            if multiple is not None:
                assert kind.magnitude(multiple) == size
    with pytest.raises(StorageError):
        FLOAT.magnitude((1 << 24) + 1)
    with pytest.raises(StorageError):
        FLOAT.magnitude(1 << 300)
    with pytest.raises(StorageError):
        KINDS[4].magnitude(256)


def test_zeros_at_the_end_are_counted() -> None:
    assert trailing_zeros([8, 24, 40], 23) == 3
    assert trailing_zeros([0], 23) == 23
    assert trailing_zeros([1 << 30], 23) == 23


@pytest.mark.parametrize(("dtype", "limit"), [("f2", 16.0), ("f4", 32.0)])
def test_values_cost_less_than_they_take(dtype: str, limit: float) -> None:
    array = np.random.default_rng(0).normal(size=2000).astype(dtype)
    levels = levels_of(array.tolist(), dtype)
    meter = Meter()
    code_values(meter, levels, len(levels), kind_of(array.dtype))
    assert meter.total < len(array) * (limit - 2)


def test_float32_values_that_a_float16_can_hold_cost_no_more_than_that() -> None:
    half = np.random.default_rng(1).normal(size=50).astype("f2")
    meter = Meter()
    code_values(meter, levels_of(half.astype("f4").tolist()), 50, FLOAT)
    assert meter.total < 50 * 16


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "f16", "U3"])
def test_other_types_are_refused(dtype: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be coded"):
        kind_of(np.dtype(dtype))


@pytest.mark.parametrize("order", ["<f4", ">f4", "<i2", ">i8"])
def test_byte_order_does_not_matter(order: str) -> None:
    array = np.arange(-3, 5).astype(order)
    bits = bits_of(array)
    back = array_of(bits, array.dtype, array.shape)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert (bits == bits_of(array.astype(array.dtype.newbyteorder("=")))).all()
