from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joint_oracle import float32s, lenet5_weights, oracle

from energy_model.errors import ArgumentError, InfeasibleBudget, PreconditionError
from passes.joint.bit_allocation import allocate_bits
from passes.joint.fit import codebook_costs, fit_codebook
from passes.joint.joint_allocation import joint_allocation
from passes.joint.sizes import position_bits
from passes.joint.sparsity import project_sparsity

WEIGHT = st.one_of(st.floats(-2, 2, width=16), st.sampled_from([0.0, 0.5, -0.5]))


def final(weights, found):
    """The weights that an allocation stands for."""
    return [
        torch.where(mask, codebook.nearest(weight), 0.0) if len(codebook.levels) else weight * 0
        for weight, mask, codebook in zip(weights, found.masks, found.codebooks, strict=True)
    ]


def check(weights, found, budget, *, honest=False, kind="free"):
    """What holds for every allocation."""
    values = final(weights, found)
    error = sum(
        float((w - v).double().square().sum()) for w, v in zip(weights, values, strict=True)
    )
    assert found.error == pytest.approx(error, rel=1e-6, abs=1e-10)
    assert found.nonzeros == [int(torch.count_nonzero(v)) for v in values]
    assert found.nonzeros == [int(m.sum()) for m in found.masks]
    size = 0
    for weight, value, bits, k in zip(weights, values, found.bits, found.nonzeros, strict=True):
        distinct = len(value[value != 0].unique())
        assert distinct <= 1 << bits
        size += bits * k
        if honest:
            levels = distinct if kind == "free" else min(k, 1)
            size += int(np.ceil(position_bits(weight.numel(), k))) + 32 * levels
    assert found.size == size <= budget


def best_layer(values, bits, k):
    """Least error with at most k nonzeros of 2^bits levels: all supports, all partitions."""
    x = np.sort(values)
    best = float((x**2).sum())
    for count in range(1, k + 1):
        for kept in itertools.combinations(range(len(x)), count):
            mine = x[list(kept)]
            pruned = float((x**2).sum() - (mine**2).sum())
            for cuts in range(min(1 << bits, count)):
                for places in itertools.combinations(range(1, count), cuts):
                    parts = np.split(mine, places)
                    sse = sum(float(((p - p.mean()) ** 2).sum()) for p in parts)
                    best = min(best, pruned + sse)
    return best


@settings(max_examples=25)
@example(layers=[[1.0, 1.0, -1.0, 0.5, -0.5]], budget=4)  # of the two halves the negative one stays
@given(
    layers=st.lists(st.lists(WEIGHT, max_size=5), min_size=1, max_size=2),
    budget=st.integers(0, 22),
)
def test_small_layers_are_solved_exactly(layers, budget):
    weights = [float32s(layer) for layer in layers]
    found = joint_allocation(weights, budget, [1, 2])
    check(weights, found, budget)
    tables = [
        {(b, k): best_layer(w.double().numpy(), b, k) for b in (1, 2) for k in range(len(w) + 1)}
        for w in weights
    ]
    best = min(
        sum(table[pair] for table, pair in zip(tables, pairs, strict=True))
        for pairs in itertools.product(*tables)
        if sum(b * k for b, k in pairs) <= budget
    )
    assert found.error == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("case", range(6))
def test_oracle_of_joint_allocations(case):
    case = oracle("joint_tiny")[case]
    weights = [float32s(layer) for layer in case["layers"]]
    found = joint_allocation(weights, case["budget"], case["bit_choices"])
    check(weights, found, case["budget"])
    assert found.error == pytest.approx(case["exact_error"], rel=1e-6)
    assert found.error <= case["authors_alternation_error"] * (1 + 1e-9)


def pruned_then_quantized(weights, budget, bits):
    """What one uniform width gives."""
    masks = project_sparsity(weights, [bits] * len(weights), budget)
    kept = sum(fit_codebook(w[m], bits).sse for w, m in zip(weights, masks, strict=True))
    pruned = (w[~m].double().square().sum() for w, m in zip(weights, masks, strict=True))
    return kept + float(sum(pruned))


def alternated(weights, budget, bits):
    """Errors of the alternation from a uniform width, after every choice of widths."""
    widths = [bits] * len(weights)
    for _ in range(3):
        masks = project_sparsity(weights, widths, budget)
        costs = torch.stack([codebook_costs(w[m]) for w, m in zip(weights, masks, strict=True)])
        counts = torch.tensor([int(m.sum()) for m in masks])
        found = allocate_bits(costs, counts, budget)
        pruned = (w[~m].double().square().sum() for w, m in zip(weights, masks, strict=True))
        yield found.cost + float(sum(pruned))
        widths = found.bits


@pytest.mark.slow
@pytest.mark.parametrize("budget", [300, 1100])
def test_larger_layers_beat_alternation_and_uniform_widths(budget):
    generator = torch.Generator().manual_seed(0)
    sizes, scales = (60, 200, 600), (1.0, 0.3, 0.1)
    weights = [torch.randn(n, generator=generator) * s for n, s in zip(sizes, scales, strict=True)]
    found = joint_allocation(weights, budget, range(1, 9))
    check(weights, found, budget)
    for bits in (1, 2, 4, 8):
        assert found.error <= pruned_then_quantized(weights, budget, bits) * (1 + 1e-9)
        for error in alternated(weights, budget, bits):
            assert found.error <= error * (1 + 1e-9)


def test_lenet5_is_far_better_than_the_published_alternation():
    case = oracle("lenet5")[0]
    weights = lenet5_weights()
    found = joint_allocation(weights, case["budget"], range(1, 5))
    check(weights, found, case["budget"])
    # Their error: what is pruned, and the quantization of what is kept.
    theirs = min(case["total_energy"] - r["kept_energy"] + r["sse"] for r in case["rounds"])
    assert found.error < 0.9 * theirs


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", ["free", "uniform"])
@pytest.mark.parametrize("honest", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 90, 1500, 40_000])
def test_every_budget_holds(kind, honest, budget):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(n, generator=generator) for n in (20, 500)]
    weights += [torch.zeros(9), torch.empty(0), torch.full((50,), 0.25)]
    found = joint_allocation(weights, budget, (1, 2, 4, 8), kind=kind, honest=honest)
    check(weights, found, budget, honest=honest, kind=kind)
    if budget <= 1:
        assert found.error >= 0.9 * sum(float(w.double().square().sum()) for w in weights)
    assert set(found.bits) <= {1, 2, 4, 8}


def test_small_uniform_grids_keep_the_largest_and_fit_best():
    weights = [float32s([1.0, -0.9, 0.2, 0.1])]
    found = joint_allocation(weights, 4, [1, 2], kind="uniform")
    best = min(
        fit_codebook(weights[0][:k], b, kind="uniform").sse
        + float(weights[0][k:].double().square().sum())
        for b in (1, 2)
        for k in range(4 // b + 1)
    )
    assert found.error == pytest.approx(best)
    check(weights, found, 4, kind="uniform")


def test_honest_sizes_prefer_fewer_layers_and_levels():
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(400, generator=generator) for _ in range(3)]
    nominal = joint_allocation(weights, 1200, range(1, 5))
    honest = joint_allocation(weights, 1200, range(1, 5), honest=True)
    assert sum(honest.nonzeros) < sum(nominal.nonzeros)
    assert honest.error > nominal.error


def test_more_budget_is_never_worse():
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, generator=generator) for n in (40, 64)]
    errors = [joint_allocation(weights, s, range(1, 9)).error for s in range(0, 900, 60)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-3


def test_fixed_widths_and_least_nonzeros():
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(n, generator=generator) * s for n, s in ((30, 1.0), (200, 0.01))]
    free = joint_allocation(weights, 60, range(1, 9))
    assert free.nonzeros[1] == 0
    found = joint_allocation(weights, 60, range(1, 9), fixed=[5, None], least=[0, 3])
    check(weights, found, 60)
    assert found.bits[0] == 5
    assert found.nonzeros[1] >= 3
    assert found.error >= free.error
    with pytest.raises(InfeasibleBudget) as caught:
        joint_allocation(weights, 60, [4, 8], least=[10, 10])
    assert caught.value.tightest == 80


def test_inputs_stay_and_the_same_comes_twice():
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(n, generator=generator) for n in (100, 300)]
    before = [w.clone() for w in weights]
    first, second = (joint_allocation(weights, 500, range(1, 5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert first.bits == second.bits
    assert all(torch.equal(a, b) for a, b in zip(first.masks, second.masks, strict=True))


def test_no_layers():
    assert joint_allocation([], 10, [1]).bits == []


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((5, []), {}, "no width is allowed"),
        ((5, [9]), {}, "no width"),
        ((-5, [1]), {}, "-5 is not allowed"),
        ((5, [1]), {"kind": "log"}, "no kind"),
        ((5, [1]), {"fixed": [1]}, "for 2 layers"),
        ((5, [1]), {"fixed": [0, None]}, "no width"),
        ((5, [1]), {"least": [1]}, "for 2 layers"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, words):
    with pytest.raises(ArgumentError, match=words):
        joint_allocation([torch.ones(3), torch.ones(2)], *arguments, **options)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(PreconditionError, match="NaN"):
        joint_allocation([torch.tensor([1.0, float("nan")])], 5, [1])
