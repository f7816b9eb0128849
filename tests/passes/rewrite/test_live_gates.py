"""Gates in the model itself: set, trained with, and taken out again."""

from __future__ import annotations

import copy

import pytest
import torch
from slicing import outputs, random_state, randomize, relative_error, shrunk, traced
from structure_nets import Concat, Depthwise, Flat, Multihead, Residual, SqueezeExcite, image
from torch import nn

from energy_model.errors import ArgumentError, PreconditionError
from passes.ising.layout import Layout
from passes.rewrite.gate_context import GateContext, LiveGate
from passes.rewrite.gates import has_gates, insert_gates
from passes.rewrite.head_attention import HeadAttention
from passes.rewrite.live_gates import attach_gates, detach_gates, gateable
from passes.rewrite.shrink import shrink
from passes.structure.groups import channel_groups

KINDS = (Residual, Depthwise, Concat, Flat, SqueezeExcite, Multihead)


def built(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(kind())


def gated(kind):
    graph, groups = traced(built(kind), image(4))
    return graph, groups, attach_gates(graph, groups, Layout.of(groups))


def bits_of(groups, seed=0):
    return Layout.of(groups).bits(groups, random_state(groups, seed))


def test_there_is_a_gate_before_every_reader():
    graph, _, gates = gated(Concat)
    found = {
        node.name: graph.graph_module.get_submodule(node.target)
        for node in graph.graph_module.graph.nodes
        if str(node.target).startswith("gates.")
    }
    assert set(found) == {"a", "b", "head"}
    parts = gates.layout.parts
    flat = [*range(gates.layout.nodes)]
    # The head reads the concatenation of all three.
    expected = [*flat[parts["stem"]], *flat[parts["a"]], *flat[parts["b"]]]
    assert found["head"].nodes.tolist() == expected
    assert graph.rewritten
    assert graph.runnable is graph.graph_module
    assert all(gate.keep.all() and gate.training is False for gate in found.values())
    assert gates.bits.all()
    graph.graph_module.graph.lint()


def test_frozen_channels_always_stay():
    class Mixed(Concat):
        def body(self, x):
            return torch.cat([x, torch.ones_like(x[:, :1]).expand(-1, 12, -1, -1)], 1)

    graph, _, gates = gated(Mixed)
    gates.set(torch.arange(gates.layout.nodes) % 2 == 0)
    gate = next(
        p for p in graph.graph_module.modules() if isinstance(p, LiveGate) and len(p.nodes) == 20
    )
    assert gate.nodes[8:].tolist() == [gates.layout.nodes] * 12
    assert gate.keep[8:].all()


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", KINDS)
def test_set_and_detached_and_cut_are_the_same(kind):
    graph, groups, gates = gated(kind)
    plain, _ = traced(built(kind), image(4))
    x = [image(4)]
    dense = outputs(plain.graph_module, x)
    assert relative_error(outputs(graph.runnable, x), dense) < 1e-12
    for seed in (0, 1):
        bits = bits_of(groups, seed)
        gates.set(bits)
        state = gates.layout.state(bits)
        found = outputs(graph.runnable, x)
        assert relative_error(found, outputs(insert_gates(plain, groups, state), x)) < 1e-12
        assert relative_error(found, dense) > 1e-5
        assert torch.equal(gates.bits, bits)
    detach_gates(graph, gates)
    assert not has_gates(graph.graph_module)
    assert not graph.rewritten
    assert [str(n) for n in graph.graph_module.graph.nodes] == [
        str(n) for n in plain.graph_module.graph.nodes
    ]
    names = [path for path, _ in graph.graph_module.named_modules()]
    assert names == [path for path, _ in plain.graph_module.named_modules()]
    assert relative_error(outputs(graph.runnable, x), dense) < 1e-12
    small = shrunk(graph, groups, state)
    assert relative_error(outputs(small.runnable, x), found) < 1e-5


def losses(model, optimizer, steps):
    model.train()
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(image(4)).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_goes_on_from_gated_to_cut(kind):
    """The cut model trains as the gated one would have; momentum of what is left goes on."""
    graph, groups, gates = gated(kind)
    optimizer = torch.optim.SGD(graph.module.parameters(), 0.01, 0.9, weight_decay=0.01)
    bits = bits_of(groups)
    gates.set(bits)
    losses(graph.runnable, optimizer, 2)
    expected = losses(*copy.deepcopy((graph.runnable, optimizer)), 3)
    detach_gates(graph, gates)
    shrink(graph, groups, gates.layout.state(bits), optimizer)
    found = losses(graph.runnable, optimizer, 3)
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(set(found)) == 3


@pytest.mark.spread(3)
@pytest.mark.parametrize("kind", KINDS)
def test_what_touches_dropped_nodes_gets_no_gradient(kind):
    graph, groups, gates = gated(kind)
    bits = bits_of(groups)
    gates.set(bits)
    graph.runnable.train()
    graph.runnable(image(4)).square().sum().backward()
    state, checked = gates.layout.state(bits), 0
    for group in groups.free:
        for member in group.members:
            tensor = getattr(graph.module.get_submodule(member.path), member.attribute)
            if tensor is None or tensor.grad is None:
                continue
            lines = tensor.grad.movedim(member.dim, 0).reshape(len(member.units), -1).abs().sum(1)
            dropped = torch.from_numpy((member.units >= 0) & ~state[group.name][member.units])
            assert bool((lines[dropped] == 0).all()), member.name
            checked += int(dropped.sum())
    assert checked > 0


def test_dropped_infinities_become_zero():
    graph, _, gates = gated(Residual)
    bits = torch.ones(gates.layout.nodes, dtype=torch.bool)
    bits[gates.layout.parts["a"].start] = False
    row = gates.rows(bits[None])[0]
    with gates.acting(row):
        expected = outputs(graph.runnable, [image(4)])
    for value in (torch.inf, torch.nan):
        with torch.no_grad():
            graph.module.a.bias[0] = value
        with gates.acting(row):
            assert torch.equal(outputs(graph.runnable, [image(4)]), expected)
    gates.set(torch.ones_like(bits))
    assert outputs(graph.runnable, [image(4)]).isnan().any()


def test_heads_are_gated_inside_and_torch_s_layer_comes_back():
    graph, groups = traced(built(Multihead), image(4))
    layer, names = graph.module.attention, list(graph.module.state_dict())
    gates = attach_gates(graph, groups, Layout.of(groups))
    for model in (graph.module, graph.graph_module):
        assert isinstance(model.attention, HeadAttention)
        assert model.attention.in_proj_weight is layer.in_proj_weight
    bits = torch.ones(gates.layout.nodes, dtype=torch.bool)
    bits[gates.layout.parts["attention"].start + 1] = False
    gates.set(bits)
    assert graph.module.attention.gate.keep.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    graph.runnable.train()
    detach_gates(graph, gates)
    assert graph.module.attention is graph.graph_module.attention is layer
    assert layer.training
    assert layer.out_proj.training
    assert list(graph.module.state_dict()) == names


def test_heads_that_were_cut_before_are_gated_again():
    graph, groups = traced(built(Multihead), image(4))
    shrink(graph, groups, {"attention": [True, False, True]})
    left = channel_groups(graph)
    gates = attach_gates(graph, left, Layout.of(left))
    bits = bits_of(left)
    gates.set(bits)
    found = outputs(graph.runnable, [image(4)])
    detach_gates(graph, gates)
    assert isinstance(graph.module.attention, HeadAttention)
    small = shrunk(graph, left, gates.layout.state(bits))
    assert relative_error(outputs(small.runnable, [image(4)]), found) < 1e-12


def test_heads_of_a_layer_with_hooks_stay():
    graph, groups = traced(built(Multihead), image(4))
    assert gateable(graph, groups).groups == groups.groups
    graph.module.attention.register_forward_hook(lambda *_: None)
    with pytest.raises(PreconditionError, match="attention: the layer has hooks"):
        attach_gates(graph, groups, Layout.of(groups))
    assert not has_gates(graph.graph_module)
    found = gateable(graph, groups)
    assert found.by_name["attention"].why == "heads of a layer with hooks"
    assert [d.layer for d in found.decisions][-1] == "attention"
    gates = attach_gates(graph, found, Layout.of(found))
    assert "attention" not in gates.layout.names
    assert isinstance(graph.module.attention, nn.MultiheadAttention)


def test_gates_move_and_are_copied_with_the_model():
    graph, groups, gates = gated(Residual)
    twin = copy.deepcopy(graph.graph_module)
    contexts = {id(p.context) for p in twin.modules() if isinstance(p, LiveGate)}
    assert len(contexts) == 1
    assert id(gates.context) not in contexts
    gates.set(bits_of(groups))
    kept = [p.keep.all() for p in twin.modules() if isinstance(p, LiveGate)]
    assert all(kept)
    assert {p.nodes.device.type for p in twin.to("meta").modules() if isinstance(p, LiveGate)} == {
        "meta"
    }


def test_another_state_acts_for_a_while():
    graph, groups, gates = gated(Residual)
    first, second = bits_of(groups, 0), bits_of(groups, 1)
    gates.set(first)
    expected = outputs(graph.runnable, [image(4)])
    with pytest.raises(KeyError), gates.acting(gates.rows(second[None])[0]):
        assert relative_error(outputs(graph.runnable, [image(4)]), expected) > 1e-5
        raise KeyError
    assert torch.equal(outputs(graph.runnable, [image(4)]), expected)


def test_factors_multiply():
    gate = LiveGate(torch.tensor([1, 2, 0]), 1, GateContext(torch.tensor([0.5, 2.0, 1.0])))
    assert gate(torch.ones(1, 3)).tolist() == [[2.0, 1.0, 0.5]]


def test_what_does_not_fit_is_refused():
    graph, groups = traced(built(Residual), image(4))
    layout = Layout.of(groups)
    with pytest.raises(ArgumentError, match="layout"):
        attach_gates(graph, groups, Layout(layout.names[1:], layout.sizes[1:]))
    gates = attach_gates(graph, groups, layout)
    with pytest.raises(ArgumentError, match="keep-state"):
        gates.set(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="1 is the least"):
        gates.set(torch.zeros(layout.nodes, dtype=torch.bool))
    assert gates.bits.all()
    other, _ = traced(built(Residual), image(4))
    with pytest.raises(ArgumentError, match="another model"):
        detach_gates(other, gates)


def test_a_model_without_a_graph_is_refused():
    graph, groups = traced(built(Residual), image(4))
    graph.graph_module = None
    with pytest.raises(PreconditionError, match="no gate can be placed"):
        attach_gates(graph, groups, Layout.of(groups))
    assert gateable(graph, groups) is groups
