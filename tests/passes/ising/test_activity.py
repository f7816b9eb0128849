"""Entropy of feature maps: by hand, by a slow oracle, and without a trace on the model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from spin_cases import ResidualNet, built, image
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.inputs import Call
from passes.ising.activity import unit_activity
from passes.ising.activity_maps import entropy_bits, map_entropies


def one_each(*rows):
    return torch.tensor(rows, dtype=torch.float64), torch.arange(len(rows)), len(rows)


def slow_entropy(maps, bins=256):
    """Entropy of each row of maps `(channels, positions)`, normalised, with numpy's histogram."""
    span = (float(maps.min()), float(maps.max()))
    found = []
    for row in maps.reshape(len(maps), -1).double().numpy():
        share = np.histogram(row, bins, span)[0] / row.size
        share = share[share > 0]
        found.append(-(share * np.log2(share)).sum())
    return np.array(found) / max(found)


def test_entropy_of_histograms_by_hand():
    counts = torch.tensor([[2, 1, 1, 0], [4, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert entropy_bits(counts).tolist() == [1.5, 0, 2, 0]


def test_entropy_of_maps_by_hand():
    levels = list(range(256))
    values, units, count = one_each(levels, [7] * 256, [0] * 128 + [255] * 128)
    assert map_entropies(values, units, count).tolist() == pytest.approx([8, 0, 1])


def test_a_histogram_counts_bins_of_the_range_of_all_channels():
    values, units, count = one_each([0.0, 0.1, 0.2, 0.3], [0.0, 1.0, 2.0, 4.0])
    assert map_entropies(values, units, count, bins=4).tolist() == pytest.approx([0, 2])


def test_a_unit_of_two_channels_counts_both_and_one_of_none_has_no_entropy():
    values, _, _ = one_each([0.0, 0.0], [1.0, 1.0], [0.0, 1.0])
    assert map_entropies(values, torch.tensor([0, 0, 2]), 3, bins=2).tolist() == [1, 0, 1]


def test_constant_maps_have_none():
    values, units, count = one_each([2.0, 2.0], [2.0, 2.0])
    assert map_entropies(values, units, count).tolist() == [0, 0]


def test_maps_are_means_over_all_samples_where_they_are_read():
    graph, groups, _ = built(ResidualNet, image())
    batches = [image(4, seed=1), image(3, seed=2)]
    found = unit_activity(graph, groups, [Call((x,)) for x in batches])
    assert set(found) == {"stem", "inner", "wide", "hidden"}
    model = graph.module.eval()
    with torch.no_grad():
        x = torch.cat(batches)
        first = torch.relu(model.norm(model.stem(x)))
        inner = torch.relu(model.inner(first))
        second = first + model.back(inner)
        third = torch.relu(second + model.loop(second))
        wide = torch.relu(model.wide(third))
        hidden = torch.relu(model.hidden(wide.flatten(1)))
    assert found["inner"] == pytest.approx(slow_entropy(inner.mean(0)), abs=1e-6)
    assert found["wide"] == pytest.approx(slow_entropy(wide.mean(0)), abs=1e-6)
    # Numbers without positions: those of all samples count.
    assert found["hidden"] == pytest.approx(slow_entropy(hidden.T), abs=1e-6)
    places = [bits(maps.mean(0)) for maps in (first, second, third)]
    stream = np.mean(places, axis=0)
    assert found["stem"] == pytest.approx(stream / stream.max(), abs=1e-6)


def bits(maps):
    return map_entropies(maps.flatten(1).double(), torch.arange(len(maps)), len(maps)).numpy()


def test_small_maps_take_every_sample():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3, stride=4)
            self.head = nn.Conv2d(6, 2, 2)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x)))

    graph, groups, _ = built(Small, image(50))
    found = unit_activity(graph, groups, [Call((image(50),))])["conv"]
    with torch.no_grad():
        maps = torch.relu(graph.module.conv(image(50)))
    assert maps.shape[2:] == (2, 2)
    assert found == pytest.approx(slow_entropy(maps.transpose(0, 1)), abs=1e-6)


def test_a_dead_channel_has_no_activity_and_a_dead_layer_none_at_all():
    graph, groups, _ = built(ResidualNet, image())
    model = graph.module
    with torch.no_grad():
        model.inner.weight[3], model.inner.bias[3] = 0, 0
        model.wide.weight.zero_()
        model.wide.bias.zero_()
    found = unit_activity(graph, groups, [Call((image(),))])
    assert found["inner"][3] == 0
    assert found["inner"].max() == 1
    assert (found["wide"] == 0).all()


def test_tokens_are_positions():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.down(torch.tanh(self.up(x)))

    graph, groups, _ = built(Tokens, torch.randn(4, 30, 8))
    x = image(4).reshape(4, 8, 8).repeat(1, 4, 1)[:, :30]
    with torch.no_grad():
        maps = torch.tanh(graph.module.up(x)).mean(0).T
    found = unit_activity(graph, groups, [Call((x,))])
    assert found["up"] == pytest.approx(slow_entropy(maps), abs=1e-6)


def test_maps_of_two_sizes_are_weighted_by_their_samples():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x)))

    graph, groups, _ = built(Any, image())
    batches = [image(4), torch.nn.functional.pad(image(2), (4, 0, 4, 0))]
    with torch.no_grad():
        parts = [bits(torch.relu(graph.module.conv(x)).mean(0)) for x in batches]
    mean = (4 * parts[0] + 2 * parts[1]) / 6
    found = unit_activity(graph, groups, [Call((x,)) for x in batches])["conv"]
    assert found == pytest.approx(mean / mean.max(), abs=1e-6)


def test_heads_inside_a_layer_have_no_maps():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
            self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            y, _ = self.attention(x, x, x, need_weights=False)
            return self.down(torch.tanh(self.up(y)))

    x = image(4).reshape(4, 8, 8)
    graph, groups, _ = built(Attention, x)
    assert {group.name for group in groups.free} == {"attention", "up"}
    assert set(unit_activity(graph, groups, [Call((x,))])) == {"up"}


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_the_model_and_the_random_state_are_as_before():
    graph, groups, _ = built(ResidualNet, image())
    model = graph.module.train()
    model.wide.eval()
    state = copy.deepcopy(model.state_dict())
    flags = [part.training for part in model.modules()]
    random, x = torch.random.get_rng_state(), image()
    given = x.clone()
    first = unit_activity(graph, groups, [Call((x,))])
    second = unit_activity(graph, groups, [Call((x,))])
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(x, given)
    assert not any(hooks(model)) and not any(hooks(graph.graph_module))


def test_bad_input_is_told():
    graph, groups, _ = built(ResidualNet, image())
    with pytest.raises(PreconditionError, match="no batch"):
        unit_activity(graph, groups, [])
    with pytest.raises(PreconditionError, match="fails on a batch"):
        unit_activity(graph, groups, [Call((torch.zeros(2, 3, 8, 8),))])
    with pytest.raises(ArgumentError, match="whole number from 2"):
        unit_activity(graph, groups, [Call((image(),))], bins=1)
    with pytest.raises(PreconditionError, match="'stem': its feature maps hold NaN"):
        unit_activity(graph, groups, [Call((image() * float("nan"),))])


def test_a_model_without_a_graph_has_no_activity():
    graph, groups, _ = built(ResidualNet, image())
    graph.graph_module = None
    assert unit_activity(graph, groups, [Call((image(),))]) == {}
