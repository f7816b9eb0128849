"""What shrinking records of the original's indices, across steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import structure_nets as nets
import torch
from slicing import random_state, randomize, shrunk, traced
from structure_nets import image

from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.structure.state import full_state

NETS = ("Residual", "Concat", "Depthwise", "Shuffle", "Multihead", "Tied", "Flat", "Grouped")


def part(tensor, dims):
    for dim, left in dims.items():
        tensor = tensor.index_select(dim, torch.from_numpy(left))
    return tensor


def check(original, small):
    """Every tensor is the recorded part of the original's, whatever was or was not cut."""
    before, cut = original.state_dict(), 0
    for name, tensor in small.runnable.state_dict().items():
        if name in before:
            assert torch.equal(tensor, part(before[name], small.kept.get(name, {}))), name
            cut += tensor.shape != before[name].shape
    assert cut > 0


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", NETS)
def test_what_is_left_is_the_recorded_part_also_after_two_steps(name):
    torch.manual_seed(0)
    graph, groups = traced(randomize(getattr(nets, name)()), image())
    original = copy.deepcopy(graph.module)
    small = shrunk(graph, groups, {g.name: np.arange(g.units) != 1 for g in groups.free})
    check(original, small)
    left = channel_groups(small)
    shrink(small, left, random_state(left, 1))
    check(original, small)
    assert all((np.diff(i) > 0).all() for dims in small.kept.values() for i in dims.values())


def test_nothing_is_recorded_of_what_loses_nothing():
    torch.manual_seed(0)
    graph, groups = traced(randomize(nets.Residual()), image())
    shrink(graph, groups, full_state(groups))
    assert graph.kept == {}
