"""The modes of a model's parts after a training in which a method replaced some of them."""

from __future__ import annotations

import torch
from torch import nn

from passes.inputs import as_call
from passes.tracing.trace import trace
from transform.training.config import TrainConfig
from transform.training.engine import training_mode


def test_a_layer_in_the_place_of_another_gets_its_mode():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)
    )
    model.eval()
    model[1].train()
    graph = trace(model, as_call(model, torch.zeros(2, 4)))
    with training_mode(graph, TrainConfig()):
        assert all(part.training for part in model.modules())
        for root in (graph.module, graph.graph_module):
            root.add_module("2", nn.Sequential(nn.Linear(4, 2)))
            root.get_submodule("1").add_module("0", nn.Sequential(nn.Linear(4, 4)))
    flags = {path: part.training for path, part in model.named_modules()}
    inside = {"1", "1.0", "1.0.0", "1.1"}
    assert {path for path, flag in flags.items() if flag} == inside
    assert "2.0" in flags


def test_a_model_in_training_mode_keeps_what_its_author_froze():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    model[1].eval()
    graph = trace(model, as_call(model, torch.zeros(2, 4)))
    with training_mode(graph, TrainConfig()):
        assert [part.training for part in model.modules()] == [True, True, False]
    assert [part.training for part in model.modules()] == [True, True, False]
