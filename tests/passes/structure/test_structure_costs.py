"""Costs of keep-states, against models that are really cut."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import structure_nets as nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slicing import random_state, randomize, shrunk, traced
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from energy_model.errors import ArgumentError, PreconditionError, UnsupportedBudget
from energy_model.hardware import Hardware
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.structure.costs import KEYS, StructureCosts
from passes.structure.groups import channel_groups
from passes.structure.restrict import restricted
from passes.structure.state import full_state
from passes.torchvision_shim import ensure_torchvision_importable
from passes.tracing.trace import trace

ensure_torchvision_importable()
torchvision = pytest.importorskip("torchvision")

# Small caches, so that every branch of the energy model is met.
HARDWARE = Hardware(
    "small", array_rows=3, array_columns=2, input_cache_bytes=96, weight_cache_bytes=32
)
COUNTED = ("energy", "weight_bits", "nonzeros", "params", "macs", "sparse_macs")
NETS = {
    "residual": nets.Residual,
    "concat": nets.Concat,
    "halves": nets.Halves,
    "depthwise": nets.Depthwise,
    "shuffle": nets.Shuffle,
    "squeeze_excite": nets.SqueezeExcite,
    "transposed": nets.Transposed,
    "pad": nets.Pad,
    "flat": nets.Flat,
    "tied": nets.Tied,
    "functional": nets.Functional,
    "frozen_norm": nets.FrozenNorm,
    "group_norm": nets.Grouped,
    "pixel_shuffle": nets.PixelShuffle,
    "attention": nets.Attention,
    "attention_split": lambda: nets.Attention(fused=False, by_hand=True),
    "multihead": nets.Multihead,
    "gated": nets.Gated,
}


def model_of(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(NETS[name]())


@pytest.fixture(scope="module")
def known():
    """Graph, restricted groups and costs of each net, made once."""
    found = {}

    def get(name):
        if name not in found:
            graph, groups = traced(model_of(name), nets.image())
            groups = restricted(groups, graph)
            found[name] = graph, groups, StructureCosts(graph, groups, HARDWARE, COUNTED)
        return found[name]

    return get


def really(graph, groups, state, hardware=HARDWARE):
    """What the model costs that is cut."""
    small = shrunk(graph, groups, state)
    table = cost_table(small, hardware)
    return {
        "energy": table.total.energy.relaxed,
        "weight_bits": sum(int(row.nonzeros * row.bits) for row in table),
        "nonzeros": table.total.nonzeros,
        "params": sum(p.numel() for p in small.module.parameters()),
        "macs": table.total.macs,
        "sparse_macs": sum(row.nonzeros * (row.macs // row.weights) for row in table),
    }


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_as_the_model_that_is_cut(known, name, seed):
    graph, groups, costs = known(name)
    state = random_state(groups, seed)
    found, expected = costs.values(state), really(graph, groups, state)
    assert found == expected
    assert found != costs.values(full_state(groups))


@pytest.mark.parametrize("name", NETS)
def test_the_full_state_costs_what_the_model_costs(known, name):
    graph, groups, costs = known(name)
    table = cost_table(graph, HARDWARE)
    found = costs.values(full_state(groups))
    assert found["energy"] == table.total.energy.relaxed
    assert found["macs"] == found["sparse_macs"] == table.total.macs
    assert found["params"] == sum(p.numel() for p in graph.module.parameters())
    for key in COUNTED:
        assert sum(costs.by_layer(key, full_state(groups)).values()) == found[key]


class Tiny(nn.Module):
    """A stream of 3 channels with a residual branch of 2, and a depthwise layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.down, self.up = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 3, padding=1)
        self.depthwise = nn.Conv2d(3, 6, 3, groups=3)
        self.head = nn.Linear(6 * 4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.up(torch.relu(self.down(x)))
        return self.head(torch.relu(self.depthwise(x)).flatten(1))


def all_states(groups):
    each = [
        [np.array(bits) for bits in itertools.product([False, True], repeat=g.units) if any(bits)]
        for g in groups.free
    ]
    names = [group.name for group in groups.free]
    for keeps in itertools.product(*each):
        yield dict(zip(names, keeps, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [False, True])
def test_every_state_of_a_tiny_net(zeros):
    model = randomize(Tiny().double())
    if zeros:
        generator = torch.Generator().manual_seed(1)
        for layer in (model.down, model.up, model.depthwise, model.head):
            layer.weight.data *= torch.rand(layer.weight.shape, generator=generator) < 0.5
    graph, groups = traced(model, nets.image(channels=1, side=4))
    costs = StructureCosts(graph, groups, HARDWARE, COUNTED)
    states = list(all_states(groups))
    assert len(states) == 21
    for state in states:
        assert costs.values(state) == really(graph, groups, state)


class Masked(nn.Module):
    """Constant masks on the inputs of a plain, a depthwise and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.plain = nn.Conv2d(8, 6, 3)
        self.depthwise = nn.Conv2d(6, 12, 3, groups=6)
        self.grouped = nn.Conv2d(12, 4, 3, groups=2)
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("a", (8, 8, 8)), ("b", (6, 6, 6)), ("c", (12, 4, 4))):
            mask = (torch.rand(shape, generator=generator) < 0.6).double()
            self.register_buffer(name, mask)

    def forward(self, x):
        x = torch.relu(self.stem(x)) * self.a
        x = torch.relu(self.plain(x)) * self.b
        return self.grouped(torch.relu(self.depthwise(x)) * self.c).mean((2, 3))


@pytest.mark.parametrize("seed", range(4))
def test_masked_inputs_are_cut_too(seed):
    graph, groups = traced(randomize(Masked()), nets.image())
    assert sum(use.inputs is not None for site in graph.sites for use in site.uses) == 3
    assert len(groups.free) >= 2
    costs = StructureCosts(graph, groups, HARDWARE, COUNTED)
    state = random_state(groups, seed)
    assert costs.values(state) == really(graph, groups, state)


def test_a_layer_that_is_used_at_two_sizes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = torch.relu(self.shared(torch.relu(self.stem(x))))
            x = self.shared(torch.max_pool2d(x, 2))
            return self.head(x.mean((2, 3)))

    graph, groups = traced(Twice(), nets.image())
    costs = StructureCosts(graph, groups, HARDWARE, COUNTED)
    for seed in range(3):
        state = random_state(groups, seed)
        assert costs.values(state) == really(graph, groups, state)


def test_a_computed_weight_costs_the_same_in_every_state():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = weight_norm(nn.Conv2d(3, 4, 3))
            self.second, self.head = nn.Conv2d(4, 6, 1), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(torch.relu(self.second(self.first(x))).mean((2, 3)))

    graph, groups = traced(randomize(Computed().double()), nets.image())
    keys = ("energy", "macs", "sparse_macs")
    costs = StructureCosts(graph, groups, HARDWARE, keys)
    state = random_state(groups, 0)
    expected = really(graph, groups, state)
    assert costs.values(state) == {key: expected[key] for key in keys}
    [computed] = [site for site in graph.sites if site.computed]
    assert costs.by_layer("sparse_macs", state)[computed.name] == computed.macs() > 0


def test_inputs_and_outputs_of_square_matrices():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(6, 6)
            self.left, self.right = (nn.Parameter(torch.randn(6, 6)) for _ in range(2))
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = torch.relu(torch.relu(self.stem(x)) @ self.left)
            return self.head(torch.relu(x @ self.right.t()))

    graph, groups = traced(Square(), nets.image()[:, 0, :, :6].contiguous())
    assert [group.units for group in groups.free] == [6, 6, 6]
    costs = StructureCosts(graph, groups, HARDWARE, COUNTED)
    for seed in range(5):
        state = random_state(groups, seed)
        assert costs.values(state) == really(graph, groups, state)


@given(data=st.data())
@settings(max_examples=60)
def test_the_tally_follows(known, data):
    name = data.draw(st.sampled_from(sorted(NETS)))
    _, groups, costs = known(name)
    tally = costs.tally(full_state(groups))
    state = full_state(groups)
    for _ in range(data.draw(st.integers(1, 6))):
        group = data.draw(st.sampled_from(groups.free))
        keep = state[group.name]
        flips = data.draw(st.lists(st.integers(0, group.units - 1), min_size=1, unique=True))
        changed = keep.copy()
        changed[flips] ^= True
        if not changed.any():
            continue
        before, units = tally.values, np.array(flips)
        foretold = tally.after(group.name, units)
        assert tally.values == before
        tally.apply(group.name, units)
        state[group.name] = changed
        assert tally.values == foretold == costs.tally(state).values
        assert all((tally.state[n] == keep).all() for n, keep in state.items())


@given(data=st.data())
@settings(max_examples=60)
def test_fewer_units_never_cost_more(known, data):
    _, groups, costs = known(data.draw(st.sampled_from(sorted(NETS))))
    state = random_state(groups, data.draw(st.integers(0, 1000)))
    larger = {name: keep.copy() for name, keep in state.items()}
    group = data.draw(st.sampled_from(groups.free))
    larger[group.name][data.draw(st.integers(0, group.units - 1))] = True
    small, large = costs.values(state), costs.values(larger)
    # The energy is not among them: rows of fewer channels may pack worse into the input cache.
    for key in ("weight_bits", "nonzeros", "params", "macs", "sparse_macs"):
        assert small[key] <= large[key]


def test_the_energy_of_a_layer_may_rise_when_a_channel_goes():
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 1, 3, stride=2, padding=1))
    graph, groups = traced(model, nets.image(side=24))
    # The cache holds 3 rows of 32 channels, or 4 of 31: strips of 4 rows overlap more.
    hardware = Hardware("pack", input_cache_bytes=2 * 4 * 24 * 31)
    costs = StructureCosts(graph, groups, hardware, ("energy",))
    [group] = groups.free
    state = {group.name: np.arange(32) < 31}
    assert costs.value("energy", state) == really(graph, groups, state, hardware)["energy"]
    assert costs.value("energy", state) > costs.value("energy", full_state(groups))


SEEDS = [range(3), pytest.param(range(3, 100), marks=pytest.mark.slow)]


def counted_macs(model, x):
    """Multiply-accumulates of all layers, from the shapes of what they return."""
    found = []

    def count(layer, _, y):
        found.append(layer.weight.numel() * y[0, 0].numel())  # a number for a linear layer

    layers = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS, ids=["first", "further"])
def test_a_hundred_states_of_a_torchvision_model(seeds):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.mobilenet_v2(weights=None, num_classes=10).eval()
    x = torch.zeros(1, 3, 32, 32)
    graph = trace(model, as_call(model, x), train=False)
    groups = channel_groups(graph)
    costs = StructureCosts(graph, groups, HARDWARE, ("macs", "params"))
    for seed in seeds:
        state = random_state(groups, seed)
        small = shrunk(graph, groups, state).module
        params = sum(p.numel() for p in small.parameters())
        assert costs.values(state) == {"macs": counted_macs(small, x), "params": params}


def test_positions_that_may_follow_a_width_are_not_counted():
    graph, groups = traced(nets.Mixer(), nets.image())
    assert [group.name for group in groups.free] == ["embed"]
    assert list(StructureCosts(graph, groups, HARDWARE, ("sparse_macs",)).uncounted) == ["embed"]
    costs = StructureCosts(graph, groups, HARDWARE, ("macs", "params"))
    assert list(costs.uncounted) == ["embed"]
    with pytest.raises(PreconditionError, match="positions of 'mix' may follow its width"):
        costs.values({"embed": np.arange(8) < 4})
    # The number of parameters does not depend on it.
    state = {"embed": np.arange(8) < 4}
    only = StructureCosts(graph, groups, HARDWARE, ("params",))
    assert only.value("params", state) == really(graph, groups, state)["params"]
    [frozen] = [group for group in restricted(groups, graph) if group.name == "embed"]
    assert frozen.frozen
    assert "positions" in frozen.why


def test_an_embedding_that_is_the_classifier_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.Words().double().eval()
    words = torch.arange(6).reshape(2, 3)
    graph = trace(model, as_call(model, (words,)))
    groups = channel_groups(graph)
    costs = StructureCosts(graph, groups, HARDWARE, COUNTED)
    for seed in range(3):
        state = random_state(groups, seed)
        assert costs.values(state) == really(graph, groups, state)


def test_nothing_is_changed_and_nothing_runs(known, monkeypatch):
    graph, groups, _ = known("residual")
    before = copy.deepcopy(graph.module.state_dict())

    def forbidden(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(type(graph.module), "forward", forbidden)
    costs = StructureCosts(graph, groups, HARDWARE, COUNTED)
    assert costs.values(random_state(groups, 0))["macs"] > 0
    after = graph.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("key", ["ram", "archive", "beauty"])
def test_unknown_costs(known, key):
    graph, groups, costs = known("residual")
    with pytest.raises(UnsupportedBudget, match=f"{key!r} cannot be counted"):
        StructureCosts(graph, groups, HARDWARE, (key,))
    with pytest.raises(UnsupportedBudget, match=f"{key!r} cannot be counted"):
        costs.value(key, full_state(groups))


def test_a_cost_that_was_not_asked_for(known):
    _, groups, costs = known("residual")
    assert set(KEYS) - set(costs.keys) == {"size"}
    with pytest.raises(UnsupportedBudget, match="was not asked for"):
        costs.value("size", full_state(groups))


def test_a_state_that_does_not_fit(known):
    _, groups, costs = known("residual")
    with pytest.raises(ArgumentError, match="has shape"):
        costs.values({"stem": np.ones(3, dtype=bool)})
    with pytest.raises(ArgumentError, match="no channel group"):
        costs.tally({"stern": np.ones(8, dtype=bool)})
    assert costs.values({}) == costs.values(full_state(groups))
