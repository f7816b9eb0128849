"""The proof that a model may lose channels: gated and shrunk compute the same."""

from __future__ import annotations

import copy

import numpy as np
import torch

from passes.inputs import as_call
from passes.rewrite.gates import has_gates, insert_gates
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups
from passes.tracing.trace import trace


def traced(model, *inputs):
    graph = trace(model.double().eval(), as_call(model, inputs))
    return graph, channel_groups(graph)


def randomize(model, seed=0):
    """Give every vector and every near-zero tensor values of its own, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if tensor.dim() < 2 or float(tensor.abs().max()) < 1e-4:
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return model


def random_state(groups, seed):
    """For every free group some of its units, not all."""
    generator = np.random.default_rng(seed)
    state = {}
    for group in groups.free:
        keep = np.zeros(group.units, dtype=bool)
        count = generator.integers(group.units // 3, group.units - 1) + 1
        keep[generator.permutation(group.units)[:count]] = True
        state[group.name] = keep
    return state


def shrunk(graph, groups, state, optimizer=None):
    """A shrunk copy of a graph."""
    small = copy.deepcopy(graph)
    shrink(small, groups, state, optimizer)
    return small


def outputs(model, inputs):
    with torch.no_grad():
        return model(*(x.clone() for x in inputs))


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def relative_error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def worst_error(graph, groups, inputs, seeds=(0, 1)):
    """The largest difference of gated and shrunk outputs, as a share of the largest output."""
    worst = 0.0
    dense = outputs(graph.graph_module, inputs)
    for seed in seeds:
        state = random_state(groups, seed)
        small = shrunk(graph, groups, state)
        assert numbers(small.graph_module) < numbers(graph.graph_module)
        assert not has_gates(small.graph_module)
        expected = outputs(insert_gates(graph, groups, state), inputs)
        # The channels that were dropped count: a wrong map would show.
        assert relative_error(dense, expected) > 1e-5
        for model in (small.graph_module, small.runnable):
            worst = max(worst, relative_error(outputs(model, inputs), expected))
    return worst
