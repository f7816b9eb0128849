"""Tracing leaves the caller's model and the global random states as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from toy_models import (
    Apply,
    Attention,
    Auxiliary,
    Block,
    Branch,
    DropPath,
    FunctionalDropout,
    FunctionalNorm,
    TiedEmbedding,
    traced,
)

from energy_model.errors import PreconditionError, TraceError

X = torch.randn(4, 8)


class CountsItsCalls(nn.Module):
    """Writes into a buffer, a number and a new attribute whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        self.seen += 1
        self.calls += 1
        self.last = self.fc(x)
        return self.last


class ChangesItsInput(nn.Module):
    """Shifts its tokens in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, tokens):
        tokens += 1
        return self.fc(self.embedding(tokens))


MODELS = {
    "norms": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()), X),
    "functional": (lambda: nn.Sequential(FunctionalNorm(), FunctionalDropout()), X),
    "opaque": (lambda: nn.Sequential(Block(Branch()), Block(DropPath())), X),
    "wholly opaque": (Branch, X),
    "auxiliary": (Auxiliary, X),
    "constants": (
        lambda: Apply(lambda m, x: m.fc(x) + torch.arange(8.0), fc=nn.Linear(8, 8)),
        X,
    ),
    "lstm": (
        lambda: Apply(lambda m, x: m.r(x)[0], r=nn.LSTM(8, 6, batch_first=True, dropout=0.2)),
        torch.randn(4, 5, 8),
    ),
    "attention": (Attention, (torch.randn(4, 5, 8),) * 3),
    "tied": (TiedEmbedding, torch.randint(0, 10, (4, 5))),
    "normed weight": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8))), X),
    "noise": (
        lambda: Apply(lambda m, x: m.fc(x) + torch.rand_like(x), fc=nn.Linear(8, 8)),
        X,
    ),
    "noise of Python and numpy": (
        lambda: Apply(
            lambda m, x: m.fc(x) * random.random() * np.random.rand(),  # noqa: NPY002
            fc=nn.Linear(8, 8),
        ),
        X,
    ),
    "inputs changed in place": (ChangesItsInput, torch.zeros(3, 5, dtype=torch.int64)),
    "state written in forward": (CountsItsCalls, X),
}


def snapshot(model):
    """Everything of a model that its owner can see."""
    modules = {}
    for path, module in model.named_modules():
        hooks = {k: dict(v) for k, v in module.__dict__.items() if "hooks" in k and v}
        held = {k: id(v) for kind in ("_parameters", "_buffers", "_modules")
                for k, v in module.__dict__[kind].items()}  # fmt: skip
        plain = {k: v for k, v in module.__dict__.items() if isinstance(v, int)}
        modules[path] = (type(module), plain, list(module.__dict__), hooks, held)
    values = {k: v.detach().clone() for k, v in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    return modules, values, flags


def same(before, after):
    tensors = before[1].keys() == after[1].keys() and all(
        torch.equal(value, after[1][name]) for name, value in before[1].items()
    )
    return tensors and before[0] == after[0] and before[2] == after[2]


def random_states():
    numpy = np.random.get_state()  # noqa: NPY002 -- the global state is what must not change
    return torch.get_rng_state().tolist(), random.getstate(), (numpy[1].tolist(), *numpy[2:])


def global_flags():
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        torch.is_grad_enabled(),
    )


@pytest.mark.spread(7)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_everything_is_as_it_was(name, mode):
    build, inputs = MODELS[name]
    model = build().train(mode == "train")
    if mode == "mixed":
        for number, module in enumerate(model.modules()):
            module.training = number % 2 == 0
    copies = [t.clone() for t in (inputs if isinstance(inputs, tuple) else (inputs,))]
    before, states, flags = snapshot(model), random_states(), global_flags()
    traced(model, inputs)
    assert same(before, snapshot(model))
    assert random_states() == states
    assert global_flags() == flags
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (nn.Sequential(nn.Linear(7, 8), nn.Dropout()), TraceError),
        (nn.Sequential(nn.BatchNorm1d(8), nn.Dropout()), PreconditionError),
    ],
)
def test_also_when_it_fails(model, error):
    model[1].eval()
    before, states, flags = snapshot(model), random_states(), global_flags()
    with pytest.raises(error):
        traced(model, X)
    assert same(before, snapshot(model))
    assert random_states() == states
    assert global_flags() == flags


def _flag(model):
    model[1].training = not model[1].training


def _value(model):
    model[0].weight.data[0, 0] += 1


def _parameter(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def _hook(model):
    model[0].register_forward_hook(lambda *_: None)


def _frozen(model):
    model[0].weight.requires_grad_(False)


@pytest.mark.parametrize(
    "change",
    [
        _flag,
        _value,
        _parameter,
        _hook,
        _frozen,
        lambda m: setattr(m, "extra", 1),
        lambda m: setattr(m[0], "in_features", 9),
    ],
)
def test_a_change_would_be_seen(change):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    before = snapshot(model)
    assert same(before, snapshot(model))
    change(model)
    assert not same(before, snapshot(model))
