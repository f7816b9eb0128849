"""Whole rewiring events, put together from the pure parts: the parameter count never moves."""

from __future__ import annotations

import random

import pytest
import torch

from passes.dynamic.allocation import block_shares, shares, survivors
from passes.dynamic.controller import proportional
from passes.dynamic.drop import below_threshold, smallest_of_all
from passes.dynamic.grow import at_random, candidates, largest
from passes.dynamic.random_keys import key_of


def count(masks):
    return [int(mask.sum()) for mask in masks]


def in_parameters(cells, blocks):
    return sum(n * b for n, b in zip(cells, blocks, strict=True))


def grow_all(masks, dropped, added, event, *, scores=None):
    """New masks, and how many just-dropped cells came back per site."""
    result, returned = [], []
    for i, (mask, gone, n) in enumerate(zip(masks, dropped, added, strict=True)):
        found = candidates(mask, gone, n)
        if scores is None:
            grown = at_random(found.open, found.count, key_of(0, event, f"site{i}"))
        else:
            grown = largest(scores[i], found.open, found.count)
        grown = grown | found.certain
        assert int(grown.sum()) == n
        assert not (grown & mask & ~gone).any()
        if not found.returned:
            assert not (grown & mask).any()  # nothing that was active, just dropped or not
        result.append((mask & ~gone) | grown)
        returned.append(found.returned)
    return result, returned


def give_back(total, weights, free, gone):
    """Shares of free cells, and of the just-dropped ones where those are too few."""
    first = shares(total, weights, free)
    second = shares(total - sum(first), weights, gone)
    return [a + b for a, b in zip(first, second, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("by_gradient", [False, True])
def test_the_count_is_constant_over_200_events_of_random_drops_and_caps(by_gradient):
    generator, chance = torch.Generator().manual_seed(5), random.Random(5)
    sizes = [40, 7, 90, 3]
    masks = [torch.rand(n, generator=generator) < 0.5 for n in sizes]
    for mask in masks:
        mask[0] = True
    total, fallbacks = sum(count(masks)), 0
    for event in range(200):
        if event % 50 == 25:  # sometimes hardly a cell is free
            full = [torch.ones(n, dtype=torch.bool) for n in sizes]
            full[2][: event % 7] = False
            masks, total = full, sum(count(full))
        magnitudes = [torch.randint(0, 9, (n,), generator=generator) / 4 for n in sizes]
        wanted = chance.randint(0, total)
        gone = smallest_of_all(magnitudes, masks, wanted)
        assert sum(count(gone)) == min(wanted, total - len(sizes))
        kept = [a - b for a, b in zip(count(masks), count(gone), strict=True)]
        assert min(kept) >= 1
        weights = survivors(kept, count(gone), damping=chance.choice([0, 0.3, 1]))
        free = [n - a for n, a in zip(sizes, count(masks), strict=True)]
        added = give_back(sum(count(gone)), weights, free, count(gone))
        scores = [torch.randn(n, generator=generator) for n in sizes] if by_gradient else None
        masks, returned = grow_all(masks, gone, added, event, scores=scores)
        fallbacks += any(returned)
        assert sum(count(masks)) == total
        assert all(a <= n for a, n in zip(count(masks), sizes, strict=True))
    assert fallbacks > 3  # the case was met


def test_all_tensors_full_is_a_change_of_nothing_that_ends():
    masks = [torch.ones(n, dtype=torch.bool) for n in (30, 9)]
    gone = smallest_of_all([torch.rand(30), torch.rand(9)], masks, 10)
    kept = [30 - int(gone[0].sum()), 9 - int(gone[1].sum())]
    added = give_back(10, survivors(kept, count(gone)), [0, 0], count(gone))
    assert added == count(gone)
    after, returned = grow_all(masks, gone, added, 0)
    assert all(m.all() for m in after) and returned == count(gone)


def test_a_nearly_full_tensor_passes_its_inflow_on():
    masks = [torch.ones(1_000, dtype=torch.bool), torch.zeros(1_000, dtype=torch.bool)]
    masks[0][:10] = False
    masks[1][:100] = True
    magnitudes = [torch.full((1_000,), 5.0), torch.linspace(0, 1, 1_000)]
    gone = below_threshold(magnitudes, masks, 1.0)
    assert count(gone) == [0, 99]
    added = give_back(99, survivors([990, 1], [0, 99]), [10, 900], count(gone))
    assert added == [10, 89]
    after, returned = grow_all(masks, gone, added, 0)
    assert count(after) == [1_000, 90] and returned == [0, 0]


def test_kernel_slices_of_different_sizes_conserve_parameters_within_the_ledger():
    """1x1 and 3x3 convolutions by kernel slices, 0.8 sparse: slices moved one for one lose 17 %."""
    generator, blocks, cells = torch.Generator().manual_seed(1), [9, 1], [4_096, 16_384]
    masks = [torch.zeros(n, dtype=torch.bool) for n in cells]
    for i, mask in enumerate(masks):
        mask |= at_random(~mask, round(0.2 * mask.numel()), key_of(0, -1, f"site{i}"))
    total, ledger = in_parameters(count(masks), blocks), 0
    start = count(masks)
    for event in range(30):
        # Large slices have small means, so that they flow to the single weights.
        magnitudes = [
            torch.rand(n, generator=generator) * s for n, s in zip(cells, (1, 2), strict=True)
        ]
        gone = smallest_of_all(magnitudes, masks, 3_000, blocks=blocks)
        dropped = in_parameters(count(gone), blocks)
        assert dropped == 3_000  # the single weights take what slices leave
        kept = [b * (a - g) for a, g, b in zip(count(masks), count(gone), blocks, strict=True)]
        lost = [b * g for g, b in zip(count(gone), blocks, strict=True)]
        free = [n - a for n, a in zip(cells, count(masks), strict=True)]
        added, ledger = block_shares(dropped, survivors(kept, lost), free, blocks, ledger)
        masks, _ = grow_all(masks, gone, added, event)
        assert in_parameters(count(masks), blocks) == total and ledger == 0
    assert count(masks)[0] < 0.8 * start[0]  # slices did flow, and nine weights came for each


def test_without_single_weights_the_ledger_stays_below_the_largest_cell():
    generator, chance = torch.Generator().manual_seed(2), random.Random(2)
    blocks, cells = [49, 9, 3], [60, 200, 400]
    masks = [torch.rand(n, generator=generator) < 0.3 for n in cells]
    total, ledger, seen = in_parameters(count(masks), blocks), 0, set()
    for event in range(80):
        magnitudes = [torch.rand(n, generator=generator) for n in cells]
        gone = smallest_of_all(magnitudes, masks, chance.randint(0, 900), [2, 2, 2], blocks=blocks)
        kept = [b * (a - g) for a, g, b in zip(count(masks), count(gone), blocks, strict=True)]
        lost = [b * g for g, b in zip(count(gone), blocks, strict=True)]
        free = [n - a for n, a in zip(cells, count(masks), strict=True)]
        weights = survivors(kept, lost, damping=chance.random())
        added, ledger = block_shares(sum(lost), weights, free, blocks, ledger)
        masks, returned = grow_all(masks, gone, added, event)
        assert not any(returned)
        assert in_parameters(count(masks), blocks) + ledger == total
        assert 0 <= ledger < 49
        seen.add(ledger)
    assert len(seen) > 1  # the ledger was needed


def test_exact_selection_and_the_controller_agree_within_its_tolerance():
    generator = torch.Generator().manual_seed(3)
    magnitudes = [torch.randn(n, generator=generator).abs() * 0.05 for n in (9_000, 20_000)]
    masks = [torch.rand(n, generator=generator) < 0.7 for n in (9_000, 20_000)]
    threshold, wanted = 1e-3, 2_000
    for _ in range(12):
        gone = below_threshold(magnitudes, masks, threshold)
        threshold = proportional(threshold, sum(count(gone)), wanted)
    exact = smallest_of_all(magnitudes, masks, wanted)
    assert sum(count(exact)) == wanted
    assert abs(sum(count(gone)) - wanted) <= 0.02 * wanted
    # One set holds the other: both are the smallest of all.
    assert all(((a & ~b) | (b & ~a)).sum() <= 40 for a, b in zip(exact, gone, strict=True))
    differs = [
        [bool((a & ~b).any()), bool((b & ~a).any())] for a, b in zip(exact, gone, strict=True)
    ]
    assert not all(any(side) for side in zip(*differs, strict=True))


def test_masks_do_not_depend_on_the_order_of_sites():
    generator = torch.Generator().manual_seed(4)
    free = {name: torch.rand(500, generator=generator) < 0.5 for name in ("a", "b", "c")}
    forth = {n: at_random(free[n], 40, key_of(7, 3, n)) for n in ("a", "b", "c")}
    back = {n: at_random(free[n], 40, key_of(7, 3, n)) for n in ("c", "b", "a")}
    assert all(torch.equal(forth[n], back[n]) for n in free)
