"""Walks: the values of an ordinary run, one run in all, or as many as memory asks for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from reconstruct_nets import batches, graph_of, residual, values
from torch import nn

from energy_model.errors import PreconditionError
from passes.inputs import Call
from passes.reconstruct.walk import Walk, at_rest, read_batches

SHAPE = (2, 2, 8, 8)


def seen(model: nn.Module, call: Call) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        part.register_forward_hook(
            lambda _, x, y, path=path: found.update({path: (x[0].clone(), y.clone())})
        )
        for path, part in model.named_children()
    ]
    with torch.no_grad():
        call(model)
    for handle in handles:
        handle.remove()
    return found


def counting(model: nn.Module) -> Counter[str]:
    runs: Counter[str] = Counter()
    for path, part in model.named_children():
        part.register_forward_pre_hook(lambda *_, path=path: runs.update([path]))
    return runs


@pytest.mark.parametrize("memory", [2**30, 6000, 0])
def test_every_node_is_given_what_an_ordinary_run_gives(memory: int) -> None:
    model = residual()
    graph, given = graph_of(model, *SHAPE), list(batches(*SHAPE)(3))
    expected = [seen(model, call) for call in given]
    with at_rest(model, graph.graph_module):
        walk = Walk(graph.graph_module, given, memory)
        nodes = [node for node in walk.nodes if node.op == "call_module"]
        assert len(nodes) == 7
        for node in nodes:
            for x, y, run in zip(walk.inputs(node), walk.outputs(node), expected, strict=True):
                assert torch.equal(x, run[str(node.target)][0])
                assert torch.equal(y, run[str(node.target)][1])


def test_all_costs_one_run_and_without_memory_one_for_each_node() -> None:
    for memory, expected in ((2**30, 3), (0, 3 * 7)):
        model = residual()
        graph, runs = graph_of(model, *SHAPE), Counter[str]()
        with at_rest(model, graph.graph_module):
            walk = Walk(graph.graph_module, list(batches(*SHAPE)(3)), memory)
            runs = counting(model)
            for node in walk.nodes:
                if node.op == "call_module":
                    list(walk.inputs(node))
            list(walk.outputs(walk.calls_of("head")[0]))
        # The stem runs before all other nodes, the head only when it is asked for.
        assert runs["head"] == 3
        assert runs["stem"] == expected


def test_a_layer_that_changes_ahead_is_seen_changed() -> None:
    model = residual()
    graph, given = graph_of(model, *SHAPE), list(batches(*SHAPE)(2))
    with at_rest(model, graph.graph_module):
        walk = Walk(graph.graph_module, given)
        list(walk.inputs(walk.calls_of("stem")[0]))
        model.stem.weight.mul_(2)
        (bn,) = walk.calls_of("bn")
        for x, call in zip(walk.inputs(bn), given, strict=True):
            assert torch.equal(x, model.stem(call.args[0]))


def test_going_back_starts_anew() -> None:
    model = residual()
    graph, given = graph_of(model, *SHAPE), list(batches(*SHAPE)(1))
    with at_rest(model, graph.graph_module):
        walk = Walk(graph.graph_module, given)
        list(walk.inputs(walk.calls_of("head")[0]))
        (x,) = walk.inputs(walk.calls_of("stem")[0])
        assert torch.equal(x, given[0].args[0])


def test_inputs_that_the_model_changes_stay_as_they_are() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x.relu_()))

    model = InPlace().double().eval()
    graph, call = graph_of(model, 4, 3), Call((values(4, 3, seed=1),))
    before = call.args[0].clone()
    with at_rest(model, graph.graph_module):
        list(
            Walk(graph.graph_module, [call]).inputs(
                graph.graph_module.graph.find_nodes(op="call_module", target="second")[0]
            )
        )
    assert torch.equal(call.args[0], before)


def test_a_batch_that_the_model_refuses_is_told() -> None:
    model = residual()
    graph = graph_of(model, *SHAPE)
    with at_rest(model, graph.graph_module), pytest.raises(PreconditionError, match="stem"):
        walk = Walk(graph.graph_module, [Call((values(2, 5, 8, 8),))])
        list(walk.inputs(walk.calls_of("bn")[0]))


def test_as_many_batches_as_there_are_are_read_and_none_is_an_error() -> None:
    assert len(read_batches(batches(*SHAPE, count=3), 2)) == 2
    assert len(read_batches(batches(*SHAPE, count=3), 16)) == 3
    with pytest.raises(PreconditionError, match="no batch"):
        read_batches(batches(*SHAPE, count=0), 16)
