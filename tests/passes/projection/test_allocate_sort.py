"""The counting selection keeps the same weights as a full sort, whatever the values look like."""

from __future__ import annotations

import pytest
import torch
from reference_projection import lenet_like_ladders, masks_of, sort_projection

from passes.projection.allocate import allocate
from passes.projection.ladder import build_ladder

SIZES = (37, 40, 41, 1500, 700)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def normal(n, generator):
    return torch.randn(n, generator=generator, dtype=torch.float64)


def uniform(n, generator):
    return torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1


def tied(n, generator):
    return torch.randint(-3, 4, (n,), generator=generator).double() / 8


def quantised(n, generator):
    return torch.randint(-127, 128, (n,), generator=generator).double() / 127 * 0.31


def narrow(n, generator):
    """All in one or two magnitude bins, so that a bin decides nothing."""
    return 1 + torch.rand(n, generator=generator, dtype=torch.float64) * 2.0**-9


def close(n, generator):
    """Apart by less than float32 can see."""
    return 1 + torch.rand(n, generator=generator, dtype=torch.float64) * 2.0**-30


def wide(n, generator):
    exponent = torch.randint(-30, 15, (n,), generator=generator).double()
    return normal(n, generator) * 2**exponent


def mixed_zero(n, generator):
    values = normal(n, generator)
    values[torch.rand(n, generator=generator) < 0.4] = 0.0
    values[::7] = -0.0
    return values


VALUES = [normal, uniform, tied, quantised, narrow, close, wide, mixed_zero]
# Smallest positive value; in float64 one that float32 cannot hold.
SMALLEST = {
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-133,
    torch.float32: 2.0**-149,
    torch.float64: 2.0**-160,
}


@pytest.mark.spread(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", VALUES, ids=lambda f: f.__name__)
def test_same_weights_as_a_sort(values, dtype):
    generator = torch.Generator().manual_seed(7)
    assert_same_as_sort([values(n, generator).to(dtype) for n in SIZES])


@pytest.mark.spread(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_weights_as_a_sort_of_denormals(dtype):
    generator = torch.Generator().manual_seed(7)
    steps = [torch.randint(-60, 61, (n,), generator=generator).double() for n in SIZES]
    weights = [(n * SMALLEST[dtype]).to(dtype) for n in steps]
    assert [w.count_nonzero() for w in weights] == [n.count_nonzero() for n in steps]
    assert_same_as_sort(weights)


def assert_same_as_sort(weights):
    ladders = lenet_like_ladders(SIZES)
    dense = sum(ladder.used(n)[0] for ladder, n in zip(ladders, SIZES, strict=True))
    for share in (0.003, 0.05, 0.31, 0.8, 1.0):
        capacity = [int(share * dense)]
        result = allocate(weights, ladders, capacity)
        expected = sort_projection(weights, ladders, capacity)
        assert result.counts == expected.counts
        assert result.next_charges == expected.next_charges
        assert result.gap == pytest.approx(expected.gap, rel=1e-9, abs=0)
        for mask, wanted in zip(masks_of(weights, result), expected.masks, strict=True):
            assert mask.tolist() == wanted.tolist()


@pytest.mark.parametrize("values", VALUES, ids=lambda f: f.__name__)
def test_same_weights_as_a_sort_by_magnitude(values):
    generator = torch.Generator().manual_seed(8)
    weights = [values(n, generator) for n in SIZES]
    ladders = lenet_like_ladders(SIZES)
    result = allocate(weights, ladders, [900_000], order="magnitude")
    expected = sort_projection(weights, ladders, [900_000], "magnitude")
    assert (result.counts, result.next_charges) == (expected.counts, expected.next_charges)


@pytest.mark.spread(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", VALUES, ids=lambda f: f.__name__)
def test_same_weights_as_a_sort_with_two_limits_and_minimums(values, dtype):
    generator = torch.Generator().manual_seed(9)
    weights = [values(n, generator).to(dtype) for n in SIZES]
    prices = [(3732, 17000), (654, 2300), (210, 210), (966, 3766), (90, 91)]
    ladders = [
        build_ladder(n, [(40, (a, 1)), (n, (b, 1))], forced=min(45, int((w != 0).sum())))
        for n, w, (a, b) in zip(SIZES, weights, prices, strict=True)
    ]
    for capacities in ((2_600_000, 700), (1_900_000, 2000), (10**9, 230)):
        result = allocate(weights, ladders, capacities)
        expected = sort_projection(weights, ladders, capacities)
        assert result.counts == expected.counts
        assert result.next_charges == expected.next_charges


def test_more_weights_than_one_chunk():
    generator = torch.Generator().manual_seed(1)
    sizes = ((1 << 18) + 5, 1 << 18, 1000)
    weights = [torch.randn(n, generator=generator) for n in sizes]
    # Ties across the border of the chunks.
    weights[0][(1 << 18) - 2 : (1 << 18) + 3] = weights[1].abs().median()
    prices = (210, 654, 3732)
    ladders = [build_ladder(n, [(n, (p,))]) for n, p in zip(sizes, prices, strict=True)]
    every = torch.cat([w.double() ** 2 / p for w, p in zip(weights, prices, strict=True)])
    cost = torch.cat([torch.full((n,), p) for n, p in zip(sizes, prices, strict=True)])
    order = torch.argsort(every, descending=True, stable=True)
    total = cost[order].cumsum(0)
    for capacity in (100_000, 30_000_000, 130_000_000):
        kept = torch.zeros(len(every), dtype=torch.bool)
        kept[order[total <= capacity]] = True
        result = allocate(weights, ladders, [capacity])
        assert torch.equal(torch.cat(masks_of(weights, result)), kept)
