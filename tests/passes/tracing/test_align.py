from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import Auxiliary, Block, DropPath, FunctionalDropout, opaque, seeded, traced, uses

from passes.inputs import as_call
from passes.tracing.align import Difference, Mismatch, compare
from passes.tracing.symbolic import Trace, trace_mode

X = torch.randn(4, 8)


def both(model):
    call = as_call(model, X)
    return trace_mode(model.eval(), call), trace_mode(model.train(), call)


def test_equal_graphs_have_no_difference():
    assert compare(*both(nn.Sequential(nn.Linear(8, 8), nn.Dropout()))) == []


def test_a_constant_that_differs():
    evaluation, training = both(FunctionalDropout())
    [difference] = compare(evaluation, training)
    assert isinstance(difference, Difference)
    assert difference.train is True
    assert difference.node in evaluation.graph.nodes
    assert compare(evaluation, evaluation) == []


@pytest.mark.parametrize(
    ("model", "mismatch"),
    [
        (
            nn.Sequential(nn.Linear(8, 8), DropPath(), nn.Linear(8, 8)),
            Mismatch(3, ("1", "")),
        ),
        (
            nn.Sequential(nn.Linear(8, 8), Block(DropPath()), nn.Linear(8, 8)),
            Mismatch(3, ("1.inner", "1")),
        ),
        (
            nn.Sequential(Block(nn.Sequential(DropPath(), DropPath())), nn.ReLU()),
            Mismatch(2, ("0.inner.1", "0.inner.0", "0.inner")),
        ),
        (Auxiliary(), Mismatch(2, ("",))),
    ],
)
def test_a_structure_that_differs_names_its_place_and_its_owners(model, mismatch):
    found = compare(*both(model))
    assert isinstance(found, Mismatch)
    assert found.index == mismatch.index
    assert found.suspects[-1] == mismatch.suspects[-1]
    assert set(found.suspects) == set(mismatch.suspects)


def test_an_opaque_model_differs_as_a_whole():
    evaluation, _ = both(nn.Linear(8, 8))
    assert compare(evaluation, Trace(None, ())) == Mismatch(0, ("",))
    assert compare(Trace(None, ()), evaluation) == Mismatch(0, ("",))


def test_a_submodule_of_two_structures_becomes_a_leaf():
    model = nn.Sequential(nn.Linear(8, 8), Block(DropPath()), nn.Linear(8, 4))
    graph = traced(model, X)
    assert opaque(graph) == ["1.inner"]
    [leaf] = graph.leaves
    assert leaf.reason == "its structure differs between training and evaluation mode"
    assert [(d.layer, d.what) for d in graph.decisions] == [("1.inner", "kept opaque")]
    assert list(uses(graph)) == ["0", "1.inner.fc", "1.out", "2"]
    for flag in (False, True):
        model.train(flag)
        graph.graph_module.train(flag)
        assert torch.equal(seeded(5, graph.graph_module, X), seeded(5, model, X))


def test_every_submodule_of_two_structures_becomes_a_leaf():
    graph = traced(nn.Sequential(DropPath(), nn.Linear(8, 8), DropPath()), X)
    assert sorted(opaque(graph)) == ["0", "2"]


def test_a_model_of_two_structures_keeps_the_evaluation_and_says_so():
    graph = traced(Auxiliary(), X)
    [decision] = graph.decisions
    assert (decision.layer, decision.what) == ("", "traced in evaluation mode only")
    assert graph.leaves == ()
    assert torch.equal(graph.graph_module(X), graph.module.eval()(X))
