"""Counting bits: what a budget keeps, what bits cost, and what they are worth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.joint.fit import fit_codebook
from passes.joint.sizes import entropy_bits, position_bits
from passes.methods.joint.rates import ArchiveRate, Layer, NominalRate, priced_bits

ALL = tuple(range(1, 9))


def weights(seed=0, sizes=((6, 8), (5, 12)), scales=(1.0, 0.3)):
    generator = torch.Generator().manual_seed(seed)
    return [
        s * torch.randn(size, generator=generator) for size, s in zip(sizes, scales, strict=True)
    ]


def masked(tensors, masks):
    return [w.masked_fill(~m, 0.0) for w, m in zip(tensors, masks, strict=True)]


def error(tensors, bits):
    return sum(fit_codebook(w, b).sse for w, b in zip(tensors, bits, strict=True))


LAYERS = [Layer(ALL), Layer(ALL)]


@settings(max_examples=30)
@given(st.integers(0, 100), st.integers(20, 700), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_an_archives_projection_fits_its_own_count(seed, budget, structure, limited):
    tensors, bits = weights(seed), [3, 2]
    rate = ArchiveRate(structure=structure, nominal=60 if limited else None)
    masks = rate.project(tensors, bits, budget, LAYERS)
    kept = masked(tensors, masks)
    assert rate.size(kept, bits) <= budget or not any(m.any() for m in masks)
    nominal = sum(b * int(m.sum()) for b, m in zip(bits, masks, strict=True))
    assert nominal <= (60 if limited else budget)
    assert not limited or rate.size(kept, bits) <= budget
    # The most that fits: a smaller multiplier would keep one more.
    assert rate.multiplier > 0 or all(m.all() for m in masks)


def test_layers_keep_their_least():
    tensors = weights()
    rate = ArchiveRate()
    masks = rate.project(tensors, [3, 3], 10, [Layer(ALL, 5), Layer(ALL, 0)])
    assert [int(m.sum()) for m in masks] == [5, 0]


def test_positions_are_cheaper_in_rows_and_columns_that_hold_many():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :4] = True
    spread = torch.zeros(64, dtype=torch.bool)
    spread[torch.randperm(64, generator=torch.Generator().manual_seed(0))[:16]] = True
    rate = ArchiveRate()
    block, loose = (rate.size([m.float()], [3]) for m in (mask, spread.view(8, 8)))
    assert block < loose
    # Never more than what positions alone take, with codes and a codebook of 16 bits a level.
    assert loose <= math.ceil(position_bits(64, 16) + 3 * 16 + 16 * 8)
    assert rate.size([torch.zeros(8, 8)], [3]) == 8
    # Of two equal weights the one in a full row stays.
    weight = mask.float()
    weight[7, 7] = 1.0
    [kept] = ArchiveRate(structure=1.0).project([weight], [3], block + 4, [Layer((3,))])
    assert not kept[7, 7]
    assert kept[:4, :4].any()


def test_the_estimate_is_near_the_entropy():
    [weight] = weights(sizes=((40, 50),), scales=(1.0,))
    weight = weight.masked_fill(weight.abs() < 1.2, 0.0)
    rounded = fit_codebook(weight, 4).nearest(weight)
    # 32 bits of a level there, 16 here.
    bound = entropy_bits(rounded) - 16 * 16
    assert 0.9 * bound < ArchiveRate().size([weight], [4]) < 1.2 * bound


def test_the_multiplier_is_forgotten_where_everything_fits():
    tensors = weights()
    for rate in (ArchiveRate(), NominalRate(by_price=True)):
        rate.project(tensors, [3, 3], 150, LAYERS)
        assert rate.multiplier > 0
        masks = rate.project(tensors, [3, 3], 10_000, LAYERS)
        assert all(m.all() for m in masks)
        assert rate.multiplier == 0


@pytest.mark.spread(2)
@pytest.mark.parametrize("multiplier", [1e-9, 1e-4, 1e-3, 1e-2, 1.0])
def test_bits_by_price_are_the_cheapest_of_every_layer(multiplier):
    tensors = weights()
    found = priced_bits("free", tensors, [4, 4], LAYERS, multiplier)
    for weight, bits in zip(tensors, found, strict=True):
        prices = [fit_codebook(weight, b).sse + multiplier * b * weight.numel() for b in ALL]
        assert prices[bits - 1] == pytest.approx(min(prices), rel=1e-9)
    assert priced_bits("free", tensors, [4, 5], LAYERS, 0.0) == [4, 5]
    fixed = [Layer((7,)), Layer(ALL)]
    assert priced_bits("free", tensors, [4, 5], fixed, multiplier)[0] == 7
    assert priced_bits("free", [torch.zeros(3)], [4], [Layer(ALL)], multiplier) == [4]


@pytest.mark.spread(2)
@pytest.mark.parametrize("share", [1.0, 2.5, 4.2, 7.0, 20.0])
def test_where_all_weights_fit_bits_use_the_whole_budget(share):
    tensors = weights()
    size = sum(w.numel() for w in tensors)
    budget = int(share * size)
    exact = NominalRate().choose(tensors, tensors, [4, 4], budget, LAYERS)
    rate = NominalRate(by_price=True)
    rate.project(tensors, [1, 1], budget, LAYERS)
    assert rate.multiplier == 0
    assert rate.choose(tensors, tensors, [1, 1], budget, LAYERS) == exact
    # What does not fit yet has its bits until weights are removed.
    if share < 4:
        assert rate.choose(tensors, tensors, [4, 4], budget, LAYERS) == [4, 4]
    # On the ladder it is the final budget that counts.
    rate.relief = 2.0
    assert rate.choose(tensors, tensors, [1, 1], 2 * budget, LAYERS) == exact


def test_an_archives_bits_use_the_whole_budget_where_nothing_goes():
    tensors, errors = weights(), []
    rate = ArchiveRate()
    tightest = rate.size(tensors, [1, 1])
    for budget in (0, tightest, tightest + 300, tightest + 900, 10**6):
        found = rate.choose(tensors, tensors, [4, 4], budget, LAYERS)
        assert rate.size(tensors, found) <= max(budget, tightest)
        errors.append(error(tensors, found))
        if budget <= tightest:
            assert found == [1, 1]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[0]
    limited = ArchiveRate(nominal=3 * 108)
    assert (
        sum(
            b * w.numel()
            for b, w in zip(
                limited.choose(tensors, tensors, [4, 4], 10**6, LAYERS), tensors, strict=True
            )
        )
        <= 3 * 108
    )
    # While the ladder is above and not all fits, bits stay.
    rate.relief = 4.0
    assert rate.choose(tensors, tensors, [8, 8], 4 * tightest, LAYERS) == [8, 8]
