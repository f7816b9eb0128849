"""The naive counterpart of shrinking: cut every member by its index map, and compare with gates."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.fx import Interpreter

from passes.inputs import as_call
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


def kept(units, keep):
    return (units < 0) | keep[units]


def gated(graph, groups, state):
    """The traced model with dropped channels set to zero before every reader."""
    module = copy.deepcopy(graph.graph_module)
    gates = {}
    for group in groups.free:
        for reader in group.readers:
            gate = torch.from_numpy(kept(reader.units, state[group.name]))
            gates.setdefault(reader.node, []).append((reader.dim, gate))
        for member in group.members:
            part = module.get_submodule(member.path.rpartition(".")[0])
            if isinstance(part, nn.MultiheadAttention) and member.role == "in":
                gate = torch.from_numpy(kept(member.units, state[group.name]))
                part.out_proj.weight.data[:, ~gate] = 0
    return _Gated(module, gates)


class _Gated(Interpreter):
    def __init__(self, module, gates):
        super().__init__(module)
        self.gates = gates

    def run_node(self, n):
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        first = args[0] if args else kwargs.get("input")
        for dim, gate in self.gates.get(n.name, ()):
            shape = [-1 if d == dim else 1 for d in range(first.dim())]
            first = torch.where(gate.reshape(shape), first, torch.zeros((), dtype=first.dtype))
        if n.name in self.gates:
            args = (first, *args[1:])
            kwargs = {name: value for name, value in kwargs.items() if name != "input"}
        return getattr(self, n.op)(n.target, args, kwargs)

    def __call__(self, *inputs):
        with torch.no_grad():
            return self.run(*inputs)


def sliced(graph, groups, state):
    """The traced model without the dropped channels."""
    module = copy.deepcopy(graph.graph_module)
    keep = {}
    for group in groups.free:
        for member in group.members:
            mask = kept(member.units, state[group.name])
            key = (member.path, member.attribute, member.dim)
            keep[key] = keep.get(key, True) & mask
    new = {}
    for (path, name, dim), mask in keep.items():
        old = getattr(module.get_submodule(path), name)
        # Tied parameters are cut once and stay tied.
        cuts = new.setdefault(id(old), (old, {}))[1]
        cuts[dim] = mask
    for old, cuts in new.values():
        value = old.detach()
        for dim, mask in cuts.items():
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))
        old.data = value
    for path, part in list(module.named_modules()):
        fix(module, path, part)
    return module


CONVS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def fix(module, path, part):
    """Make a layer's numbers agree with its parameters."""
    if isinstance(part, nn.ConvTranspose2d):
        if part.groups == part.in_channels and part.weight.shape[1] == 1:
            part.groups = part.weight.shape[0]
        part.in_channels, part.out_channels = part.weight.shape[0], part.weight.shape[1]
        part.out_channels *= part.groups
    elif isinstance(part, CONVS):
        if part.groups > 1 and part.groups == part.in_channels:
            part.groups = part.weight.shape[0] * part.in_channels // part.out_channels
        part.out_channels, part.in_channels = part.weight.shape[0], part.weight.shape[1]
        part.in_channels *= part.groups
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
        part.num_features = part.weight.numel()
    elif isinstance(part, nn.PReLU):
        part.num_parameters = part.weight.numel()
    elif isinstance(part, nn.GroupNorm):
        part.num_groups = part.num_groups * part.weight.numel() // part.num_channels
        part.num_channels = part.weight.numel()
    elif isinstance(part, nn.MultiheadAttention):
        owner, _, name = path.rpartition(".")
        setattr(module.get_submodule(owner), name, NarrowAttention(part))


class NarrowAttention(nn.Module):
    """`nn.MultiheadAttention` with fewer heads than its width has room for."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, query, key, value, **kwargs):
        layer, size = self.layer, self.layer.head_dim
        outputs = []
        rows = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
        for x, weight, bias in zip((query, key, value), *rows, strict=True):
            y = nn.functional.linear(x, weight, bias)
            y = y if layer.batch_first else y.transpose(0, 1)
            outputs.append(y.unflatten(-1, (-1, size)).transpose(1, 2))
        y = nn.functional.scaled_dot_product_attention(*outputs).transpose(1, 2).flatten(2)
        y = y if layer.batch_first else y.transpose(0, 1)
        return nn.functional.linear(y, layer.out_proj.weight, layer.out_proj.bias), None


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def worst_error(graph, groups, inputs, seeds=(0, 1)):
    """The largest difference of gated and sliced outputs, as a share of the largest output."""
    worst = 0.0
    for seed in seeds:
        state = random_state(groups, seed)
        small = sliced(graph, groups, state)
        assert numbers(small) < numbers(graph.graph_module)
        with torch.no_grad():
            expected = gated(graph, groups, state)(*inputs)
            found = small(*inputs)
            dense = graph.graph_module(*inputs)
        assert found.shape == expected.shape
        # The channels that were dropped count: a wrong map would show.
        assert float((dense - expected).abs().max() / expected.abs().max()) > 1e-5
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst
