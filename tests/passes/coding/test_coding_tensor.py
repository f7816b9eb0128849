from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from energy_model.errors import ArgumentError, CompressionError
from passes.coding import contents
from passes.coding.range_coder import Decoder, Encoder, Meter
from passes.coding.tensor import (
    MOST,
    coded_symbols,
    decode_tensor,
    encode_tensor,
    is_large,
    tensor_bits,
)

DTYPES = ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
SHAPES = [(), (0,), (1,), (5,), (3, 0, 2), (1, 9), (6, 8), (4, 3, 3, 3), (2, 3, 4), (1, 1, 2, 3, 2)]


def size_in_bytes(array: Any) -> int:
    """Bytes of a tensor in a stream of its own, after a round trip."""
    encoder, meter = Encoder(), Meter()
    encode_tensor(encoder, array)
    encode_tensor(meter, array)
    data = encoder.finish()
    back = decode_tensor(Decoder(data), array.dtype, array.shape)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert 8 * len(data) < meter.total + 8.01
    return len(data)


@settings(max_examples=60)
@given(st.data())
def test_any_tensor_comes_back(data: st.DataObject) -> None:
    dtype, shape = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(SHAPES))
    size_in_bytes(data.draw(hnp.arrays(dtype, shape)))


@settings(max_examples=20)
@given(
    st.sampled_from(["f2", "f4", "f8", "i1", "i4", "u1", "u2"]),
    st.sampled_from([(40,), (12, 30), (6, 5, 3, 3)]),
    st.sampled_from([0.02, 0.2, 0.7, 1.0]),
    st.sampled_from([1, 2, 7, 40, 10_000]),
    st.integers(0, 1000),
)
def test_sparse_tensors_with_few_levels_come_back(
    dtype: str, shape: tuple[int, ...], density: float, levels: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    book = (generator.normal(size=levels) * 100).astype(dtype)
    array = book[generator.integers(0, levels, shape)]
    array[generator.random(shape) >= density] = book[0] if seed % 2 else 0
    size_in_bytes(array)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0, 0.0, 0.0],
        [-0.0] * 6,
        [math.inf, -math.inf, 0.0, math.nan],
        [1e-45, -1e-45, 1.1754944e-38, 3.4028235e38],
        [math.nan] * 9,
    ],
)
def test_special_floats_come_back(values: list[float]) -> None:
    size_in_bytes(np.array(values, np.float32))
    size_in_bytes(np.array(values, np.float64))


def test_payloads_of_nan_come_back() -> None:
    patterns = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0], np.uint32)
    size_in_bytes(patterns.view(np.float32).copy())


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("array", "most"),
    [
        (np.zeros((300, 300), np.float32), 1),
        (np.full((50, 50), 0.5, np.float32), 4),
        (np.full(1000, -7, np.int64), 5),
        (np.eye(1, 5000, 0, dtype=np.float32), 6),
        (np.eye(1, 5000, 4999, dtype=np.float32), 6),
        (np.tile(np.float32([1, -1]), 500), 20),
        (np.ones((20, 20), np.float32) * np.float32(np.pi), 6),
        (np.zeros((0, 5), np.float32), 0),
    ],
)
def test_simple_tensors_are_tiny(array: Any, most: int) -> None:
    assert size_in_bytes(array) <= most


def test_two_levels_at_one_percent_cost_positions_and_signs() -> None:
    generator = np.random.default_rng(0)
    signs = generator.choice(np.float32([-0.125, 0.125]), (61, 211))
    array = np.where(generator.random(signs.shape) < 0.01, signs, np.float32(0))
    count = np.count_nonzero(array)
    p = count / array.size
    entropy = -array.size * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) + count
    assert 8 * size_in_bytes(array) < 1.02 * entropy + 80


@pytest.mark.parametrize("levels", [4, 16])
def test_dense_codes_cost_their_entropy(levels: int) -> None:
    generator = np.random.default_rng(1)
    book = np.sort(generator.normal(size=levels)).astype(np.float32)
    array = book[generator.integers(0, levels, (40, 50))]
    assert size_in_bytes(array) < array.size * math.log2(levels) / 8 + 6 * levels + 24


def test_brain_floats_are_recognised() -> None:
    values = np.random.default_rng(2).normal(size=600).astype(np.float32)
    brain = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert size_in_bytes(brain) < 0.75 * brain.nbytes
    size_in_bytes(np.arange(600, dtype=np.uint16))


def test_floats_that_fit_a_smaller_type_cost_no_more_than_that() -> None:
    generator = np.random.default_rng(3)
    for smaller in (np.float16, np.float32):
        wide = generator.normal(size=80).astype(smaller).astype(np.float64)
        assert size_in_bytes(wide) < np.dtype(smaller).itemsize * 80
    brain = generator.normal(size=80).astype(np.float32).view(np.uint32) & 0xFFFF0000
    assert size_in_bytes(brain.view(np.float32).copy()) < 2 * 80


def test_tensors_share_a_stream() -> None:
    generator = np.random.default_rng(4)
    tensors = [generator.normal(size=(4, 5)).astype(dtype) for dtype in ("f4", "f2", "i1", "f8")]
    encoder, meter = Encoder(), Meter()
    for tensor in tensors:
        encode_tensor(encoder, tensor)
        encode_tensor(meter, tensor)
    encoder.bits(0x5A5A5A, 24)
    data = encoder.finish()
    decoder = Decoder(data)
    for tensor in tensors:
        assert decode_tensor(decoder, tensor.dtype, tensor.shape).tobytes() == tensor.tobytes()
    assert decoder.bits(0, 24) == 0x5A5A5A
    assert abs(8 * len(data) - meter.total - 24) < 16


def test_bits_are_those_of_the_stream() -> None:
    generator = np.random.default_rng(5)
    array = np.where(generator.random((30, 90)) < 0.1, generator.normal(size=(30, 90)), 0)
    assert abs(8 * size_in_bytes(array) - tensor_bits(array)) < 16
    assert tensor_bits(np.zeros((0, 3), np.int8)) == 0


def test_what_takes_long_is_large() -> None:
    assert not is_large(np.zeros((800, 500), np.float32))
    assert not is_large(np.eye(900, dtype=np.float32))
    assert is_large(np.ones((800, 500), np.float32))
    assert is_large(np.zeros(MOST + 1, np.int8))
    assert is_large(np.ones(5000, np.int8), limit=10_000)
    assert coded_symbols(np.ones(10, np.int8)) == 50
    assert tensor_bits(np.zeros(MOST + 1, np.int8)) < 400


def test_other_types_and_too_many_elements_are_refused() -> None:
    with pytest.raises(ArgumentError, match="cannot be coded"):
        encode_tensor(Encoder(), np.zeros(3, np.complex64))
    with pytest.raises(ArgumentError, match="encode_large"):
        encode_tensor(Encoder(), np.zeros(MOST + 1, np.int8))
    with pytest.raises(CompressionError):
        decode_tensor(Decoder(b""), np.float32, (1 << 40,))


@settings(max_examples=60)
@given(
    st.binary(max_size=60), st.sampled_from(DTYPES), st.sampled_from([(9,), (5, 8), (3, 2, 3, 3)])
)
def test_random_bytes_are_a_tensor_or_an_error(
    data: bytes, dtype: str, shape: tuple[int, ...]
) -> None:
    try:
        array = decode_tensor(Decoder(data), np.dtype(dtype), shape)
    except CompressionError:
        return
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [0.4])
def test_comparing_ways_on_the_first_rows_is_enough(
    zeros: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(11)
    # Neighbours in a kernel are alike, and some kernels are emptier than others.
    smooth = generator.normal(size=(40, 16, 1, 1)) + 0.7 * generator.normal(size=(40, 16, 3, 3))
    array = np.round(2 * smooth).astype(np.float32)
    array[np.abs(smooth) < np.quantile(np.abs(smooth), zeros)] = 0
    quick = size_in_bytes(array)
    monkeypatch.setattr(contents, "_TOP", array.size)
    monkeypatch.setattr(contents, "_TRIAL", array.size)
    assert quick <= 1.003 * size_in_bytes(array)


def example() -> Any:
    """A pruned and quantized kernel, made of integers alone."""
    place = np.arange(16 * 8 * 9)
    codes = (place * 2654435761 >> 7) % 11
    book = np.array([0, 0, 0, 0, 0, 0, 0, -24, -8, 8, 24], np.float32) / 64
    return book[codes].reshape(16, 8, 3, 3)


def test_the_bytes_are_the_same_everywhere() -> None:
    encoder = Encoder()
    for array in (example(), example().astype(np.int8).reshape(128, 9), np.arange(50.0)):
        encode_tensor(encoder, array)
    assert hashlib.sha256(encoder.finish()).hexdigest()[:16] == "ca0c9195824f02f1"
