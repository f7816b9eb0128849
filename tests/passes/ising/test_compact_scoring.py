"""Candidates that are really cut: nothing is copied in vain, and nothing stays behind."""

from __future__ import annotations

import pytest
import structure_nets as nets
import torch
from scoring_nets import built, gated, population, seeded
from structure_nets import Net, image
from torch import nn
from torch.nn.utils import parametrize

from bench.zoo.cifar_resnet import resnet20
from energy_model.errors import PreconditionError
from passes.ising.agreement import relative_difference
from passes.ising.compact_scoring import CompactScoring
from passes.ising.loop_scoring import LoopScoring
from passes.ising.sliced_shell import SlicedShell

IMAGE_NETS = (
    "Chunk", "Halves", "Shuffle", "Transposed", "Pad", "Tied", "Functional", "Scaled", "Constant",
    "FrozenNorm", "Grouped", "PixelShuffle", "Upsampled", "Gated", "Attention", "Multihead",
    "Mixer",
)  # fmt: skip


def loaded(gates, bits, *, fold_norms=False):
    shell = SlicedShell(gates, fold_norms=fold_norms)
    with torch.no_grad():
        shell.refresh()
        shell.load(bits)
    return shell


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", IMAGE_NETS)
def test_every_structure_is_cut_as_it_is_gated(name):
    gates, _, call = gated(built(name), image(3))
    scoring, states = CompactScoring(gates), population(gates, 3)
    expected = LoopScoring(gates).outputs(states, call)
    for _ in range(2):  # the second time from plans that were kept
        assert relative_difference(scoring.outputs(states, call), expected) < 1e-12


def test_words_are_cut_too():
    words = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0))
    gates, _, call = gated(built("Words"), words)
    states = population(gates)
    expected = LoopScoring(gates).outputs(states, call)
    assert relative_difference(CompactScoring(gates).outputs(states, call), expected) < 1e-12


def test_a_depthwise_layer_of_one_channel_grows_again():
    """What a layer tells of itself is that of the state, whatever the state before it was."""
    gates, _, call = gated(built("Depthwise"), image(4))
    full = torch.ones(gates.layout.nodes, dtype=torch.bool)
    one = full.clone()
    one[gates.layout.parts["stem"]] = False
    one[gates.layout.parts["stem"].start + 3] = True
    states = torch.stack([full, one, full, population(gates, 1)[0]])
    scoring = CompactScoring(gates)
    for order in ([0, 1, 3], [1, 0], [3, 1, 0]):
        expected = LoopScoring(gates).outputs(states[order], call)
        assert relative_difference(scoring.outputs(states[order], call), expected) < 1e-12


def test_nothing_is_copied_where_nothing_is_dropped():
    gates, graph, _ = gated(built("Concat"), image(4))
    state = torch.ones(gates.layout.nodes, dtype=torch.bool)
    state[gates.layout.parts["b"].start] = False
    shell = loaded(gates, state)
    live = graph.graph_module
    for path in ("stem", "bn", "a"):
        part = shell.module.get_submodule(path)
        assert part.weight is live.get_submodule(path).weight
    assert shell.module.b.weight.shape == (4, 7, 1, 1)
    assert shell.module.head.weight.shape == (5, 19, 1, 1)
    assert (shell.module.b.out_channels, shell.module.head.in_channels) == (4, 19)


def test_slices_are_let_go_of():
    gates, graph, call = gated(built("Residual"), image(4))
    scoring = CompactScoring(gates)
    scoring.outputs(population(gates), call, "batch")
    shell = scoring._shells[False].module
    held = {id(t) for t in (*shell.parameters(), *shell.buffers())}
    assert held <= {id(t) for t in (*graph.runnable.parameters(), *graph.runnable.buffers())}


def test_it_follows_weights_that_are_trained_and_tensors_that_are_replaced():
    gates, graph, call = gated(built("Residual"), image(4))
    scoring, loop, states = CompactScoring(gates), LoopScoring(gates), population(gates)
    before = scoring.outputs(states, call)
    graph.runnable.train()
    graph.runnable(call.args[0]).square().sum().backward()
    torch.optim.SGD(graph.module.parameters(), lr=0.01).step()
    graph.module.a.weight = nn.Parameter(graph.module.a.weight.detach() * 2)
    found = scoring.outputs(states, call)
    assert relative_difference(found, loop.outputs(states, call)) < 1e-12
    assert relative_difference(found, before) > 1e-3


def test_tied_parameters_are_cut_once():
    gates, _, _ = gated(built("Tied"), image(4))
    shell = loaded(gates, population(gates)[0])
    assert shell.module.b.weight is shell.module.c.weight
    assert shell.module.b.weight.shape[0] < 8


def test_a_state_is_planned_once():
    gates, _, call = gated(built("Residual"), image(4))
    scoring, states = CompactScoring(gates), population(gates, 5)
    scoring.outputs(states[:4], call)
    scoring.outputs(states[1:], call)
    info = scoring._shells[True]._plan.cache_info()
    assert (info.misses, info.hits) == (5, 3)


def test_most_tensors_share_few_lines():
    gates, _, _ = gated(seeded(resnet20), torch.rand(2, 3, 32, 32), dtype=torch.float32)
    shell = SlicedShell(gates, fold_norms=False)
    assert len(shell._places) > 90
    assert len(shell._lines) <= 16


def test_norms_are_folded_and_still_cut():
    gates, graph, _ = gated(built("Residual"), image(4))
    bits = population(gates)[0]
    folded, plain = (loaded(gates, bits, fold_norms=fold) for fold in (True, False))
    assert not any(isinstance(p, nn.BatchNorm2d) for p in folded.module.modules())
    assert any(isinstance(p, nn.BatchNorm2d) for p in plain.module.modules())
    assert isinstance(graph.graph_module.bn, nn.BatchNorm2d)
    x = image(4)
    with torch.no_grad():
        assert relative_difference(folded.module(x), plain.module(x)) < 1e-12


def test_a_model_that_relies_on_the_order_in_memory():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 64, 5)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return self.head(x.view(x.size(0), -1))

    gates, _, call = gated(seeded(Viewed), image(4), dtype=torch.float32)
    scoring, states = CompactScoring(gates), population(gates)
    expected = LoopScoring(gates).outputs(states, call)
    assert relative_difference(scoring.outputs(states, call), expected) < 1e-5
    assert not scoring._channels_last


def test_norms_without_parameters_follow_the_width():
    class Bare(Net):
        def __init__(self):
            super().__init__(
                a=nn.GroupNorm(4, 8, affine=False),
                b=nn.BatchNorm2d(8, affine=False, track_running_stats=False),
            )

        def body(self, x):
            return self.b(self.a(x))

    gates, _, call = gated(seeded(Bare), image(4))
    states = population(gates)
    expected = LoopScoring(gates).outputs(states, call)
    assert relative_difference(CompactScoring(gates).outputs(states, call), expected) < 1e-12


def test_a_parametrized_layer_is_refused():
    class Twice(nn.Module):
        def forward(self, weight):
            return weight * 2

    gates, graph, call = gated(seeded(nets.Residual), image(4))
    parametrize.register_parametrization(graph.module.a, "weight", Twice())
    with pytest.raises(PreconditionError, match="a: the layer is parametrized"):
        CompactScoring(gates).outputs(population(gates), call)


def test_a_model_that_cannot_be_copied_is_refused():
    gates, graph, call = gated(built("Residual"), image(4))
    graph.module.a.cache = graph.module.a.weight * 2
    with pytest.raises(PreconditionError, match="cannot be copied"):
        CompactScoring(gates).outputs(population(gates), call)
