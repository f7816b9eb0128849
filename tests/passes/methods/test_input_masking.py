"""Input masks by hand: what is projected, ranked, rounded and resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lenet_problem import EYERISS, lenet, traced
from masking_nets import (
    NETS,
    ROWS,
    TIGHT,
    all_cost,
    attached,
    built,
    copied,
    counterexample,
    fill_masks,
    kept_cost,
    masking_of,
    prices_of,
    recounted,
)
from torch import nn

from energy_model.energy import activation_energy
from energy_model.errors import PreconditionError
from energy_model.input_price import input_prices
from energy_model.shapes import LayerShape
from passes.graph import LayerRule
from passes.methods.input_masking import InputMasking, least_saved


@pytest.mark.spread(5)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.01, 0.0])
def test_a_projection_keeps_at_most_its_share(share, weighted):
    masking, _, generator = masking_of(weighted=weighted)
    fill_masks(masking, generator)
    before = copied(masking)
    masking.project(share)
    total = all_cost(masking, weighted)
    assert kept_cost(masking, weighted) <= share * total
    dearest = 1
    if weighted:
        parts = zip(prices_of(masking), masking._openings, strict=True)
        dearest = max(int(p.max() + o.max()) for p, o in parts)
    assert kept_cost(masking, weighted) > share * total - dearest
    for tensor, value in zip(masking.tensors, before, strict=True):
        assert torch.equal(tensor[tensor != 0], value[tensor != 0])
    if share == 1.0:
        assert all(torch.equal(a, b) for a, b in zip(masking.tensors, before, strict=True))


def test_a_share_of_a_count_is_exact():
    model, x = built(lambda: nn.Conv2d(1, 1, 1), (1, 1, 10, 10))
    masking = attached(model, x, weighted=False)
    masking.project(0.29)  # in binary, 0.29 * 100 is 28.999...
    assert int(masking.tensors[0].sum()) == 29
    # Ties: the first ones in row-major order.
    assert masking.tensors[0].flatten().nonzero().flatten().tolist() == list(range(29))


def test_at_equal_values_the_cheapest_inputs_are_kept_or_the_first():
    for weighted in (True, False):
        masking, _, _ = masking_of("grouped", weighted=weighted)
        masking.project(0.5)
        kept = np.concatenate([t.numpy().reshape(-1) != 0 for t in masking.tensors])
        prices = np.concatenate([price.reshape(-1) for price in prices_of(masking)])
        assert (prices[kept].max() <= prices[~kept].min()) == weighted
        assert (kept[: kept.sum()].all()) == (not weighted)


def test_clamping():
    masking, _, _ = masking_of()
    with torch.no_grad():
        masking.tensors[0].view(-1)[:4] = torch.tensor([-0.5, 1.5, 0.25, 1.0])
    masking.clamp()
    assert masking.tensors[0].view(-1)[:4].tolist() == [0, 1, 0.25, 1]


@pytest.mark.spread(2)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_settled_masks_are_zero_or_one_within_their_share_and_counted(seed, weighted):
    masking, x, generator = masking_of(seed=seed, weighted=weighted)
    before, dense = copied(masking), masking.energy()
    with torch.no_grad():
        for tensor in masking.tensors:
            tensor.copy_(1.5 * torch.rand(tensor.shape, generator=generator))
    values = [tensor.clamp(0, 1) for tensor in copied(masking)]
    masking.settle(0.7, before)
    for tensor, value in zip(masking.tensors, values, strict=True):
        assert set(tensor.unique().tolist()) <= {0.0, 1.0}
        assert not tensor[value <= 0.5].any(), "a half is rounded down"
    assert kept_cost(masking, weighted) <= 0.7 * all_cost(masking, weighted)
    assert masking.energy() == recounted(masking, x) < dense
    assert masking.share == 0.7
    saved = sum(
        int(p[(t == 0).numpy()].sum())
        for t, p in zip(masking.tensors, prices_of(masking), strict=True)
    )
    assert dense - masking.energy() == saved, "nothing is fetched again in so small a net"


def test_the_energy_model_is_not_monotone_in_its_inputs():
    shape = LayerShape.conv(1, 3, (2, 2), (8, 4), stride=2)
    support = np.array([[[1] * n + [0] * (4 - n) for n in ROWS]], dtype=bool)
    less = support.copy()
    less[0, 5, 1] = False
    assert less.sum() == support.sum() - 1
    assert activation_energy(shape, TIGHT, less)[0] > activation_energy(shape, TIGHT, support)[0]


def test_rounding_that_would_raise_the_energy_is_undone():
    masking, x = counterexample()
    before, energy = copied(masking), masking.energy()
    with torch.no_grad():
        masking.tensors[0][0, 5, 1] = 0.5
    masking.settle(1.0, before)
    assert torch.equal(masking.tensors[0], before[0])
    assert masking.energy() == energy == recounted(masking, x)
    told = [d for d in masking.graph.decisions if d.what == "input masks left as they were"]
    assert len(told) == 1


def test_rounding_that_lowers_the_energy_is_kept():
    masking, x = counterexample()
    before, energy = copied(masking), masking.energy()
    with torch.no_grad():
        masking.tensors[0][0, 5] = 0.5
    masking.settle(1.0, before)
    assert not masking.tensors[0][0, 5].any()
    assert masking.energy() == recounted(masking, x) < energy
    assert masking.graph.decisions == []


def test_rounding_is_compared_with_the_masks_before_their_training():
    """Not with those of a run that was killed on the way, whose supports were counted anew."""
    masking, _ = counterexample()
    before = copied(masking)
    with torch.no_grad():
        masking.tensors[0][0, 4:] = 0.0
    masking.load_state_dict(masking.state_dict())
    assert masking.energy() < 9000
    with torch.no_grad():
        masking.tensors[0].copy_(before[0])
        masking.tensors[0][0, 5] = 0.0
    masking.settle(1.0, before)
    assert not masking.tensors[0][0, 5].any()
    assert masking.graph.decisions == []


@pytest.mark.slow
@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([1.0, 0.9, 0.6]))
def test_settling_never_raises_the_energy(seed, share):
    masking, _ = counterexample()
    generator = torch.Generator().manual_seed(seed)
    fill_masks(masking, generator, 0.6)
    masking.refresh()
    before, energy = copied(masking), masking.energy()
    with torch.no_grad():
        tensor = masking.tensors[0]
        tensor.sub_(0.6 * torch.rand(tensor.shape, generator=generator))
    masking.settle(share, before)
    assert masking.energy() <= energy


@pytest.mark.spread(3)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.55, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_saved_at_least(share, weighted, seed):
    model, x = built(*NETS["two layers"], seed)
    graph = traced(model, x)
    least = least_saved(graph, EYERISS, share, weighted=weighted)
    masking = InputMasking.attach(graph, EYERISS, weighted=weighted, scored=False)
    dense, before = masking.energy(), copied(masking)
    fill_masks(masking, torch.Generator().manual_seed(seed))
    masking.settle(share, before)
    assert dense - masking.energy() >= least
    total = sum(int(p.sum()) for p in prices_of(masking))
    if share in (0.0, 1.0):
        assert least == (1 - share) * total
    elif weighted:
        assert least == total - math.floor(share * total)
    else:
        assert 0 < least < (1 - share) * total


def test_only_what_can_be_masked_is_saved():
    model, x = built(*NETS["padded once"])
    graph = traced(model, x)
    one = int(input_prices(graph.sites[0].uses[0].shape, EYERISS).sum())
    assert least_saved(graph, EYERISS, 0.0, weighted=True) == one
    graph.rules = {"conv": LayerRule(1.0)}
    with pytest.raises(PreconditionError, match="no convolution"):
        least_saved(graph, EYERISS, 0.0, weighted=True)


@pytest.mark.slow
def test_lenet_saves_the_prices_of_its_two_convolutions():
    graph = traced(lenet(), torch.zeros(1, 1, 32, 32, dtype=torch.float64))
    saved = least_saved(graph, EYERISS, 0.0, weighted=True)
    # All of their activation energy but the outputs: 6 * 784 and 16 * 100 words at 200.
    assert saved == 1380800 + 975200 - 200 * (6 * 784 + 16 * 100)


def test_a_resumed_masking_counts_anew():
    masking, x, generator = masking_of()
    fill_masks(masking, generator, 0.5)
    masking.share = 0.4
    state = masking.state_dict()
    other, _, _ = masking_of()
    other.graph.runnable.load_state_dict(masking.graph.runnable.state_dict())
    other.load_state_dict(state)
    assert other.share == 0.4
    assert other.energy() == recounted(masking, x) < masking.energy()


def with_gradients(masking, *values):
    """Note one gradient after the other, each the same for all entries but for its own pattern."""
    for value in values:
        for tensor in masking.tensors:
            tensor.grad = value * torch.arange(tensor.numel(), dtype=torch.float32).view_as(tensor)
        masking.note_gradients()
    for tensor in masking.tensors:
        tensor.grad = None


def test_entries_are_ranked_by_their_mean_squared_gradient():
    masking, _, _ = masking_of(weighted=False, scored=True)
    with_gradients(masking, 1.0, -2.0)
    squares = torch.arange(98, dtype=torch.float32) ** 2
    expected = 0.99 * 0.01 * squares + 0.01 * 4 * squares
    torch.testing.assert_close(masking._scores[0].flatten(), expected)
    with torch.no_grad():
        masking.tensors[0].fill_(0.25)
        masking.tensors[0].view(-1)[-1] = 0.0
    masking.project(0.5)
    kept = torch.cat([tensor.flatten() for tensor in masking.tensors])
    scores = torch.cat([score.flatten() for score in masking._scores])
    assert int((kept != 0).sum()) == 147
    assert scores[kept != 0].min() >= scores[kept == 0].max()
    # An entry that comes back is open again, the others keep their values.
    assert masking.tensors[0].view(-1)[-2:].tolist() == [0.25, 1.0]


def test_without_gradients_so_far_values_rank():
    masking, _, generator = masking_of(weighted=False, scored=True)
    other, _, _ = masking_of(weighted=False, scored=False)
    fill_masks(masking, generator)
    other._set(masking.tensors)
    for each in (masking, other):
        each.project(0.3)
    assert all(torch.equal(a, b) for a, b in zip(masking.tensors, other.tensors, strict=True))
    with_gradients(masking, 1.0)
    masking.restart()
    assert not any(score.any() for score in masking._scores)


def test_scores_are_resumed():
    masking, _, _ = masking_of(scored=True)
    with_gradients(masking, 1.0, 3.0)
    other, _, _ = masking_of(scored=True)
    other.load_state_dict(masking.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(masking._scores, other._scores, strict=True))
    for each in (masking, other):
        with_gradients(each, 2.0)
        each.project(0.4)
    assert all(torch.equal(a, b) for a, b in zip(masking.tensors, other.tensors, strict=True))


def test_gradients_that_are_not_finite_are_an_error():
    masking, _, _ = masking_of(scored=True)
    with_gradients(masking, float("nan"))
    with pytest.raises(PreconditionError, match="not finite"):
        masking.project(0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_masks_that_are_not_finite_are_an_error(value):
    masking, _, _ = masking_of()
    with torch.no_grad():
        masking.tensors[0][0, 0, 0] = value
    with pytest.raises(PreconditionError, match="not finite"):
        masking.project(0.5)
