"""Saved folders: everything comes back, with and without the user's own class."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transform_nets import (
    INPUTS,
    Branching,
    HoldsOwnLeaf,
    OwnLeaf,
    Recurrent,
    SmallConv,
    TiedNet,
    made,
)

import transform
from transform.fingerprint import state_digest

NEEDS_CLASS = (Branching, HoldsOwnLeaf)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Result and folder for a class of model; every class is compressed once."""
    root, done = tmp_path_factory.mktemp("saved"), {}

    def get(model_class):
        if model_class not in done:
            model, example = made(model_class)
            valid = None
            if model_class is SmallConv:
                valid = [(example, torch.tensor([0, 1]))]
            result = transform.compress(
                model, "nonzeros<=40%", example_inputs=example, valid=valid, method="energy"
            )
            folder = result.save(root / model_class.__name__)
            done[model_class] = result, folder
        return done[model_class]

    return get


def outputs(result, example_of):
    example = made(example_of)[1]
    model = copy.deepcopy(result.model).eval()
    with torch.no_grad():
        if isinstance(example, dict):
            return model(example)
        return model(*example) if isinstance(example, tuple) else model(example)


@pytest.mark.spread(1)
@pytest.mark.parametrize("model_class", INPUTS)
def test_everything_comes_back_with_the_users_class(saved, model_class):
    result, folder = saved(model_class)
    fresh = made(model_class, seed=9)[0]
    untouched = state_digest(fresh)
    loaded = transform.load(folder, model=fresh)
    assert state_digest(fresh) == untouched
    assert type(loaded.model) is model_class
    assert state_digest(loaded.model) == state_digest(result.model)
    assert loaded.model.training == result.model.training
    for name in ("certificate", "decisions", "plan", "costs", "method", "config", "limits"):
        assert getattr(loaded, name) == getattr(result, name), name
    assert loaded.metrics == result.metrics
    assert loaded.history == result.history
    assert repr(loaded) == repr(result)
    assert loaded.certificate.source.sha256 == state_digest(loaded.model)


@pytest.mark.spread(2)
@pytest.mark.parametrize("model_class", [c for c in INPUTS if c not in NEEDS_CLASS])
def test_the_graph_alone_computes_the_same(saved, model_class):
    result, folder = saved(model_class)
    loaded = transform.load(folder)
    assert isinstance(loaded.model, torch.fx.GraphModule)
    assert type(loaded.model).__name__ == model_class.__name__
    assert loaded.certificate == result.certificate
    assert loaded.model.training == result.model.training
    a, b = outputs(result, model_class), outputs(loaded, model_class)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert transform.analyze(loaded.model, made(model_class)[1]).total == result.costs.after.total


@pytest.mark.slow
def test_a_loaded_result_exports_the_same_file(saved, tmp_path):
    result, folder = saved(SmallConv)
    loaded = transform.load(folder, model=SmallConv())
    first = result.export(tmp_path / "a" / "net.onnx")
    second = loaded.export(tmp_path / "b" / "net.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.certificate.read_bytes() == second.certificate.read_bytes()


@pytest.mark.slow
def test_a_loaded_graph_exports_with_its_certificate(saved, tmp_path):
    from bench.check_certificate import check

    exported = transform.load(saved(TiedNet)[1]).export(tmp_path / "net.onnx")
    assert check(exported.certificate) == []


def test_a_loaded_result_can_be_saved_again(saved, tmp_path):
    result, folder = saved(Recurrent)
    for number, model in enumerate((None, Recurrent())):
        again = transform.load(folder, model).save(tmp_path / str(number))
        assert state_digest(transform.load(again, Recurrent()).model) == state_digest(result.model)


def test_ties_are_saved_once_and_restored(saved):
    result, folder = saved(TiedNet)
    assert result.model.first.weight is result.model.second.weight
    stored = load_file(folder / "weights.safetensors")
    assert sum(t.shape == (8, 8) for t in stored.values()) == 1
    for model in (None, TiedNet()):
        loaded = transform.load(folder, model).model
        assert loaded.first.weight is loaded.second.weight


def test_a_model_that_could_not_be_traced_needs_its_class(saved):
    folder = saved(Branching)[1]
    with pytest.raises(transform.StorageError, match=r"transform_nets\.Branching.*Pass model="):
        transform.load(folder)


def test_a_leaf_of_the_users_own_needs_its_class(saved):
    folder = saved(HoldsOwnLeaf)[1]
    with pytest.raises(transform.StorageError, match=r"^leaf: .*transform_nets\.OwnLeaf.*model="):
        transform.load(folder)
    assert isinstance(transform.load(folder, HoldsOwnLeaf()).model.leaf, OwnLeaf)


@pytest.mark.parametrize("other", [nn.Linear(3, 3), nn.Sequential(nn.Conv2d(2, 7, 3)), TiedNet()])
def test_a_model_of_another_shape_is_refused(saved, other):
    folder = saved(SmallConv)[1]
    with pytest.raises(transform.StorageError, match=r"do not fit.*SmallConv"):
        transform.load(folder, other)


@pytest.mark.parametrize("other", [nn.Sequential(nn.Linear(4, 4)), nn.Identity()])
def test_a_model_that_lacks_layers_is_refused(tmp_path, other):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    result = transform.compress(model, "nonzeros<=50%", example_inputs=torch.zeros(1, 4))
    folder = result.save(tmp_path / "saved")
    with pytest.raises(transform.StorageError, match="do not fit"):
        transform.load(folder, other)


@pytest.mark.parametrize("other", ["net", nn.Linear, 5])
def test_what_is_no_model_is_refused(saved, other):
    folder = saved(SmallConv)[1]
    with pytest.raises(transform.ArgumentError, match=r"^model: .*not a torch\.nn\.Module"):
        transform.load(folder, other)


@pytest.mark.parametrize("given", [None, SmallConv()], ids=["graph", "class"])
def test_training_modes_come_back(tmp_path, given):
    model, example = made(SmallConv)
    model.train()
    model.norm.eval()
    result = transform.compress(model, "nonzeros<=40%", example_inputs=example)
    loaded = transform.load(result.save(tmp_path / "saved"), given)
    assert loaded.model.training
    assert loaded.model.conv.training
    assert not loaded.model.norm.training


def test_the_folder_holds_no_data_no_pickle_and_no_code(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    example = torch.full((2, 4), 0.123456789)
    result = transform.compress(model, "nonzeros<=50%", example_inputs=example)
    folder = result.save(tmp_path / "saved")
    files = sorted(os.listdir(folder))
    assert files == ["compressed.json", "report.txt", "weights.safetensors"]
    stored = load_file(folder / "weights.safetensors")
    assert not any((t == example[0, 0]).any() for t in stored.values())
    assert (folder / "report.txt").read_text().strip() == repr(result).strip()
    description = json.loads((folder / "compressed.json").read_text())
    assert (description["format"], description["version"]) == ("transform-compressed", 1)


@pytest.mark.slow
def test_the_same_result_is_saved_as_the_same_bytes(tmp_path):
    model, example = made(SmallConv)
    result = transform.compress(model, "nonzeros<=40%", example_inputs=example)
    first = result.save(tmp_path / "first")
    result.export(tmp_path / "net.onnx")
    again = result.save(tmp_path / "again")
    assert sorted(os.listdir(first)) == sorted(os.listdir(again))
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_loading_leaves_the_random_state_alone(saved):
    folder = saved(SmallConv)[1]
    state = torch.get_rng_state()
    transform.load(folder)
    assert torch.equal(torch.get_rng_state(), state)
