from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from energy_model.errors import ArgumentError, CompressionError, StorageError
from passes.coding import large
from passes.coding.codebook import find_codebook
from passes.coding.drafts import Draft, DraftReader
from passes.coding.large import decode_large, encode_large
from passes.coding.planes import draft_planes, read_planes
from passes.coding.positions import draft_positions, read_positions

# More than a second each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

DTYPES = ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]


def encoded(*arrays: Any) -> bytes:
    return encode_large(arrays).finish()


def decoded(data: bytes, dtype: Any, shape: tuple[int, ...]) -> Any:
    (array,) = decode_large(data, [(np.dtype(dtype), shape)])
    return array


def size_in_bytes(array: Any) -> int:
    data = encoded(array)
    back = decoded(data, array.dtype, array.shape)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    return len(data)


@settings(max_examples=50)
@given(st.data())
def test_any_tensor_comes_back(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.sampled_from([(), (0, 3), (1,), (300,), (9, 4, 3, 3)]))
    size_in_bytes(data.draw(hnp.arrays(dtype, shape)))


@settings(max_examples=20)
@given(
    st.sampled_from(["f2", "f4", "f8", "i1", "i4", "u2"]),
    st.sampled_from([0.001, 0.05, 0.3, 0.97, 1.0]),
    st.sampled_from([1, 2, 16, 256, 257, 10**6]),
    st.integers(0, 1000),
)
def test_sparse_tensors_with_few_levels_come_back(
    dtype: str, density: float, levels: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    book = (generator.normal(size=levels) * 100).astype(dtype)
    array = book[generator.integers(0, levels, 1500)]
    array[generator.random(1500) >= density] = book[0] if seed % 2 else 0
    size_in_bytes(array)


def test_tensors_are_coded_together() -> None:
    generator = np.random.default_rng(9)
    few = generator.choice([0, 0, 0, -1, 1, 3], 4000).astype(np.float32).reshape(40, 100)
    arrays = [
        few,
        generator.normal(size=3000).astype(np.float32),
        np.zeros((0, 7), np.int64),
        few.astype(np.int8),
        np.where(generator.random(5000) < 0.001, 2.5, 0),
        np.where(generator.random(5000) < 0.5, generator.normal(size=5000), 0).astype(np.float16),
        generator.random(999) < 0.5,
    ]
    data = encoded(*arrays)
    assert len(data) < sum(len(encoded(array)) for array in arrays) - 20
    for array, back in zip(
        arrays, decode_large(data, [(a.dtype, a.shape) for a in arrays]), strict=True
    ):
        assert (array.dtype, array.shape, array.tobytes()) == (
            back.dtype,
            back.shape,
            back.tobytes(),
        )
    with pytest.raises(StorageError):
        decode_large(data, [(array.dtype, array.shape) for array in arrays[:-1]])


@pytest.mark.parametrize("density", [0.0, 0.002, 0.03, 0.1, 0.6, 1.0])
def test_drafts_know_their_size(density: float) -> None:
    generator = np.random.default_rng(10)
    inside = generator.random(60_000) < density
    values = generator.choice([-2, -1, 1, 5], 60_000).astype(np.float32)
    for array in (np.where(inside, values, 0), np.where(inside, generator.normal(size=60_000), 0)):
        draft = large._draft_chunk(np.ascontiguousarray(array).view(f"u{array.itemsize}"), "f")
        assert abs(draft.bits - 8 * draft.finish().size) <= 0.01 * draft.bits + 400


def test_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "CHUNK", 1000)
    generator = np.random.default_rng(0)
    array = generator.normal(size=(7, 500)).astype(np.float32)
    array[2] = 0
    array[3] = np.sign(array[3])
    size_in_bytes(array)


def entropy(array: Any) -> float:
    _, counts = np.unique(array, return_counts=True)
    return -float((counts * np.log2(counts / array.size)).sum())


@pytest.mark.parametrize("density", [0.003, 0.01, 0.1, 0.5])
def test_independent_masks_cost_their_entropy(density: float) -> None:
    array = (np.random.default_rng(1).random(1 << 20) < density).astype(np.float32)
    assert 8 * size_in_bytes(array) < 1.02 * entropy(array) + 256


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_codes_cost_their_entropy(levels: int, density: float) -> None:
    generator = np.random.default_rng(2)
    book = np.sort(generator.normal(size=levels)).astype(np.float32)
    size = 1 << 20
    array = np.where(generator.random(size) < density, book[generator.integers(0, levels, size)], 0)
    assert 8 * size_in_bytes(array) < 1.02 * entropy(array) + 32 * levels


def test_zero_comes_on_top_of_a_full_codebook() -> None:
    book = np.random.default_rng(7).normal(size=256).astype(np.float32)
    array = np.zeros(40_000, np.float32)
    array[::4] = np.tile(book, 40)[:10_000]
    assert size_in_bytes(array) < 10_000 + 4 * 256 + 300


def test_floats_cost_less_than_they_take() -> None:
    generator = np.random.default_rng(3)
    array = generator.normal(size=200_000).astype(np.float32)
    assert size_in_bytes(array) < 0.86 * array.nbytes
    assert size_in_bytes(np.where(generator.random(array.size) < 0.1, array, np.float32(0))) < (
        0.1 * 0.86 * array.nbytes + array.size * 0.47 / 8 * 1.02
    )
    halves = array.astype(np.float16).astype(np.float32)
    assert size_in_bytes(halves) < 0.5 * array.nbytes


def test_signed_integers_are_folded() -> None:
    array = np.random.default_rng(4).integers(-100_000, 100_000, 20_000).astype(np.int32)
    assert size_in_bytes(array) < 0.58 * array.nbytes


def test_a_huge_constant_is_tiny() -> None:
    assert size_in_bytes(np.full(9_000_000, -0.0, np.float16)) < 60


@settings(max_examples=20)
@given(st.sets(st.integers(0, 4999), max_size=800), st.integers(0, 3))
def test_positions_come_back(chosen: set[int], power: int) -> None:
    positions = np.array(sorted(chosen), np.int64) * 10**power
    size = 5000 * 10**power
    assert come_back(positions, size, size).tolist() == positions.tolist()


def come_back(positions: Any, size: int, read_as: int) -> Any:
    reader = DraftReader(draft_positions(positions, size).finish().finish())
    count, later = read_positions(reader, read_as)
    assert count == len(positions)
    reader.decode()
    return later()


@pytest.mark.parametrize("step", [400, 30])
def test_positions_beyond_the_end_are_refused(step: int) -> None:
    positions = np.arange(3, 1000, step)
    assert come_back(positions, 1000, 1000).tolist() == positions.tolist()
    with pytest.raises(StorageError):
        come_back(positions, 1000, int(positions[-1]))


def test_gaps_whose_low_bits_are_too_few_or_too_many_are_refused() -> None:
    for low in (b"", bytes(3), bytes(5)):
        draft = Draft()
        for number in (4, 0):
            draft.number(number)
        # Four gaps of 32 to 63: three of the six bits are in the class.
        draft.symbols(np.array([24, 25, 26, 31], np.uint8))
        draft.block(low)
        reader = DraftReader(draft.finish().finish())
        _, later = read_positions(reader, 1000)
        reader.decode()
        with pytest.raises(StorageError):
            later()


@given(st.sampled_from(["f", "i", "u"]), hnp.arrays("u2", 9), hnp.arrays("u8", 9))
def test_planes_come_back(kind: str, short: Any, long: Any) -> None:
    for bits in (short, long):
        out = np.empty_like(bits)
        reader = DraftReader(draft_planes(bits, kind).finish().finish())
        fill = read_planes(reader, np.dtype(f"{kind}{bits.itemsize}"), len(bits))
        reader.decode()
        fill(out)
        assert (out == bits).all()


def test_codebooks_are_found_exactly() -> None:
    generator = np.random.default_rng(5)
    for levels in (1, 2, 255, 256):
        book = np.unique(generator.integers(0, 2**32, 2 * levels).astype(np.uint32))[:levels]
        bits = book[generator.integers(0, levels, 50_000)]
        bits[:levels] = book
        found = find_codebook(bits)
        assert found is not None
        assert found[0].tolist() == book.tolist()
        assert (found[0][found[1]] == bits).all()
    assert find_codebook(np.arange(257, dtype=np.uint32)) is None


def test_values_that_a_sample_misses_are_found() -> None:
    bits = np.zeros(1_000_003, np.uint32)
    bits[[17, 999, 70_001]] = 5, 6, 7
    found = find_codebook(bits)
    assert found is not None
    assert found[0].tolist() == [0, 5, 6, 7]
    bits[1001:1400] = np.arange(1000, 1399)
    assert find_codebook(bits) is None


def test_levels_without_a_perfect_table_are_searched() -> None:
    # All differ in the lowest bits only: of two bytes, 2^16 slots always do; of more, few factors.
    bits = (np.arange(256, dtype=np.uint64) << np.uint64(55)) | np.uint64(1)
    found = find_codebook(np.tile(bits, 40))
    assert found is not None
    assert (found[0][found[1]] == np.tile(bits, 40)).all()


def test_damage_is_noticed() -> None:
    array = np.random.default_rng(6).integers(0, 5, 3000).astype(np.float32)
    data = encoded(array)
    for length in range(0, len(data), 5):
        with pytest.raises(StorageError):
            decoded(data[:length], np.float32, array.shape)
    with pytest.raises(StorageError):
        decoded(data + b"\0", np.float32, array.shape)


@settings(max_examples=100)
@given(st.binary(max_size=80), st.sampled_from(DTYPES), st.integers(0, 40), st.randoms())
def test_bytes_gone_bad_are_a_tensor_or_an_error(
    noise: bytes, dtype: str, place: int, random: Any
) -> None:
    good = bytearray(encoded(np.arange(60).astype(dtype) % 7))
    good[place % len(good)] ^= 1 << random.randrange(8)
    for data in (noise, bytes(good)):
        try:
            array = decoded(data, dtype, (60,))
        except CompressionError:
            continue
        assert array.shape == (60,)


def test_other_types_are_refused() -> None:
    for call in (lambda: encoded(np.zeros(3, "c8")), lambda: decoded(b"\0", "c8", (3,))):
        with pytest.raises(ArgumentError, match="cannot be coded"):
            call()


def test_the_bytes_are_the_same_everywhere() -> None:
    place = np.arange(40_000)
    codes = (place * 2654435761 >> 9) % 19
    book = np.array([0] * 15 + [-24, -8, 8, 24], np.float32) / 64
    dense = ((place * 40503) % 65536).astype(np.uint16).view(np.float16)
    data = encoded(book[codes], dense)
    assert hashlib.sha256(data).hexdigest()[:16] == "6c93314feb7b5ddc"
    assert math.prod(decoded(encoded(dense), np.float16, (40_000,)).shape) == 40_000
