"""Work by flat index is that by masks, whatever the order in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passes.dynamic.by_index import set_at, values_at, zero_state_at
from passes.dynamic.host_keys import host_halves, host_keys
from passes.dynamic.random_keys import key_of, keys_at
from passes.graph import Site
from passes.rewrite.optimizer_state import zero_state

LAYOUTS = [torch.contiguous_format, torch.channels_last]
INDEX = torch.tensor([3, 50, 7, 119])


def tensor(layout):
    return torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_elements_are_read_and_written_by_flat_index(layout):
    values = tensor(layout)
    assert values_at(values, INDEX).tolist() == INDEX.tolist()
    set_at(values, INDEX, torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    set_at(values, torch.tensor([5, 5]), 0)
    expected = torch.arange(120.0)
    expected[INDEX], expected[5] = torch.tensor([-1.0, -2.0, -3.0, -4.0]), 0
    assert torch.equal(values.reshape(-1), expected)
    assert values.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adadelta])
def test_state_is_zeroed_as_by_a_mask(kind, layout):
    parameter = nn.Parameter(tensor(layout))
    optimizer = kind([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    site = Site("x", (("", "x"),), 0, 120, ())
    other = copy.deepcopy(optimizer.state[parameter])
    zero_state_at(optimizer, parameter, site, INDEX)
    found, optimizer.state[parameter] = optimizer.state[parameter], other
    where = torch.zeros(120, dtype=torch.bool)
    where[INDEX] = True
    zero_state(optimizer, parameter, site, where)
    assert all(torch.equal(found[name], value) for name, value in other.items())
    moments = [value.reshape(-1)[INDEX] for value in found.values() if value.dim()]
    assert moments and not bool(torch.stack(moments).any())


def test_keys_of_the_host_are_those_of_the_device():
    counters = torch.cat([torch.arange(1000), torch.tensor([-5, 2**62, -(2**63), 2**63 - 1])])
    keys = [key_of(seed, 7, "site") for seed in range(3)]
    for key in keys:
        found = host_keys(key, counters.numpy())
        assert torch.equal(torch.from_numpy(found), keys_at(key, counters))
    many = torch.tensor(keys).repeat(10)
    found = host_keys(many.numpy(), torch.arange(30).numpy())
    expected = [int(keys_at(int(k), torch.tensor([i]))) for i, k in enumerate(many)]
    assert found.tolist() == expected


def test_halves_of_keys():
    keys = torch.tensor([0, 1, -1, 1 << 32, (7 << 32) + 9, -(1 << 63)])
    high, low = host_halves(keys.numpy())
    assert high.tolist() == [0, 0, 2**32 - 1, 1, 7, 2**31]
    assert low.tolist() == [0, 1, 2**32 - 1, 0, 9, 0]
