from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import FunctionalDropout, FunctionalNorm, seeded, traced

from passes.tracing.mode import Mode

X = torch.randn(4, 8)


def modes(graph):
    return {p: m for p, m in graph.graph_module.named_modules() if isinstance(m, Mode)}


def test_yields_the_constant_of_its_flag():
    mode = Mode(train=0.5, evaluation=None)
    assert mode() == 0.5
    assert mode.eval()() is None
    assert "train=0.5, eval=None" in repr(mode)
    again = Mode.from_config(mode.to_config())
    assert (again.train_value, again.eval_value) == (0.5, None)


def test_functional_dropout_follows_the_flag():
    graph = traced(nn.Sequential(nn.Linear(8, 8), FunctionalDropout()), X)
    assert list(modes(graph)) == ["1.mode_0"]
    module = graph.graph_module
    module.eval()
    assert not (module(X) == 0).any()
    assert torch.equal(module(X), graph.module.eval()(X))
    module.train()
    share = float((module(X) == 0).float().mean())
    assert 0.3 < share < 0.7
    assert torch.equal(seeded(3, module, X), seeded(3, graph.module.train(), X))


def test_two_dropouts_follow_their_own_flags():
    model = nn.Sequential(FunctionalDropout(), nn.Linear(64, 8), FunctionalDropout()).eval()
    model[2].train()
    graph = traced(model, X)
    assert {path: m.training for path, m in modes(graph).items()} == {
        "0.mode_0": False,
        "2.mode_1": True,
    }
    assert (graph.graph_module(X) == 0).float().mean() > 0.2
    graph.graph_module.get_submodule("2").eval()
    assert not (graph.graph_module(X) == 0).any()


def test_functional_batch_norm():
    graph = traced(FunctionalNorm(), X)
    assert list(modes(graph)) == ["mode_0"]
    module = graph.graph_module.train()
    normed = module(X)
    assert normed.mean(0).detach().numpy() == pytest.approx(0, abs=1e-5)
    assert graph.module.mean.abs().sum() > 0
    module.eval()
    assert torch.equal(module(X), graph.module.eval()(X))
    assert module(X).mean(0).abs().max() > 1e-3


def test_layers_with_a_flag_of_their_own_need_no_mode():
    graph = traced(nn.Sequential(nn.Linear(8, 64), nn.Dropout(), nn.BatchNorm1d(64)), X)
    assert modes(graph) == {}
    trained, expected = graph.graph_module.train(), graph.module.train()
    assert torch.equal(seeded(3, trained, X), seeded(3, expected, X))
    assert not torch.equal(seeded(3, trained, X), seeded(4, trained, X))
