"""The public proof: groups, states, the gated and the shrunk model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import transform
from energy_model.errors import ArgumentError, PreconditionError, TraceError
from passes.rewrite.gates import has_gates
from transform.fingerprint import state_digest


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.norm, self.back = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.back(torch.relu(self.norm(self.inner(x)))))
        return self.head(x.mean((2, 3)))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
        nn.init.uniform_(model.norm.weight, 0.5, 2.0)
        nn.init.normal_(model.norm.bias)
    return model.train()


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_anyone_can_check_the_proof():
    model = net()
    digest = state_digest(model)
    found = transform.structure(model, IMAGES)
    state = found.random_state(3)
    assert {name: int(keep.sum()) for name, keep in state.items()} == {"stem": 8, "inner": 12}
    gated, small = found.gated(state), found.shrunk(state)
    assert gated.training and small.training and model.training
    assert state_digest(model) == digest
    assert type(small) is Residual
    assert has_gates(gated) and not has_gates(small)
    with torch.no_grad():
        a, b = gated.eval()(IMAGES), small.eval()(IMAGES)
        dense = model.eval()(IMAGES)
    assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())
    assert float((a - dense).abs().max()) > 1e-2
    assert found.costs(state)["params"] == parameters(small)
    assert found.costs()["params"] == parameters(model)
    macs = transform.analyze(small, IMAGES).total.macs
    assert found.costs(state)["macs"] == macs


def test_states_are_repeatable_and_may_leave_groups_out():
    found = transform.structure(net(), IMAGES)
    first, same, other = (found.random_state(seed) for seed in (0, 0, 1))
    assert all((first[name] == same[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    part = found.shrunk({"inner": [True] * 5 + [False] * 19})
    assert (part.stem.out_channels, part.inner.out_channels) == (16, 5)
    as_tensor = found.shrunk({"inner": torch.arange(24) < 5})
    assert torch.equal(as_tensor.inner.weight, part.inner.weight)
    whole = found.shrunk({})
    assert parameters(whole) == parameters(net())


def test_the_channel_multiple_of_the_hardware():
    profile = transform.Hardware(name="vector", channel_multiple=8)
    state = transform.structure(net(), IMAGES, profile).random_state(0)
    assert {int(keep.sum()) for keep in state.values()} == {8, 16}


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"stem": [True] * 15}, "has shape .15,., and the group has 16 units"),
        ({"stem": np.ones((2, 8), bool)}, "has shape"),
        ({"stem": [1.0] * 16}, "not booleans"),
        ({"stem": [False] * 16}, "keeps 0 units, 1 is the least"),
        ({"trunk": [True]}, "no channel group 'trunk'.*stem, inner, head"),
        ({"head": [True, True, True, False]}, "all its units stay: is an output"),
        ([True], "list is no state"),
    ],
)
@pytest.mark.parametrize("what", ["gated", "shrunk", "costs"])
def test_bad_states(state, match, what):
    found = transform.structure(net(), IMAGES)
    with pytest.raises(ArgumentError, match=match):
        getattr(found, what)(state)


def test_bad_models():
    with pytest.raises(ArgumentError):
        transform.structure("resnet18", IMAGES)
    with pytest.raises(TraceError):
        transform.structure(net(), torch.zeros(1, 5, 8, 8))
    with pytest.raises(PreconditionError):
        transform.structure(nn.ReLU(), torch.zeros(1, 3))


def test_it_prints_readably_and_as_json():
    found = transform.structure(net(), IMAGES)
    text = str(found)
    assert "stem      16     1" in text
    assert "frozen: is an output of the model" in text
    assert "2 of 3 groups are free: 40 units" in text
    data = json.loads(json.dumps(found.to_dict()))
    stem = data["groups"][0]
    assert (stem["name"], stem["units"], stem["frozen"]) == ("stem", 16, False)
    assert ["back.weight", 0, "out"] in stem["members"]


def test_a_proof_in_two_lines():
    proof = transform.structure(net(), IMAGES).proof(0)
    assert proof.largest > 0
    assert proof.error <= 1e-5 * proof.largest
    assert "params" in str(proof) and "of the largest output" in str(proof)
    silent = net()
    nn.init.zeros_(silent.head.weight)
    nn.init.zeros_(silent.head.bias)
    assert "nothing is shown" in str(transform.structure(silent, IMAGES).proof(0))


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None])
def test_bad_seeds(seed):
    with pytest.raises(ArgumentError, match="seed"):
        transform.structure(net(), IMAGES).random_state(seed)


def test_a_scripted_model_is_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    with pytest.raises(ArgumentError, match="scripted"):
        transform.structure(scripted, torch.zeros(1, 4))
    with pytest.raises(ArgumentError, match="scripted"):
        transform.compress(scripted, "macs<=50%", example_inputs=torch.zeros(1, 4), method="l1")
