from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.coding.cells import Layout
from passes.coding.codes import Contexts, code_codes
from passes.coding.range_coder import Decoder, Encoder, Meter


def cost(codes: np.ndarray, levels: tuple[int, int], contexts: Contexts) -> float:
    layout, flat = Layout.of(codes.shape), codes.reshape(-1)
    places = np.flatnonzero(flat).tolist()
    encoder, meter = Encoder(), Meter()
    for coder in (encoder, meter):
        code_codes(coder, flat.tolist(), places, layout, levels, contexts)
    read = [0] * flat.size
    code_codes(Decoder(encoder.finish()), read, places, layout, levels, contexts)
    assert read == flat.tolist()
    return meter.total


@settings(max_examples=60)
@given(
    st.sampled_from([(8,), (5, 7), (3, 2, 3, 3)]),
    st.tuples(st.integers(0, 5), st.integers(0, 150)).filter(any),
    st.sampled_from(list(Contexts)),
    st.integers(0, 9),
)
def test_codes_come_back(
    shape: tuple[int, ...], levels: tuple[int, int], contexts: Contexts, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, sum(levels) + 1, shape)
    assert cost(codes, levels, contexts) >= 0


def test_a_single_level_costs_nothing() -> None:
    assert cost(np.ones((4, 4), int), (0, 1), Contexts.NONE) == 0


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [60, 25, 10, 5]])
def test_independent_codes_cost_their_entropy(weights: list[int]) -> None:
    share = np.array(weights) / sum(weights)
    codes = np.random.default_rng(0).choice([1, 2, 3, 4], (50, 200), p=share)
    counts = np.bincount(codes.reshape(-1))[1:]
    entropy = -sum(c * math.log2(c / codes.size) for c in counts)
    assert cost(codes, (2, 2), Contexts.NONE) < 1.01 * entropy + 32


def test_neighbours_and_columns_help_where_they_say_something() -> None:
    generator = np.random.default_rng(1)
    alike = np.repeat(generator.integers(1, 5, (20, 10, 1, 1)), 9, axis=2).reshape(20, 10, 3, 3)
    alike = np.where(
        generator.random(alike.shape) < 0.1, generator.integers(1, 5, alike.shape), alike
    )
    assert cost(alike, (2, 2), Contexts.NEIGHBOURS) < 0.6 * cost(alike, (2, 2), Contexts.NONE)
    columns = np.tile(generator.integers(1, 5, 60), (30, 1))
    assert cost(columns, (2, 2), Contexts.COLUMN) < 0.3 * cost(columns, (2, 2), Contexts.NONE)
