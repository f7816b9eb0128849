from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.rewrite.masks import Mask, attach_masks, bake_masks
from passes.tracing.trace import trace

X = torch.randn(3, 8)


def traced(model, inputs=X):
    return trace(model, as_call(model, inputs))


def every_other(graph, names=None):
    """Masks that drop the odd flat indices of every site."""
    masks = {}
    for site in graph.sites:
        if names is None or site.name in names:
            weight = graph.weight(site)
            masks[site.name] = (torch.arange(site.size) % 2 == 0).view(weight.shape)
    return masks


def recurrent():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(8, 6, num_layers=2, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0]

    return Recurrent()


def attention():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, query, key):
            return self.inner(query, key, key.clone())[0]

    return Cross()


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


MODELS = {
    "plain": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False)),
        X,
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 3)),
        torch.randn(3, 2, 6, 6),
    ),
    "tied": (tied, X),
    "lstm": (recurrent, torch.randn(3, 5, 8)),
    "attention": (attention, (torch.randn(3, 5, 8), torch.randn(3, 7, 8))),
    "half": (lambda: nn.Sequential(nn.Linear(8, 8)).bfloat16(), X.bfloat16()),
}


def plain_copy(graph, masks):
    """The model with the masked weights written by hand."""
    model = copy.deepcopy(graph.module)
    copied = ModelGraph(model, None, graph.call, graph.sites)
    with torch.no_grad():
        for name, keep in masks.items():
            copied.weight(graph.by_name[name])[~keep] = 0.0
    return model


@pytest.mark.parametrize("name", MODELS)
def test_masked_and_baked_models_compute_the_same(name):
    build, inputs = MODELS[name]
    model = build().eval()
    graph = traced(model, inputs)
    masks = every_other(graph)
    by_hand = plain_copy(graph, masks)
    expected = graph.call(by_hand)
    assert not torch.equal(graph.call(model), expected)
    attach_masks(graph, masks)
    assert torch.equal(graph.call(model), expected)
    assert torch.equal(graph.call(graph.graph_module), expected)
    bake_masks(graph)
    assert torch.equal(graph.call(model), expected)
    for key, value in by_hand.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize("name", MODELS)
def test_baking_restores_the_plain_modules(name):
    build, inputs = MODELS[name]
    model = build()
    graph = traced(model, inputs)
    classes = {path: type(module) for path, module in model.named_modules()}
    parameters = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    keys, dtypes = list(model.state_dict()), [v.dtype for v in model.state_dict().values()]
    attach_masks(graph, every_other(graph))
    assert {path: type(m) for path, m in model.named_modules()} != classes
    bake_masks(graph)
    assert {path: type(module) for path, module in model.named_modules()} == classes
    after = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    assert (list(after), after) == (list(parameters), parameters)
    assert list(model.state_dict()) == keys
    assert [v.dtype for v in model.state_dict().values()] == dtypes
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_tied_weights_stay_tied():
    model = tied()
    graph = traced(model)
    attach_masks(graph, every_other(graph))
    assert torch.equal(model[0].weight, model[2].weight)
    bake_masks(graph)
    assert model[0].weight is model[2].weight
    assert int((model[0].weight == 0).sum()) == 32
    assert len(traced(model).sites) == 1


def test_rows_of_a_packed_weight_are_masked_alone():
    model = attention()
    graph = traced(model, (torch.randn(3, 5, 8), torch.randn(3, 7, 8)))
    before = model.inner.in_proj_weight.detach().clone()
    name = "inner.in_proj_weight[8:16]"
    attach_masks(graph, {name: torch.zeros(64, dtype=torch.bool)})
    bake_masks(graph)
    after = model.inner.in_proj_weight
    assert not after[8:16].any()
    assert torch.equal(after[:8], before[:8])
    assert torch.equal(after[16:], before[16:])


def test_masks_are_boolean_buffers_of_the_state():
    model = nn.Sequential(nn.Linear(8, 4))
    graph = traced(model)
    masks = every_other(graph)
    attach_masks(graph, masks)
    state = model.state_dict()
    [key] = [k for k in state if k.endswith("keep")]
    assert state[key].dtype == torch.bool
    assert torch.equal(state[key], masks["0"])


def test_gradients_reach_kept_weights_alone():
    model = nn.Sequential(nn.Linear(8, 4))
    graph = traced(model)
    keep = every_other(graph)["0"]
    attach_masks(graph, {"0": keep})
    model(X).sum().backward()
    gradient = model[0].parametrizations.weight.original.grad
    assert not gradient[~keep].any()
    assert gradient[keep].all()


def test_what_is_dropped_is_a_positive_zero_even_of_nan():
    weight = torch.tensor([float("nan"), -1.0, -0.0, float("inf"), float("nan"), -2.0])
    keep = torch.tensor([False, False, False, False, True, True])
    masked = Mask(keep)(weight)
    assert masked[:4].tolist() == [0.0] * 4
    assert not torch.signbit(masked[:4]).any()
    assert torch.isnan(masked[4])
    assert masked[5] == -2.0
    assert Mask(keep)(weight.half()).dtype == torch.float16


def test_baking_does_not_disturb_a_copy():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    graph = traced(model)
    attach_masks(graph, every_other(graph))
    other = copy.deepcopy(model)
    expected = other(X)
    bake_masks(graph)
    assert type(model[0]) is nn.Linear
    assert parametrize.is_parametrized(other[0])
    assert torch.equal(other(X), expected)
    bake_masks(ModelGraph(other, None, graph.call, graph.sites))
    assert type(other[0]) is nn.Linear
    assert torch.equal(other(X), expected)
    assert torch.equal(model(X), expected)


def test_other_modules_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 4)))
    graph = traced(model)
    attach_masks(graph, every_other(graph, ["0"]))
    bake_masks(graph)
    assert parametrize.is_parametrized(model[1])
    assert type(model[0]) is nn.Linear
    bake_masks(graph)
    assert type(model[0]) is nn.Linear


def test_a_parametrized_layer_is_refused():
    model = nn.Sequential(nn.Linear(8, 4))
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    graph = traced(model)
    with pytest.raises(PreconditionError, match="0: the layer is parametrized already"):
        attach_masks(graph, every_other(graph))


def test_two_masks_on_one_weight_are_refused():
    graph = traced(nn.Sequential(nn.Linear(8, 4)))
    attach_masks(graph, every_other(graph))
    masks = {"0": torch.ones(4, 8, dtype=torch.bool)}
    with pytest.raises(PreconditionError, match="parametrized already"):
        attach_masks(graph, masks)
