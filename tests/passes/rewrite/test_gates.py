"""Gates set to zero what is dropped wherever it is read, and nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from slicing import outputs, random_state, randomize, relative_error, shrunk, traced
from structure_nets import (
    Attention,
    Concat,
    Functional,
    Halves,
    Mixer,
    Multihead,
    Net,
    Pad,
    Residual,
    Shuffle,
    SqueezeExcite,
    Tied,
    Transposed,
    Words,
    image,
)
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError, UnsupportedLayer
from passes.rewrite.gates import Gate, has_gates, insert_gates
from passes.rewrite.head_attention import HeadAttention
from passes.structure.groups import channel_groups
from passes.structure.state import full_state, kept_along


def gate(keep, dim):
    return Gate(torch.tensor(keep), dim)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_gate_keeps_the_type(dtype):
    x = torch.arange(1, 7).reshape(2, 3).to(dtype)
    found = gate([True, False, True], 1)(x)
    assert found.dtype == dtype
    assert found.tolist() == [[1, 0, 3], [4, 0, 6]]


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_a_gate_acts_along_its_dimension(dim):
    x = torch.rand(3, 3, 3)
    keep = torch.tensor([False, True, True])
    expected = x.clone().movedim(dim, 0)
    expected[0] = 0
    assert torch.equal(Gate(keep, dim)(x), expected.movedim(0, dim))


def test_a_dropped_infinity_becomes_zero_and_a_kept_one_stays():
    x = torch.tensor([[torch.inf, torch.nan, -torch.inf, torch.nan, torch.inf]])
    found = gate([False, False, False, True, True], 1)(x)
    assert torch.equal(found[0, :3], torch.zeros(3))
    assert torch.isnan(found[0, 3])
    assert found[0, 4] == torch.inf


def test_a_gate_is_in_the_state_dict():
    assert list(gate([True], 0).state_dict()) == ["keep"]
    assert "1 of 2 along 0" in repr(gate([True, False], 0))


def without_columns(graph, groups, state):
    """The other way to hide channels: nobody has weights for them."""
    module = copy.deepcopy(graph.graph_module)
    for group in groups.free:
        for member in group.members:
            if member.role == "in":
                tensor = getattr(module.get_submodule(member.path), member.attribute)
                dropped = ~torch.from_numpy(kept_along(member.units, state[group.name]))
                tensor.data.movedim(member.dim, 0)[dropped] = 0
    return module


NETS = (
    Residual, Concat, Halves, Shuffle, SqueezeExcite, Transposed, Pad, Functional, Attention,
    Multihead, Mixer,
)  # fmt: skip


@pytest.mark.spread(4)
@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gated_model_is_one_without_the_weights_that_read(build, seed):
    torch.manual_seed(seed)
    graph, groups = traced(randomize(build()), image())
    state = random_state(groups, seed)
    gated = insert_gates(graph, groups, state)
    found, expected = (
        outputs(model, [image()]) for model in (gated, without_columns(graph, groups, state))
    )
    assert relative_error(found, expected) < 1e-12
    assert relative_error(found, outputs(graph.graph_module, [image()])) > 1e-5


def gates_of(module):
    """Every gate's path, the node that it stands before, and how many channels it keeps."""
    found = {}
    for node in module.graph.nodes:
        part = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(part, Gate):
            [reader] = node.users
            found[reader.name] = (node.target, int(part.keep.sum()), part.dim)
    return found


def test_gates_stand_before_the_readers_of_groups_that_lose_units():
    graph, groups = traced(Concat(), image())
    state = full_state(groups)
    state["a"][2:] = False
    gated = insert_gates(graph, groups, state)
    # `b` reads `a` alone; the head reads all three.
    assert gates_of(gated) == {"b": ("gates.b", 2, 1), "head": ("gates.head", 20 - 5, 1)}
    state["stem"][:3] = False
    state["b"][1] = False
    again = insert_gates(graph, groups, state)
    expected = {"a": ("gates.a", 5, 1), "b": ("gates.b", 2, 1), "head": ("gates.head", 11, 1)}
    assert gates_of(again) == expected


def test_a_state_that_keeps_all_needs_no_gate():
    graph, groups = traced(Multihead(), image())
    gated = insert_gates(graph, groups, full_state(groups))
    assert not has_gates(gated)
    assert torch.equal(gated(image()), graph.graph_module(image()))
    assert isinstance(gated.attention, nn.MultiheadAttention)


def test_only_what_reads_is_gated_not_who_else_uses_the_tensor():
    """The bypass of a residual block goes on ungated."""
    graph, groups = traced(Residual(), image())
    state = full_state(groups)
    state["stem"][4:] = False
    gated = insert_gates(graph, groups, state)
    [gate_node] = [n for n in gated.graph.nodes if n.name == gates_of_nodes(gated)["a"]]
    [source] = gate_node.args
    assert {user.op for user in source.users} == {"call_module", "call_function"}


def gates_of_nodes(module):
    nodes = [n for n in module.graph.nodes if str(n.target).startswith("gates.")]
    return {next(iter(n.users)).name: n.name for n in nodes}


def test_attention_gets_its_gate_inside():
    graph, groups = traced(Multihead(), image())
    state = full_state(groups)
    state["attention"][1] = False
    gated = insert_gates(graph, groups, state)
    assert isinstance(gated.attention, HeadAttention)
    assert gated.attention.gate.keep.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert has_gates(gated)
    assert not has_gates(graph.graph_module)
    assert isinstance(graph.graph_module.attention, nn.MultiheadAttention)
    assert graph.graph_module.attention is graph.module.attention


def test_heads_that_are_removed_can_be_gated_further():
    graph, groups = traced(randomize(Multihead()), image())
    small = shrunk(graph, groups, {"attention": np.array([True, False, True])})
    left = channel_groups(small)
    gated = insert_gates(small, left, {"attention": np.array([False, True])})
    direct = insert_gates(graph, groups, {"attention": np.array([False, False, True])})
    assert relative_error(outputs(gated, [image()]), outputs(direct, [image()])) < 1e-12


def test_the_model_is_left_alone_and_shares_nothing_with_the_copy():
    torch.manual_seed(0)
    graph, groups = traced(randomize(Tied()), image())
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    nodes = [str(node) for node in graph.graph_module.graph.nodes]
    gated = insert_gates(graph, groups, random_state(groups, 0))
    mine = {t.data_ptr() for t in (*graph.module.parameters(), *graph.module.buffers())}
    assert not mine & {t.data_ptr() for t in (*gated.parameters(), *gated.buffers())}
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.zero_()
    assert all(torch.equal(before[n], v) for n, v in graph.module.state_dict().items())
    assert [str(node) for node in graph.graph_module.graph.nodes] == nodes


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(training):
    graph, groups = traced(Multihead(), image())
    for root in (graph.module, graph.graph_module):
        root.train(training)
        root.up.train(not training)
    gated = insert_gates(graph, groups, random_state(groups, 0))
    flags = {path: part.training for path, part in gated.named_modules()}
    assert flags.pop("up") is not training
    assert set(flags.values()) == {training}


def test_a_model_with_modules_of_the_same_name():
    class Named(Net):
        def __init__(self):
            super().__init__(gates=nn.Conv2d(8, 8, 1), gates_2=nn.Sequential(nn.Conv2d(8, 8, 1)))

        def body(self, x):
            return self.gates_2(self.gates(x))

    graph, groups = traced(randomize(Named()), image())
    state = random_state(groups, 0)
    gated = insert_gates(graph, groups, state)
    assert {path.split(".")[0] for path, *_ in gates_of(gated).values()} == {"gates_3"}
    small = shrunk(graph, groups, state).graph_module
    assert relative_error(outputs(gated, [image()]), outputs(small, [image()])) < 1e-12


def test_dropped_channels_get_no_gradient():
    graph, groups = traced(randomize(Residual()), image())
    state = full_state(groups)
    state["a"][:4] = False
    gated = insert_gates(graph, groups, state)
    gated(image()).square().sum().backward()
    gradient = gated.a.weight.grad.flatten(1).abs().sum(1)
    assert (gradient != 0).tolist() == [False] * 4 + [True] * 2


def test_word_models_are_gated():
    torch.manual_seed(0)
    words = torch.randint(0, 11, (2, 7))
    graph, groups = traced(randomize(Words()), words)
    state = random_state(groups, 0)
    found = outputs(insert_gates(graph, groups, state), [words])
    assert relative_error(found, outputs(shrunk(graph, groups, state).module, [words])) < 1e-12


def test_a_wrong_state_is_refused():
    graph, groups = traced(Residual(), image())
    with pytest.raises(ArgumentError, match="8 units"):
        insert_gates(graph, groups, {"stem": np.ones(7, dtype=bool)})


def test_a_model_without_a_graph_is_refused():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(x) if float(x.sum()) > 0 else self.head(-x)

    graph, groups = traced(Opaque(), torch.rand(2, 3, dtype=torch.float64))
    with pytest.raises(PreconditionError, match=r"Opaque: .* no gate can be placed. The decisions"):
        insert_gates(graph, groups, {})


def test_attention_that_attends_to_zeros_cannot_lose_heads():
    model = Multihead()
    model.attention.add_zero_attn = True
    _, groups = traced(model, image())
    assert "attends to a zero of its own" in groups.by_name["attention"].why
    with pytest.raises(UnsupportedLayer, match=r"add_zero_attn"):
        HeadAttention.of(model.attention)


def test_a_model_that_cannot_be_copied_is_refused():
    graph, groups = traced(Residual(), image())
    graph.graph_module.a.cache = graph.graph_module.a.weight * 2
    with pytest.raises(PreconditionError, match="cannot be copied"):
        insert_gates(graph, groups, random_state(groups, 0))
