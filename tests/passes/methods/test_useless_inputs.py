"""Inputs that no weight reads, and weights whose inputs are masked: taking them changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lenet_problem import EYERISS
from masking_nets import (
    NETS,
    TIGHT,
    attached,
    built,
    copied,
    counterexample,
    fill_masks,
    masking_of,
    prices_of,
    recounted,
    thin,
)
from torch import nn

from energy_model.energy import activation_energy
from energy_model.shapes import LayerShape
from passes.rewrite.masked_channels import remove_masked_channels


@pytest.mark.spread(2)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_masking_what_no_weight_reads_changes_no_bit(name, seed):
    masking, x, generator = masking_of(name, seed)
    thin(masking, generator, 0.6)
    fill_masks(masking, generator, 0.8)
    masking.refresh()
    expected, energy, before = masking.graph.runnable(x), masking.energy(), copied(masking)
    dropped = masking.drop_unmet()
    assert dropped > 0
    assert torch.equal(masking.graph.runnable(x), expected)
    gone = [b - t for b, t in zip(before, masking.tensors, strict=True)]
    assert sum(float(g.sum()) for g in gone) == dropped
    assert all(set(g.unique().tolist()) <= {0.0, 1.0} for g in gone)
    assert masking.energy() == recounted(masking, x) < energy
    assert masking.drop_unmet() == 0


@pytest.mark.parametrize("name", NETS)
def test_what_some_weight_reads_is_not_masked(name):
    masking, _, _ = masking_of(name)
    unread = sum(int((p == EYERISS.dram_energy).sum()) for p in prices_of(masking))
    assert masking.drop_unmet() == unread
    assert unread == 0 or name == "one weight in several ways"


def rising_support():
    """A support and a kernel offset whose unmet inputs cost more when they are masked."""
    random = np.random.default_rng(0)
    shape = LayerShape.conv(1, 3, (2, 2), (8, 4), stride=2)
    for _ in range(20_000):
        support = random.random((1, 8, 4)) < 0.6
        less = support.copy()
        less[:, 1::2, 1::2] = False
        if less.sum() == support.sum():
            continue
        if activation_energy(shape, TIGHT, less)[0] > activation_energy(shape, TIGHT, support)[0]:
            return support
    raise AssertionError("no counterexample")


def test_masking_for_nothing_that_would_raise_the_energy_is_undone():
    masking, x = counterexample()
    support = torch.from_numpy(rising_support()).float()
    with torch.no_grad():
        masking.tensors[0].copy_(support)
        masking.graph.module.weight[..., 1, 1] = 0.0
    masking.refresh()
    energy = masking.energy()
    assert masking.drop_unmet() == 0
    assert torch.equal(masking.tensors[0], support)
    assert masking.energy() == recounted(masking, x) == energy


@pytest.mark.spread(9)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_silencing_changes_no_bit(name, seed):
    masking, x, generator = masking_of(name, seed)
    fill_masks(masking, generator, 0.8)
    with torch.no_grad():
        for tensor in masking.tensors:
            tensor[seed % len(tensor)] = 0.0
    expected = masking.graph.runnable(x)
    before = sum(int((masking.graph.weight(s) != 0).sum()) for s in masking.graph.sites)
    silenced = masking.silence({})
    after = sum(int((masking.graph.weight(s) != 0).sum()) for s in masking.graph.sites)
    assert torch.equal(masking.graph.runnable(x), expected)
    assert before - after == silenced
    # One of its calls has no mask, so all of its weights are read.
    assert (silenced == 0) == (name == "padded once")


def test_silencing_by_hand():
    model, x = built(lambda: nn.Conv2d(4, 6, 3, groups=2), (1, 4, 6, 6))
    masking = attached(model, x)
    with torch.no_grad():
        masking.tensors[0][1] = 0.0
    assert masking.silence({}) == 3 * 9
    # Channel 1 is the second of the first group, which serves the first three outputs.
    assert not model.weight[:3, 1].any()
    assert model.weight[:3, 0].all()
    assert model.weight[3:].all()


@pytest.mark.parametrize(("least", "silenced"), [(81, 27), (82, 0), (0, 27)])
def test_silencing_leaves_a_layer_what_it_keeps_at_least(least, silenced):
    model, x = built(lambda: nn.Conv2d(4, 6, 3, groups=2), (1, 4, 6, 6))
    masking = attached(model, x)
    with torch.no_grad():
        masking.tensors[0][1] = 0.0
    name = masking.graph.sites[0].name
    assert masking.silence({name: least}) == silenced
    assert int((model.weight != 0).sum()) == 108 - silenced


@pytest.mark.parametrize("seed", range(3))
def test_what_removing_masked_channels_will_save_is_known(seed):
    masking, x, generator = masking_of(seed=seed)
    fill_masks(masking, generator, 0.8)
    with torch.no_grad():
        masking.tensors[1][[seed, 3]] = 0.0
    masking.refresh()
    expected = masking.graph.runnable(x)
    masking.settle_channels({})
    assert torch.equal(masking.graph.runnable(x), expected)
    before, saved = masking.energy(), masking.still_saved
    remove_masked_channels(masking.graph)
    assert torch.equal(masking.graph.runnable(x), expected)
    assert masking.energy() == before - saved < before
    assert masking.energy() == recounted(masking, x)
