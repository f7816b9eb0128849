"""Whatever is wrong with the modules and tensors of a stored graph is a `StorageError`."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from energy_model.errors import StorageError
from passes.storage.graph_json import graph_from_json, graph_state, graph_to_json


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, gain=1.0):
        y = torch.flatten(self.conv(x) * self.scale, 1).mean(dim=1)
        return {"y": y * gain, "shape": x.shape}


GRAPH = fx.symbolic_trace(Model())
DATA = json.loads(json.dumps(graph_to_json(GRAPH)))
STATE = graph_state(GRAPH)


def load(data):
    return graph_from_json(data, STATE)


@pytest.mark.parametrize(
    "description",
    [
        {"class": "os.system", "arguments": {"command": "true"}},
        {"class": "subprocess.Popen", "arguments": {"args": "true"}},
        {"class": "torch.nn.modules.conv.Conv2d", "arguments": {"nonsense": 1}},
        {"class": "torch.nn.modules.conv.Conv2d", "arguments": []},
        {"class": "torch.nn.parallel.data_parallel.DataParallel", "arguments": {}},
        {"class": "torch.jit._script.RecursiveScriptModule", "arguments": {}},
        {"class": ["torch.nn.modules.conv.Conv2d"], "arguments": {}},
        {"storable": "os.path", "config": {}},
        {"storable": "passes.storage.atomic.write_file", "config": {}},
        {"storable": "passes.__init__.x", "config": {}},
        {"storable": "passes.nowhere.Mode", "config": {}},
        {"container": "os"},
        {"container": []},
        {"custom": "os.system"},
        {"same_as": "conv"},
        {"same_as": ["conv"]},
        {"python": "import os"},
        {},
    ],
)
def test_modules_outside_the_list(description):
    data = copy.deepcopy(DATA)
    data["modules"][0] = {"path": "conv"} | description
    with pytest.raises(StorageError):
        load(data)


@pytest.mark.parametrize("path", ["forward", "__call__", "a.b", "", "graph", "_modules", 'a"b', 3])
def test_module_places(path):
    data = copy.deepcopy(DATA)
    data["modules"].append(
        {"path": path, "class": "torch.nn.modules.activation.ReLU", "arguments": {}}
    )
    with pytest.raises(StorageError, match="module"):
        load(data)


def test_modules_in_a_ring():
    data = copy.deepcopy(DATA)
    container = {"container": "torch.nn.modules.module.Module"}
    ring = [
        {"path": "a"} | container,
        {"path": "b", "same_as": "a"},
        {"path": "b.c", "same_as": "a"},
    ]
    data["modules"] += ring
    with pytest.raises(StorageError, match="damaged"):
        load(data)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "__class__"},
        {"path": "forward"},
        {"path": "conv.nothing"},
        {"path": "nowhere.weight"},
        {"kind": "method"},
        {"kind": "attribute"},
        {"kind": "buffer"},
        {"entry": "nothing"},
        {"entry": 3},
        {"tied_to": "conv.bias"},
        {"dtype": {"dtype": "load"}},
        {"dtype": "float32"},
        {"shape": [2, 1, 1, 2]},
        {"shape": "2"},
        {"requires_grad": 1},
        {"extra": 1},
    ],
)
def test_tensor_records(change):
    data = copy.deepcopy(DATA)
    next(t for t in data["tensors"] if t["path"] == "conv.weight").update(change)
    with pytest.raises(StorageError):
        load(data)


def test_a_tensor_without_a_record():
    data = copy.deepcopy(DATA)
    data["tensors"] = [t for t in data["tensors"] if t["path"] != "conv.bias"]
    with pytest.raises(StorageError, match=r"conv\.bias: .*no record of 1 tensors"):
        load(data)


@pytest.mark.parametrize(
    "flags", [None, {}, {"root": 1, "others": []}, {"root": True, "others": ["x"]}]
)
def test_training_flags(flags):
    with pytest.raises(StorageError, match="training"):
        load(DATA | {"training": flags})


def test_outputs():
    data = copy.deepcopy(DATA)
    data["nodes"].append(data["nodes"][-1] | {"name": "output_1"})
    with pytest.raises(StorageError, match="output"):
        load(data)
    with pytest.raises(StorageError, match="output"):
        load(DATA | {"nodes": DATA["nodes"][:-1]})
    with pytest.raises(StorageError, match="output"):
        load(DATA | {"nodes": []})


def places(data, prefix=()):
    yield prefix
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items if isinstance(data, dict | list) else ():
        if isinstance(value, dict | list):
            yield from places(value, (*prefix, key))
        else:
            yield (*prefix, key)


PLACES = [place for place in places(DATA) if place]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(1e308),
    st.text(max_size=4),
    st.sampled_from(
        ["conv", "x", "output", "mean", "torch.relu", "builtins.getattr", "call_method"]
    ),
    st.just([]),
    st.just({}),
    st.just({"node": "x"}),
    st.just({"tuple": []}),
)


@pytest.mark.slow
@settings(max_examples=400)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3))
def test_any_damage_is_a_storage_error_or_loads(changes):
    data = copy.deepcopy(DATA)
    for place, junk in changes:
        holder = data
        try:
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = junk
        except (KeyError, IndexError, TypeError):
            continue
    try:
        loaded = load(data)
    except StorageError as error:
        assert str(error)
    else:
        assert isinstance(loaded, fx.GraphModule)
