"""Start distributions: the published counts, and sums that are the budget to the unit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, InfeasibleBudget
from passes.dynamic.start import SparseShape, erdos_renyi, uniform, uniform_exact

LENET = [(300, 784), (100, 300), (10, 100)]
LENET_BATCH_NORM = 2 * (300 + 100 + 10)
WRN_DENSE = 432 + 10_752 + 3_616 + 1_290
RESNET_DENSE = 63_528 + 2_768_896


def sites_of(shapes, **options):
    return [SparseShape(str(i), tuple(shape), **options) for i, shape in enumerate(shapes)]


def wrn_28_2():
    """The 3 x 3 convolutions inside the blocks, four in each of three stages."""
    shapes, inputs = [], 16
    for outputs in (32, 64, 128):
        for _ in range(4):
            shapes += [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]
            inputs = outputs
    return sites_of(shapes)


def resnet_50():
    """The convolutions of the bottlenecks without the shortcuts, and the classifier."""
    shapes, inputs = [], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            inputs = 4 * width
    return sites_of([*shapes, (1000, 2048)])


def parameters(sites):
    return sum(site.parameters for site in sites)


def active(sites, counts):
    return sum(count * site.block for site, count in zip(sites, counts, strict=True))


def test_sizes_of_the_published_networks():
    assert parameters(sites_of(LENET)) == 266_200
    assert parameters(sites_of(LENET)) + LENET_BATCH_NORM == 267_020
    assert len(wrn_28_2()) == 24
    assert parameters(wrn_28_2()) == 1_451_520
    assert parameters(wrn_28_2()) + WRN_DENSE == 1_467_610
    assert len(resnet_50()) == 49
    assert parameters(resnet_50()) == 22_724_608
    assert parameters(resnet_50()) + RESNET_DENSE == 25_557_032


@pytest.mark.parametrize(
    ("sparsity", "sparse", "learnable"),
    [
        (0.5, 725_760, 741_850),
        (0.6, 580_597, 596_687),
        (0.7, 435_442, 451_532),
        (0.8, 290_294, 306_384),
        (0.9, 145_139, 161_229),
    ],
)
def test_golden_counts_of_wrn_28_2(sparsity, sparse, learnable):
    counts = uniform(wrn_28_2(), 1 - sparsity)
    assert sum(counts) == sparse
    assert sum(counts) + WRN_DENSE == learnable


@pytest.mark.parametrize(
    ("sparsity", "sparse", "learnable"),
    [(0.8, 4_544_896, 7_377_320), (0.9, 2_272_437, 5_104_861)],
)
def test_golden_counts_of_resnet_50(sparsity, sparse, learnable):
    counts = uniform(resnet_50(), 1 - sparsity)
    assert sum(counts) == sparse
    assert sum(counts) + RESNET_DENSE == learnable


def test_counts_of_lenet_300_100():
    assert uniform(sites_of(LENET), 1 - 0.98) == (4704, 600, 20)
    assert uniform(sites_of(LENET), 1 - 0.99) == (2352, 300, 10)
    assert uniform(sites_of(LENET), 1.0) == (235_200, 30_000, 1000)


def test_the_guard_repairs_floats_and_no_more():
    assert uniform(sites_of([(10, 10)]), 1 - 0.9) == (10,)  # 0.0999... of 100
    assert uniform(sites_of([(10, 10)]), 0.5589) == (55,)
    assert uniform(sites_of([(10, 10)]), 0.5591) == (56,)
    assert uniform(sites_of([(10, 10)]), 1e-6) == (1,)


def test_single_densities():
    sites = [SparseShape("conv", (4, 4, 3, 3)), SparseShape("fc", (10, 10))]
    assert uniform(sites, {"conv": 0.25, "fc": 0.5}) == (36, 50)
    with pytest.raises(ArgumentError, match="fc"):
        uniform(sites, {"conv": 0.25})


@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan, True, "0.1"])
def test_densities_that_are_none(density):
    with pytest.raises(ArgumentError, match="above 0"):
        uniform(sites_of(LENET), density)


def test_exact_uniform_counts():
    assert uniform_exact(sites_of(LENET), 5324) == (4704, 600, 20)
    counts = uniform_exact(sites_of(LENET), 5323)  # ideals 4703.12, 599.89, 19.996
    assert counts == (4703, 600, 20)
    total = math.floor(22_724_608 * 0.1)
    counts = uniform_exact(resnet_50(), total)
    assert sum(counts) == total
    assert all(abs(c - 0.1 * s.cells) < 1 for c, s in zip(counts, resnet_50(), strict=True))


def test_erdos_renyi_of_lenet_by_hand():
    # e (n_in + n_out) with e = 5324 / (1084 + 400 + 110)
    ideals = [5324 / 1594 * ends for ends in (1084, 400, 110)]
    counts = erdos_renyi(sites_of(LENET), 5324)
    assert counts == (3621, 1336, 367)
    assert all(abs(c - ideal) < 1 for c, ideal in zip(counts, ideals, strict=True))
    assert erdos_renyi(sites_of(LENET), 5324, kernel=True) == counts


def test_what_would_be_more_than_dense_is_dense():
    counts = erdos_renyi(sites_of(LENET), 26_620)
    assert counts[2] == 1000
    rest = 26_620 - 1000
    assert counts[:2] == (round(rest * 1084 / 1484), round(rest * 400 / 1484))


def test_kernel_dimensions_count_in_erk_only():
    sites = sites_of([(64, 32, 3, 3), (64, 32, 1, 1)])
    # densities (64 + 32) / (64 * 32) are equal: cells in proportion to size
    assert erdos_renyi(sites, 2000) == (1800, 200)
    # densities (64 + 32 + 6) / (64 * 32 * 9) and (64 + 32 + 2) / (64 * 32)
    assert erdos_renyi(sites, 2000, kernel=True) == (1020, 980)


def test_groups_count_by_themselves():
    whole = [SparseShape("a", (64, 64, 1, 1)), SparseShape("b", (64, 32, 1, 1), groups=2)]
    # each of two groups has 32 outputs and 32 inputs: 2 * (32 + 32) against 64 + 64
    assert erdos_renyi(whole, 1000) == (500, 500)


def test_a_budget_of_one_each_and_of_all():
    sites = wrn_28_2()
    for law in (uniform_exact, erdos_renyi):
        assert law(sites, len(sites)) == (1,) * len(sites)
        assert law(sites, parameters(sites)) == tuple(site.cells for site in sites)
        with pytest.raises(InfeasibleBudget) as caught:
            law(sites, len(sites) - 1)
        assert (caught.value.asked, caught.value.tightest) == (23, 24)
        for total in (parameters(sites) + 1, -1, 0.5):
            with pytest.raises(ArgumentError, match="cannot be active"):
                law(sites, total)


SHAPES = st.lists(
    st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple), min_size=1, max_size=8
)
LAWS = [uniform_exact, erdos_renyi, lambda sites, total: erdos_renyi(sites, total, kernel=True)]


@settings(max_examples=60)
@given(SHAPES, st.data())
def test_sums_are_exact(shapes, data):
    sites = sites_of(shapes)
    total = data.draw(st.integers(len(sites), parameters(sites)))
    law = data.draw(st.sampled_from(LAWS))
    counts = law(sites, total)
    assert sum(counts) == total
    assert all(1 <= count <= site.cells for count, site in zip(counts, sites, strict=True))
    assert counts == law(sites, total)


@settings(max_examples=60)
@given(SHAPES, st.data())
def test_shares_follow_one_factor(shapes, data):
    """Of any two sites that are clipped neither way, cells are as their weights, up to rounding."""
    sites = sites_of(shapes)
    total = data.draw(st.integers(len(sites), parameters(sites)))
    counts = erdos_renyi(sites, total, kernel=True)
    weights = [sum(site.shape) for site in sites]
    low = max(((c - 1) / w for c, w in zip(counts, weights, strict=True) if c > 1), default=0)
    inner = [(c, w) for c, w, s in zip(counts, weights, sites, strict=True) if c < s.cells]
    high = min(((c + 1) / w for c, w in inner), default=math.inf)
    assert low <= high + 1e-9


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([1, 3, 9]), st.integers(1, 30)), min_size=1), st.data())
def test_blocks_fall_short_by_less_than_a_cell_with_room(pairs, data):
    sites = [SparseShape(str(i), (n, 1, 9), block=block) for i, (block, n) in enumerate(pairs)]
    total = data.draw(st.integers(sum(site.block for site in sites), parameters(sites)))
    counts = uniform_exact(sites, total)
    assert all(1 <= count <= site.cells for count, site in zip(counts, sites, strict=True))
    short = total - active(sites, counts)
    room = [s.block for s, count in zip(sites, counts, strict=True) if count < s.cells]
    assert 0 <= short < min(room, default=1)


def test_what_large_cells_leave_goes_to_sites_that_had_none():
    shapes = [("a", (100, 1, 9), 9), ("b", (2, 1, 9), 3), ("c", (1, 1, 1), 1)]
    sites = [SparseShape(name, shape, block=block) for name, shape, block in shapes]
    # Shares 90.1, 1.8 and 0.1: b gets a cell of 3, a then 9 cells, c is full, and 7 are left.
    assert uniform_exact(sites, 92) == (9, 3, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (4,)},
        {"shape": (4, 0)},
        {"shape": (4, 3), "block": 5},
        {"shape": (4, 3), "block": 0},
        {"shape": (4, 3), "groups": 3},
    ],
)
def test_shapes_that_are_none(options):
    with pytest.raises(ArgumentError, match=r"layer\.conv"):
        SparseShape("layer.conv", **options)
