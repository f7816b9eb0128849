from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, TrainingError
from passes.dynamic.drop import (
    below_threshold,
    flipped,
    smallest,
    smallest_by_sign,
    smallest_of_all,
)

MAGNITUDES = st.one_of(st.sampled_from([0.0, 0.0, 0.1, 0.2, 0.2, 5.0]), st.floats(0, 10, width=32))
CELLS = st.tuples(MAGNITUDES, st.booleans(), st.integers(0, 3))


def tensors(cells):
    """Magnitudes, mask and units of one site."""
    magnitudes = torch.tensor([c[0] for c in cells])
    mask = torch.tensor([c[1] for c in cells], dtype=torch.bool)
    return magnitudes, mask, torch.tensor([c[2] for c in cells], dtype=torch.int64)


SITES = st.lists(
    st.tuples(
        st.lists(CELLS, max_size=12).map(tensors), st.integers(0, 4), st.sampled_from([1, 3, 9])
    ),
    max_size=4,
)


def in_order(magnitudes, masks, count, floors, blocks, units):
    """One cell after the other from a full sort, while its site, unit and the room allow it."""
    cells = sorted(
        (float(m[j]), i, j)
        for i, (m, mask) in enumerate(zip(magnitudes, masks, strict=True))
        for j in mask.nonzero().flatten().tolist()
    )
    left = [int(mask.sum()) for mask in masks]
    alive = [
        {} if u is None else {k: int((u[mask] == k).sum()) for k in u.unique().tolist()}
        for u, mask in zip(units, masks, strict=True)
    ]
    dropped = [torch.zeros_like(mask) for mask in masks]
    for _, i, j in cells:
        unit = None if units[i] is None else int(units[i][j])
        if left[i] > floors[i] and blocks[i] <= count and (unit is None or alive[i][unit] > 1):
            dropped[i][j] = True
            left[i] -= 1
            count -= blocks[i]
            if unit is not None:
                alive[i][unit] -= 1
    return dropped


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@settings(max_examples=100)
@given(sites=SITES, count=st.integers(0, 60), guarded=st.booleans(), sized=st.booleans())
def test_smallest_of_all_is_that_of_a_full_sort(sites, count, guarded, sized):
    magnitudes, masks, all_units = ([s[0][i] for s in sites] for i in range(3))
    floors = [s[1] for s in sites]
    blocks = [s[2] if sized else 1 for s in sites]
    units = [u if guarded else None for u in all_units]
    found = smallest_of_all(
        magnitudes, masks, count, floors, blocks=blocks if sized else None, units=units
    )
    assert same(found, in_order(magnitudes, masks, count, floors, blocks, units))


@settings(max_examples=20)
@given(sites=SITES, count=st.integers(1, 8))
def test_no_other_choice_of_as_many_cells_is_smaller(sites, count):
    magnitudes, masks, units = ([s[0][i][:6] for s in sites[:2]] for i in range(3))
    floors = [s[1] for s in sites[:2]]
    found = smallest_of_all(magnitudes, masks, count, floors, units=units)
    active = [(i, j) for i, m in enumerate(masks) for j in m.nonzero().flatten().tolist()]

    def allowed(choice):
        for i, mask in enumerate(masks):
            left = mask.clone()
            left[[j for site, j in choice if site == i]] = False
            if int(left.sum()) < min(floors[i], int(mask.sum())):
                return False
            if set(units[i][left].tolist()) != set(units[i][mask].tolist()):
                return False
        return True

    dropped = sum(int(f.sum()) for f in found)
    assert dropped <= count
    total = sum(float(m[f].double().sum()) for m, f in zip(magnitudes, found, strict=True))
    for size in range(dropped, count + 1):
        for choice in itertools.combinations(active, size):
            if allowed(choice):
                assert size == dropped  # no more may go
                assert sum(float(magnitudes[i][j]) for i, j in choice) >= total - 1e-6


@settings(max_examples=50)
@given(sites=SITES, count=st.integers(0, 200))
def test_never_more_parameters_than_asked_and_less_than_a_cell_missing(sites, count):
    magnitudes, masks, _ = ([s[0][i] for s in sites] for i in range(3))
    floors, blocks = [s[1] for s in sites], [s[2] for s in sites]
    found = smallest_of_all(magnitudes, masks, count, floors, blocks=blocks)
    dropped = [int(f.sum()) for f in found]
    missing = count - sum(d * b for d, b in zip(dropped, blocks, strict=True))
    may_go = [int(m.sum()) - d > f for m, d, f in zip(masks, dropped, floors, strict=True)]
    assert missing >= 0
    assert all(missing < b for b, more in zip(blocks, may_go, strict=True) if more)


def random_site(generator, cells=400, kinds=40):
    magnitudes = torch.randint(0, kinds, (cells,), generator=generator) / 7
    return magnitudes, torch.rand(cells, generator=generator) < 0.4


@pytest.mark.spread(3)
@pytest.mark.parametrize("seed", range(10))
def test_larger_cases_with_ties_agree_with_a_full_sort(seed):
    generator = torch.Generator().manual_seed(seed)
    sites = [random_site(generator, 30 + 150 * i, kinds=5 + 20 * seed) for i in range(4)]
    magnitudes, masks = map(list, zip(*sites, strict=True))
    active = sum(int(m.sum()) for m in masks)
    counts = (0, 1, active // 3, active - 5, active + 5)
    for count, blocks in itertools.product(counts, ([1, 1, 1, 1], [9, 1, 3, 49])):
        none = [None] * 4
        expected = in_order(magnitudes, masks, count, [1, 9, 50, 0], blocks, none)
        found = smallest_of_all(magnitudes, masks, count, [1, 9, 50, 0], blocks=blocks)
        assert same(found, expected)
    one = smallest(magnitudes[3], masks[3], 40)
    assert same([one], in_order(magnitudes[3:], masks[3:], 40, [0], [1], [None]))


def test_all_equal_weights_are_dropped_by_site_and_index():
    magnitudes = [torch.ones(4), torch.ones(5)]
    masks = [torch.tensor([1, 0, 1, 1]) > 0, torch.ones(5) > 0]
    found = smallest_of_all(magnitudes, masks, 4)
    assert found[0].tolist() == [True, False, True, False]  # one stays by default
    assert found[1].tolist() == [True, True, False, False, False]
    assert sum(int(f.sum()) for f in smallest_of_all(magnitudes, masks, 99)) == 6
    assert sum(int(f.sum()) for f in smallest_of_all(magnitudes, masks, 99, [0, 0])) == 8
    assert smallest_of_all([], [], 3) == []


def test_a_floor_of_one_site_lets_the_others_give_more():
    magnitudes = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])]
    masks = [torch.ones(3) > 0] * 2
    found = smallest_of_all(magnitudes, masks, 3, [2, 1])
    assert [f.tolist() for f in found] == [[True, False, False], [True, True, False]]


def test_nothing_is_changed_and_half_precision_is_read_exactly():
    magnitudes, mask = torch.tensor([0.3, 0.1, 0.2], dtype=torch.bfloat16), torch.ones(3) > 0
    before = magnitudes.clone()
    units = torch.tensor([0, 1, 1])
    assert smallest(magnitudes, mask, 9, units).tolist() == [False, True, False]
    assert smallest_of_all([magnitudes], [mask], 1)[0].tolist() == [False, True, False]
    assert below_threshold([magnitudes], [mask], 0.25)[0].tolist() == [False, True, True]
    assert torch.equal(magnitudes, before) and mask.all()


def test_every_unit_keeps_its_largest_of_equal_ones_the_last():
    magnitudes = torch.tensor([1.0, 5.0, 5.0, 0.5, 2.0, 9.0])
    mask = torch.tensor([1, 1, 1, 1, 1, 0]) > 0
    units = torch.tensor([0, 0, 0, 1, 2, 2])
    assert smallest(magnitudes, mask, 9, units).nonzero().flatten().tolist() == [0, 1]
    assert smallest(magnitudes, mask, 1, units).nonzero().flatten().tolist() == [0]
    assert int(smallest(magnitudes, mask, 9).sum()) == 5
    assert not smallest(magnitudes, torch.zeros(6) > 0, 9, units).any()


@settings(max_examples=50)
@given(
    sites=st.lists(st.lists(CELLS, max_size=12).map(tensors), max_size=4),
    threshold=st.sampled_from([0.0, 0.1, 0.15, 0.2, 6.0, float("inf")]),
    keep=st.integers(0, 4),
)
def test_below_threshold_is_strict_and_keeps_the_largest(sites, threshold, keep):
    magnitudes, masks = [s[0] for s in sites], [s[1] for s in sites]
    found = below_threshold(magnitudes, masks, threshold, keep)
    for dropped, magnitude, mask in zip(found, magnitudes, masks, strict=True):
        low = mask & (magnitude < threshold)
        assert not (dropped & ~low).any()
        kept = mask & ~dropped
        assert int(kept.sum()) >= min(keep, int(mask.sum()))
        if not torch.equal(dropped, low):
            most = int(mask.sum()) - keep
            expected = in_order([magnitude], [mask], most, [0], [1], [None])
            assert int(kept.sum()) == min(keep, int(mask.sum()))
            assert torch.equal(dropped, expected[0])


def test_a_tensor_below_the_threshold_keeps_its_largest_and_not_its_first():
    magnitudes, mask = [torch.tensor([0.1, 0.3, 0.3, 0.2])], [torch.ones(4) > 0]
    assert below_threshold(magnitudes, mask, 1.0)[0].tolist() == [True, True, False, True]
    assert below_threshold(magnitudes, mask, 0.3)[0].tolist() == [True, False, False, True]
    assert below_threshold(magnitudes, mask, 1.0, keep=0)[0].all()


def test_equal_fractions_of_both_signs():
    values = torch.tensor([-4.0, -3, -2, -1, 0.5, 0.25, 1, 2, 3, 4, 5, 6, -0.1, 0.01])
    mask = torch.ones(14) > 0
    mask[-2:] = False
    # 8 positive and 4 negative; a quarter of each, nearest to zero.
    found = smallest_by_sign(values, mask, 0.25)
    assert found.nonzero().flatten().tolist() == [3, 4, 5]
    assert smallest_by_sign(values, mask, 1.0).equal(mask)
    assert not smallest_by_sign(values, mask, 0.0).any()


def test_by_sign_rounds_halves_to_even_and_takes_zeros_first():
    ones = torch.cat([torch.ones(5), -torch.ones(7)])
    found = smallest_by_sign(ones, torch.ones(12) > 0, 0.5)  # 2.5 and 3.5
    assert found.nonzero().flatten().tolist() == [0, 1, 5, 6, 7, 8]
    values = torch.tensor([0.1, -0.0, -0.1, 0.0, 0.2])
    found = smallest_by_sign(values, torch.ones(5) > 0, 0.5)
    assert found.tolist() == [False, True, False, True, False]


@settings(max_examples=30)
@given(
    cells=st.lists(st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.5]), st.booleans())),
    fraction=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]),
)
def test_by_sign_is_that_of_two_sorts(cells, fraction):
    values = torch.tensor([c[0] for c in cells])
    mask = torch.tensor([c[1] for c in cells], dtype=torch.bool)
    found = smallest_by_sign(values, mask, fraction)
    for side in (mask & (values >= 0), mask & (values < 0)):
        order = sorted(side.nonzero().flatten().tolist(), key=lambda i: (abs(values[i]), i))
        expected = sorted(order[: round(fraction * len(order))])
        assert (found & side).nonzero().flatten().tolist() == expected
    assert not (found & ~mask).any()


def test_flipped_are_the_active_cells_across_zero():
    values = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, -0.0, -1.0])
    signs = torch.tensor([1, 1, -1, -1, 1, -1, 1], dtype=torch.int8)
    mask = torch.tensor([1, 1, 1, 1, 1, 1, 0]) > 0
    expected = [False, True, True, False, False, False, False]
    assert flipped(values, signs, mask).tolist() == expected
    assert flipped(values, signs.float(), mask).tolist() == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_without_an_order_are_refused_where_they_count(bad):
    values, mask = torch.tensor([1.0, bad, 2.0]), torch.ones(3) > 0
    signs, other = torch.ones(3), torch.tensor([1, 0, 1]) > 0
    rules = [
        lambda m: below_threshold([values], [m], 1.5),
        lambda m: smallest(values, m, 1),
        lambda m: smallest(values, m, 1, torch.zeros(3, dtype=torch.int64)),
        lambda m: smallest_of_all([values], [m], 1),
        lambda m: smallest_by_sign(values, m, 0.5),
        lambda m: flipped(values, signs, m),
    ]
    for rule in rules:
        with pytest.raises(TrainingError, match="NaN or infinite"):
            rule(mask)
        rule(other)  # what is not active has no say
    with pytest.raises(TrainingError, match="fc2"):
        smallest_of_all([signs, values], [mask, mask], 1, names=["fc1", "fc2"])
    with pytest.raises(TrainingError, match="site 1"):
        below_threshold([signs, values], [mask, mask], 1)


def test_arguments_that_do_not_fit_are_refused():
    values, mask = torch.ones(3), torch.ones(3) > 0
    calls = [
        lambda: smallest(values, mask, -1),
        lambda: smallest(values, mask.float(), 1),
        lambda: smallest(values[:2], mask, 1),
        lambda: smallest(values, mask, 1, torch.zeros(3)),
        lambda: smallest(values, mask, 1, torch.zeros(2, dtype=torch.int64)),
        lambda: smallest(values, mask, 1, torch.tensor([0, -1, 0])),
        lambda: smallest_of_all([values], [mask, mask], 1),
        lambda: smallest_of_all([values], [mask], 1, [1, 1]),
        lambda: smallest_of_all([values], [mask], 1, [-1]),
        lambda: smallest_of_all([values], [mask], 1, blocks=[0]),
        lambda: smallest_of_all([values], [mask], 1, units=[None, None]),
        lambda: below_threshold([values], [mask], float("nan")),
        lambda: below_threshold([values], [mask], 1.0, keep=-1),
        lambda: smallest_by_sign(values, mask, 1.1),
        lambda: smallest_by_sign(values, mask, float("nan")),
        lambda: flipped(values, torch.ones(2), mask),
    ]
    for call in calls:
        with pytest.raises(ArgumentError):
            call()
