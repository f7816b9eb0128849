from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.coding.cells import Layout
from passes.coding.masks import Choice, Lines, Mask, Way, choose, code_mask
from passes.coding.range_coder import Decoder, Encoder, Meter

SHAPES = [(1,), (7,), (12, 1), (1, 30), (9, 16), (4, 3, 3, 3), (5, 4, 5), (3, 2, 2, 2, 2), (64,)]


def written(mask: Mask, layout: Layout, choice: Choice | None = None) -> bytes:
    encoder, meter = Encoder(), Meter()
    choice = choice or choose(mask, layout)
    for coder in (encoder, meter):
        given_mask = mask.copy()
        code_mask(coder, given_mask, layout, choice)
        assert (given_mask == mask).all()
    data = encoder.finish()
    assert 8 * len(data) < meter.total + 8.01
    return data


def read(data: bytes, layout: Layout) -> Mask:
    mask = np.zeros((layout.rows, layout.columns), np.bool_)
    code_mask(Decoder(data), mask, layout, Choice())
    return mask


def entropy(size: int, count: int) -> float:
    if count in (0, size):
        return 0.0
    p = count / size
    return -size * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_layouts_follow_shapes() -> None:
    assert Layout.of((50, 20, 5, 5)) == Layout(50, 20, 25, 5)
    assert Layout.of((500, 800)) == Layout(500, 800, 1, 1)
    assert Layout.of((8,)) == Layout(1, 8)
    assert Layout.of(()) == Layout(1, 1)
    assert Layout.of((4, 3, 7)) == Layout(4, 3, 7, 7)


@settings(max_examples=60)
@given(st.sampled_from(SHAPES), st.sampled_from([0.0, 0.03, 0.3, 0.9, 1.0]), st.integers(0, 99))
def test_masks_come_back(shape: tuple[int, ...], density: float, seed: int) -> None:
    layout = Layout.of(shape)
    generator = np.random.default_rng(seed)
    mask = generator.random((layout.rows, layout.columns)) < density
    assert (read(written(mask, layout), layout) == mask).all()


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("rows", [Lines.UNKNOWN, Lines.LISTED])
@pytest.mark.parametrize("columns", [Lines.UNKNOWN, Lines.LISTED])
@pytest.mark.parametrize("shape", [(7, 36), (6, 4, 3, 3)])
def test_every_way_comes_back(
    way: Way, rows: Lines, columns: Lines, shape: tuple[int, ...]
) -> None:
    layout = Layout.of(shape)
    mask = np.random.default_rng(3).random((layout.rows, layout.columns)) < 0.1
    mask[2] = False
    mask[:, 9:18] = False
    tile = 2 if way is Way.KERNELS and layout.taps == 1 else 0
    data = written(mask, layout, Choice(way, rows, columns, tile))
    assert (read(data, layout) == mask).all()


@pytest.mark.parametrize(("way", "tile"), [(Way.LINES, 0), (Way.KERNELS, 1)])
def test_that_no_row_is_empty_makes_masks_cheaper(way: Way, tile: int) -> None:
    layout = Layout(200, 4)
    mask = np.zeros((200, 4), np.bool_)
    mask[np.arange(200), np.random.default_rng(4).integers(0, 4, 200)] = True
    costs = []
    for rows in (Lines.NONE_EMPTY, Lines.UNKNOWN):
        data = written(mask, layout, Choice(way, rows, Lines.UNKNOWN, tile))
        assert (read(data, layout) == mask).all()
        costs.append(len(data))
    assert costs[0] < 0.95 * costs[1]


@pytest.mark.spread(1)
@pytest.mark.parametrize("density", [0.003, 0.01, 0.1, 0.5])
def test_independent_masks_cost_their_entropy(density: float) -> None:
    layout = Layout(61, 209)
    mask = np.random.default_rng(5).random((61, 209)) < density
    bits = 8 * len(written(mask, layout))
    assert bits <= 1.02 * entropy(mask.size, int(mask.sum())) + 32


@pytest.mark.slow
def test_masks_with_empty_rows_and_columns_cost_less() -> None:
    generator = np.random.default_rng(6)
    mask = np.zeros((500, 800), np.bool_)
    rows, columns = generator.permutation(500)[:60], generator.permutation(800)[:120]
    mask[np.ix_(rows, columns)] = generator.random((60, 120)) < 0.08
    bound = entropy(mask.size, int(mask.sum()))
    assert 8 * len(written(mask, Layout(500, 800))) < 0.75 * bound


def test_clustered_kernels_cost_less() -> None:
    generator = np.random.default_rng(7)
    kernels = np.zeros((30, 10, 5, 5), np.bool_)
    for out, into in np.argwhere(generator.random((30, 10)) < 0.3):
        y, x = generator.integers(0, 3, 2)
        kernels[out, into, y : y + 3, x : x + 3] = generator.random((3, 3)) < 0.8
    mask = kernels.reshape(30, -1)
    layout = Layout.of(kernels.shape)
    assert choose(mask, layout).way is Way.KERNELS
    bound = entropy(mask.size, int(mask.sum()))
    assert 8 * len(written(mask, layout)) < 0.7 * bound


def test_kernels_hidden_in_the_columns_of_a_matrix_are_found() -> None:
    generator = np.random.default_rng(8)
    channels = np.repeat(generator.random((30, 10)) < 0.1, 16, axis=1)
    mask = channels & (generator.random((30, 160)) < 0.6)
    choice = choose(mask, Layout(30, 160))
    assert choice.way is Way.KERNELS
    assert choice.tile > 0
    plain = Choice(Way.LINES, Lines.UNKNOWN, Lines.UNKNOWN)
    layout = Layout(30, 160)
    assert len(written(mask, layout)) < 0.9 * len(written(mask, layout, plain))


def cost(mask: Mask, layout: Layout, choice: Choice) -> int:
    meter = Meter()
    code_mask(meter, mask.copy(), layout, choice)
    return meter.units


@pytest.mark.spread(1)
@pytest.mark.parametrize("empty", [0, 3])
@pytest.mark.parametrize("density", [0.14, 0.6])
def test_what_is_not_metered_costs_hardly_more(density: float, empty: int) -> None:
    generator = np.random.default_rng(9)
    layout = Layout(40, 20, 9, 3)
    channels = generator.random((40, 20, 1)) * 2 * density
    mask = (generator.random((40, 20, 9)) < channels).reshape(40, 180)
    mask[:empty] = False
    chosen = cost(mask, layout, choose(mask, layout))
    every = [Choice(way, rows, Lines.UNKNOWN) for way in Way for rows in Lines if empty or rows < 2]
    if empty:
        every = [choice for choice in every if choice.rows is not Lines.NONE_EMPTY]
    assert chosen <= 1.003 * min(cost(mask, layout, choice) for choice in every)


@pytest.mark.spread(1)
@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_a_single_nonzero_is_cheap(place: int) -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask.reshape(-1)[place] = True
    assert len(written(mask, Layout(100, 100))) <= 5


def test_regular_masks_are_cheap() -> None:
    mask = np.tile(np.arange(60) % 2 == 0, (50, 1))
    assert len(written(mask, Layout(50, 60))) < 60
    assert len(written(np.zeros((90, 100), np.bool_), Layout(90, 100))) <= 3
