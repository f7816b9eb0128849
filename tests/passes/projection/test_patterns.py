"""Patterns against every mask there is: the best of its kind, and exactly as many as asked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.projection.pattern_units import (
    GroupedColumns,
    Runs,
    SingleWeights,
    Tiles,
    tile_squares,
)
from passes.projection.patterns import (
    Blocks,
    ColumnGroups,
    KeptOfRun,
    describe,
    parse_pattern,
    rows_per_group,
)

seeds = st.integers(0, 2**32 - 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_squares(weight, mask):
    return float((weight[mask] ** 2).sum())


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ((4, 1), Blocks(4, 1)),
        ([2, 3], Blocks(2, 3)),
        ("column_groups", ColumnGroups()),
        ("column_groups:64", ColumnGroups(64)),
        ("2:4", KeptOfRun(2, 4)),
        ("1:16", KeptOfRun(1, 16)),
    ],
)
def test_names_of_patterns(value, pattern):
    assert parse_pattern(value) == pattern


@pytest.mark.parametrize(
    "value",
    [
        *("", "4:2", "4:4", "0:4", "2:", ":4", "-1:4", "2:4:8", "a:b", "²:4"),
        *("columns", "column_groups:0", "column_groups:", None, 4, {}),
        *((4,), (4, 0), (4, 1, 1), (4.0, 1), (True, 1)),
    ],
)
def test_what_is_no_pattern(value):
    assert parse_pattern(value) is None


@pytest.mark.parametrize(
    ("rows", "answer"),
    [(1, 1), (10, 10), (127, 127), (128, 64), (300, 150), (512, 256), (4096, 512), (131, 1)],
)
def test_rows_per_group(rows, answer):
    assert rows_per_group(rows) == answer


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (Blocks(4, 1), "4 x 1 do not divide 6 x 8"),
        (ColumnGroups(4), "groups of 4 rows do not divide 6 rows"),
        (ColumnGroups(5), "groups of 5 rows"),
        (KeptOfRun(1, 3), "runs of 3 weights do not divide rows of 8"),
    ],
)
def test_what_a_pattern_does_not_fit_stays_dense(pattern, told):
    layout = pattern.fit(6, 8)
    assert isinstance(layout, SingleWeights)
    assert told in layout.dense
    assert layout.forced == layout.units == 48
    assert describe(layout) == ""


def test_rows_without_divisors_make_no_groups():
    assert "131 rows cannot be divided into groups" in ColumnGroups().fit(131, 8).dense
    assert ColumnGroups().fit(1, 8) == GroupedColumns(1, 8, 1)
    assert ColumnGroups(1).fit(131, 8) == GroupedColumns(131, 8, 1)


def test_layouts_are_told():
    assert describe(Blocks(2, 4).fit(6, 8)) == "6 blocks of 2 x 4"
    assert describe(ColumnGroups(3).fit(6, 8)) == "2 groups of 3 rows choose among 8 columns"
    assert describe(KeptOfRun(2, 4).fit(6, 8)) == "2 of every 4 weights, or all"


LAYOUTS = [
    SingleWeights(4, 6),
    Tiles(4, 6, 2, 3),
    Tiles(4, 6, 1, 1),
    GroupedColumns(4, 6, 2),
    GroupedColumns(4, 6, 4),
    Runs(4, 6, 1, 3),
    Runs(4, 6, 2, 3),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_and_units_convert(layout):
    assert layout.weights_of(0) == 0
    assert layout.weights_of(layout.units) == layout.weights_of(layout.units + 3) == 24
    for count in range(layout.units + 1):
        assert layout.units_of(layout.weights_of(count)) == count
        if count:
            assert layout.units_of(layout.weights_of(count) - layout.weights_of(1) + 1) <= count
    for weights in range(1, 25):
        units = layout.units_of(weights)
        assert layout.weights_of(units - 1) < weights <= layout.weights_of(units)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (24,), (4, 6, 1, 1)])
def test_masks_hold_as_many_weights_as_their_units_and_are_nested(layout, shape):
    weight = normal(*shape)
    before = torch.zeros(shape, dtype=torch.bool)
    for count in range(layout.units + 1):
        mask = layout.mask(weight, count)
        assert mask.shape == weight.shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == layout.weights_of(count)
        assert not (before & ~mask).any()
        before = mask


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_tell_what_masks_keep(layout):
    weight = normal(4, 6)
    norms = layout.norms(weight).reshape(-1).abs().sort(descending=True).values
    if isinstance(layout, Runs):
        dropped = kept_squares(weight, ~layout.mask(weight, 1))
        assert float(norms[1] ** 2) == pytest.approx(dropped)
        assert norms[0] > norms[1]
        return
    for count in range(layout.units + 1):
        kept = kept_squares(weight, layout.mask(weight, count))
        assert kept == pytest.approx(float((norms[:count] ** 2).sum()))


def tile_masks(rows, cols, height, width, count):
    """Every mask of so many tiles."""
    places = list(itertools.product(range(rows // height), range(cols // width)))
    for chosen in itertools.combinations(places, count):
        mask = torch.zeros(rows, cols, dtype=torch.bool)
        for i, j in chosen:
            mask[i * height : (i + 1) * height, j * width : (j + 1) * width] = True
        yield mask


def column_masks(rows, cols, height, count):
    """Every mask that keeps so many columns in each group of rows."""
    choices = list(itertools.combinations(range(cols), count))
    for chosen in itertools.product(choices, repeat=rows // height):
        mask = torch.zeros(rows, cols, dtype=torch.bool)
        for group, columns in enumerate(chosen):
            mask[group * height : (group + 1) * height, list(columns)] = True
        yield mask


def run_masks(rows, cols, n, m):
    """Every mask that keeps `n` of every `m`."""
    choices = list(itertools.combinations(range(m), n))
    for chosen in itertools.product(choices, repeat=rows * cols // m):
        mask = torch.zeros(rows * cols // m, m, dtype=torch.bool)
        for run, places in enumerate(chosen):
            mask[run, list(places)] = True
        yield mask.view(rows, cols)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("height", "width"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_the_best_tiles_of_all(seed, height, width):
    layout, weight = Tiles(4, 4, height, width), normal(4, 4, seed=seed)
    for count in range(layout.units + 1):
        best = max(kept_squares(weight, m) for m in tile_masks(4, 4, height, width, count))
        assert kept_squares(weight, layout.mask(weight, count)) == pytest.approx(best)


@pytest.mark.spread(1)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("height", [1, 2, 4])
def test_the_best_columns_of_all(seed, height):
    layout, weight = GroupedColumns(4, 4, height), normal(4, 4, seed=seed)
    for count in range(5):
        best = max(kept_squares(weight, m) for m in column_masks(4, 4, height, count))
        assert kept_squares(weight, layout.mask(weight, count)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4)])
def test_the_best_of_every_run(seed, n, m):
    layout, weight = Runs(2, 4, n, m), normal(2, 4, seed=seed)
    best = max(kept_squares(weight, mask) for mask in run_masks(2, 4, n, m))
    mask = layout.mask(weight, 1)
    assert kept_squares(weight, mask) == pytest.approx(best)
    assert (mask.view(-1, m).sum(1) == n).all()


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.data())
def test_every_group_keeps_exactly_k_columns(seed, groups, height, cols, data):
    layout, weight = GroupedColumns(groups * height, cols, height), normal(groups * height, cols)
    weight = weight + normal(groups * height, cols, seed=seed)
    count = data.draw(st.integers(0, cols))
    parts = layout.mask(weight, count).view(groups, height, cols)
    assert (parts == parts[:, :1]).all()
    assert (parts[:, 0].sum(1) == count).all()
    norms = layout.norms(weight)
    assert (norms[:-1] >= norms[1:]).all()


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.integers(1, 6), st.integers(2, 6), st.data())
def test_every_run_keeps_exactly_n(seed, rows, runs, m, data):
    n = data.draw(st.integers(1, m - 1))
    layout, weight = Runs(rows, runs * m, n, m), normal(rows, runs * m, seed=seed).round()
    assert (layout.mask(weight, 1).view(-1, m).sum(1) == n).all()
    norms = layout.norms(weight)
    assert norms[0] > norms[1] or (norms == 0).all()


def test_ties_break_by_index():
    weight = torch.ones(4, 6)
    tiles = Tiles(4, 6, 2, 2).mask(weight, 2)
    assert tiles.nonzero().tolist() == [[i, j] for i in range(2) for j in range(4)]
    assert GroupedColumns(4, 6, 2).mask(weight, 2)[:, :2].all()
    assert Runs(4, 6, 1, 3).mask(weight, 1)[:, ::3].all()


def test_zeros_are_no_units():
    weight = torch.zeros(4, 6)
    assert not Tiles(4, 6, 2, 2).mask(weight, 6).any()
    assert (Runs(4, 6, 1, 3).norms(weight) == 0).all()
    assert not Runs(4, 6, 1, 3).mask(weight, 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (1, 3), (4, 6), (2, 2)])
def test_sums_of_squares_of_tiles(dtype, height, width, monkeypatch):
    weight = normal(8, 12).to(dtype)
    expected = weight.double().square().view(8 // height, height, 12 // width, width).sum((1, 3))
    whole = tile_squares(weight, height, width)
    np.testing.assert_allclose(whole, expected.numpy())
    monkeypatch.setattr("passes.projection.pattern_units._CHUNK", 5)
    np.testing.assert_allclose(tile_squares(weight, height, width), whole)


def test_weights_that_lie_otherwise_in_memory_are_cut_alike():
    weight = normal(8, 4, 3, 3)
    other = weight.to(memory_format=torch.channels_last)
    for layout in (Tiles(8, 36, 2, 3), GroupedColumns(8, 36, 4), Runs(8, 36, 2, 4)):
        assert torch.equal(layout.mask(weight, 1), layout.mask(other, 1))
