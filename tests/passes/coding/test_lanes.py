from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import StorageError
from passes.coding.lanes import Symbols, pop, push
from passes.coding.rans import histogram, quantized


def geometric(count: int, p: float) -> Symbols:
    symbols = np.minimum(np.random.default_rng(0).geometric(p, count), 255).astype(np.uint8)
    symbols[:2] = 0, 9
    return symbols


@settings(max_examples=40)
@given(st.lists(st.integers(2, 900), min_size=1, max_size=7), st.integers(1, 300))
def test_lanes_are_shared_wherever_streams_end(counts: list[int], lanes: int) -> None:
    streams = [geometric(count, 0.1 + 0.1 * place) for place, count in enumerate(counts)]
    tables = [quantized(histogram(stream)) for stream in streams]
    states, words = push(streams, tables, lanes)
    assert len(states) == lanes
    for found, stream in zip(pop(states, words, tables, counts), streams, strict=True):
        assert (found == stream).all()


def test_blocks_of_looked_up_symbols_are_joined() -> None:
    streams = [geometric(40_000, 0.3), geometric(70_001, 0.7)]
    tables = [quantized(histogram(stream)) for stream in streams]
    for lanes in (1000, 1 << 15, 1 << 17):
        states, words = push(streams, tables, lanes)
        for found, stream in zip(
            pop(states, words, tables, [40_000, 70_001]), streams, strict=True
        ):
            assert (found == stream).all()


def test_states_and_words_that_nobody_made_are_refused() -> None:
    streams = [geometric(500, 0.3), geometric(300, 0.1)]
    tables = [quantized(histogram(stream)) for stream in streams]
    states, words = push(streams, tables, 7)
    sizes = [500, 300]
    other = states.copy()
    other[3] ^= 1 << 20
    for damaged in (
        (other, words),
        (states.copy(), words[:-1]),
        (states.copy(), np.append(words, np.uint16(5))),
        (states.copy(), words[::-1]),
    ):
        with pytest.raises(StorageError):
            pop(*damaged, tables, sizes)
    with pytest.raises(StorageError):
        pop(states.copy(), words, tables[::-1], sizes)
    with pytest.raises(StorageError):
        pop(states.copy(), words, tables, [501, 299])
