"""What cannot be traced becomes the smallest opaque leaf, with the reason and the place."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from toy_models import Apply, Block, Branch, opaque, traced, uses

from passes.graph import Leaf
from passes.inputs import as_call
from passes.tracing.symbolic import Trace, graph_module, owner, trace_mode, user_location

X = torch.randn(3, 8)


def place(function, text):
    """`file:line` of the first line of `function` that contains `text`."""
    lines, first = inspect.getsourcelines(function)
    number = next(i for i, line in enumerate(lines) if text in line)
    return f"{inspect.getsourcefile(function)}:{first + number}"


class Loop(nn.Module):
    """As many steps as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return torch.stack([self.fc(x[i]) for i in range(x.shape[0])])


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) + torch.zeros(int(x.shape[0]), 1)


class Suspicious(nn.Module):
    """Does something else with what is no tensor, which then fails when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x if isinstance(x, torch.Tensor) else x["x"])


def test_data_dependent_control_flow():
    model = nn.Sequential(nn.Linear(8, 8), Block(Branch()), nn.Linear(8, 4)).eval()
    graph = traced(model, X)
    assert opaque(graph) == ["1.inner"]
    assert "control flow" in graph.leaves[0].reason
    assert place(Branch.forward, "if x.abs()") in graph.leaves[0].reason
    assert list(uses(graph)) == ["0", "1.inner.up", "1.out", "2"]
    targets = [node.target for node in graph.graph_module.graph.nodes]
    assert "1.inner" in targets
    assert "1.out" in targets
    for x in (torch.zeros(2, 8), torch.randn(7, 8)):
        assert torch.equal(graph.graph_module(x), model(x))


@pytest.mark.parametrize(
    ("block", "text"),
    [(Loop(), "torch.stack"), (Sized(), "return")],
    ids=["loop", "int of a shape"],
)
def test_the_batch_size_is_never_baked_in(block, text):
    model = nn.Sequential(nn.Linear(8, 8), block).eval()
    graph = traced(model, X)
    assert opaque(graph) == ["1"]
    assert place(type(block).forward, text) in graph.leaves[0].reason
    assert list(uses(graph)) == ["0", "1.fc"]
    x = torch.randn(5, 8)
    assert torch.equal(graph.graph_module(x), model(x))


def test_several_leaves():
    graph = traced(nn.Sequential(Branch(), nn.Linear(8, 8), Block(Branch())), X)
    assert opaque(graph) == ["0", "2.inner"]
    assert [(d.layer, d.what) for d in graph.decisions] == [
        ("0", "kept opaque"),
        ("2.inner", "kept opaque"),
    ]


def test_a_node_that_fails_makes_its_owner_a_leaf():
    model = nn.Sequential(nn.Linear(8, 8), Suspicious(), nn.Linear(8, 4)).eval()
    graph = traced(model, X)
    assert opaque(graph) == ["1"]
    assert torch.equal(graph.graph_module(X), model(X))


@pytest.mark.slow
def test_the_whole_model_may_be_the_leaf():
    graph = traced(Branch(), X)
    assert graph.graph_module is None
    assert opaque(graph) == [""]
    assert [d.layer for d in graph.decisions] == [""]
    [site] = graph.sites
    assert (site.name, site.opaque) == ("up", True)
    assert site.note == "inside opaque leaf (the whole model)"


def test_a_graph_that_computes_something_else_is_not_used():
    model = Apply(lambda m, x: m.fc(x) * (1 if isinstance(x, torch.Tensor) else 2))
    model.fc = nn.Linear(8, 8)
    graph = traced(model, X)
    assert graph.graph_module is None
    assert graph.leaves[0].reason == "the traced graph computes something else than the model"
    assert list(uses(graph)) == ["fc"]


def test_known_leaves_stay_opaque():
    model = nn.Sequential(Block(nn.Linear(8, 8)), nn.Linear(8, 8))
    call = as_call(model, X)
    first = trace_mode(model, call)
    assert first.leaves == ()
    leaf = Leaf("0", "asked for")
    second = trace_mode(model, call, (leaf,))
    assert second.leaves == (leaf,)
    assert [str(n.target) for n in second.graph.nodes if n.op == "call_module"] == ["0", "1"]
    assert trace_mode(model, call, (Leaf("", "asked for"),)).graph is None


def test_attempts_are_bounded():
    model = nn.Sequential(*[Branch() for _ in range(4)])
    call = as_call(model, X)
    assert [leaf.path for leaf in trace_mode(model, call).leaves] == ["0", "1", "2", "3"]
    given_up = trace_mode(model, call, attempts=2)
    assert given_up.graph is None
    assert "more than 2 failures" in given_up.leaves[-1].reason


def test_no_module_without_a_graph():
    with pytest.raises(ValueError, match="opaque"):
        graph_module(nn.Linear(8, 8), Trace(None, ()))


def test_owner_of_a_node():
    model = nn.Sequential(Block(nn.Linear(8, 8)), nn.ReLU())
    graph = trace_mode(model, as_call(model, X)).graph
    owners = {str(node.target): owner(node) for node in graph.nodes if node.op == "call_module"}
    assert owners == {"0.inner": "0", "0.out": "0", "1": ""}


def test_constants_made_in_forward():
    model = Apply(lambda m, x: m.fc(x) + torch.arange(8.0), fc=nn.Linear(8, 8)).eval()
    before = set(model.__dict__)
    graph = traced(model, X)
    assert set(model.__dict__) == before
    x = torch.randn(5, 8)
    assert torch.equal(graph.graph_module(x), model(x))


def test_user_location_is_empty_when_no_user_code_failed():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    assert user_location(caught.value, nn.Linear(2, 2)) == ""


def test_a_scripted_module_is_called_as_it_is():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 4)))
    model = nn.Sequential(nn.Linear(8, 8), scripted).eval()
    graph = traced(model, X)
    assert "0" in uses(graph)
    assert torch.equal(graph.graph_module(X), model(X))
