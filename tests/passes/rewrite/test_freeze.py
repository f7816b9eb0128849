from __future__ import annotations

import torch
from torch import nn

from passes.inputs import as_call
from passes.rewrite.freeze import freeze
from passes.tracing.trace import trace


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) if x.abs().sum() > 0 else x


def graph_of(model, inputs):
    return trace(model, as_call(model, inputs))


def convnet():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5)
    )
    with torch.no_grad():
        model(torch.randn(8, 2, 6, 6))  # running statistics that are not those of a new norm
    return model


def test_computes_what_the_model_computes_in_evaluation():
    model = convnet()
    frozen = freeze(graph_of(model, torch.randn(3, 2, 6, 6)))
    assert frozen.folded == ("1",)
    assert not any(module.training for module in frozen.module.modules())
    x = torch.randn(4, 2, 6, 6)
    assert torch.allclose(frozen.module(x), model.eval()(x), atol=1e-6)


def test_the_model_is_not_touched():
    model = convnet()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    graph = graph_of(model, torch.randn(3, 2, 6, 6))
    frozen = freeze(graph)
    with torch.no_grad():
        for parameter in frozen.module.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert [str(node.target) for node in graph.graph_module.graph.nodes].count("1") == 1


def test_weights_are_those_of_the_frozen_module_by_site():
    graph = graph_of(convnet(), torch.randn(3, 2, 6, 6))
    frozen = freeze(graph)
    assert list(frozen.weights) == ["0", "4"]
    assert frozen.weights["0"].shape == (4, 2, 3, 3)
    assert torch.equal(frozen.weights["4"], graph.module[4].weight)
    conv = frozen.module.get_submodule("0").weight
    assert frozen.weights["0"].data_ptr() == conv.data_ptr()
    assert not torch.equal(conv, graph.module[0].weight)


def test_a_model_that_is_one_opaque_leaf_is_copied():
    graph = graph_of(Opaque(), torch.randn(3, 8))
    frozen = freeze(graph)
    assert frozen.folded == ()
    assert isinstance(frozen.module, Opaque)
    assert frozen.module is not graph.module
    x = torch.randn(3, 8)
    assert torch.equal(frozen.module(x), graph.module(x))
