from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from energy_model.errors import StorageError
from passes.storage import modules
from passes.storage.modules import build_module, describe_module, same_structure, storable


@storable
class Scale(nn.Module):
    """A leaf of ours, as passes define them."""

    def __init__(self, factor, shape, table):
        super().__init__()
        self.factor, self.shape = factor, shape
        self.register_buffer("table", torch.zeros(shape) if table is None else table)

    def forward(self, x):
        return x * self.factor

    def to_config(self):
        return {"factor": self.factor, "shape": self.shape, "table": None}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def rebuild(module):
    description = json.loads(json.dumps(describe_module(module, "layer")))
    return description, build_module(description, "layer", {})


def test_a_storable_class_comes_back():
    module = Scale(float("nan"), (2, 3), None)
    description, rebuilt = rebuild(module)
    assert description["storable"].endswith("Scale")
    assert same_structure(module, rebuilt)
    assert rebuilt.table.is_meta  # values come from the state
    assert rebuilt.shape == (2, 3)


def test_a_storable_class_that_does_not_rebuild_itself_is_custom():
    module = Scale(2, (2, 3), torch.zeros(5))
    assert list(describe_module(module, "layer")) == ["custom"]


def test_storable_asks_for_its_protocol():
    with pytest.raises(TypeError, match="to_config and from_config"):
        storable(nn.Identity)
    assert not any(cls is nn.Identity for cls in modules._storables.values())


def test_a_storable_class_of_ours_is_imported_when_needed(monkeypatch):
    pytest.importorskip("passes.tracing.mode")
    name = "passes.tracing.mode.Mode"
    config = {"train": {"tuple": [1, 0.5]}, "evaluation": None}
    monkeypatch.delitem(modules._storables, name)
    with pytest.raises(StorageError, match="allow-list"):
        build_module({"storable": "nowhere.Mode", "config": config}, "mode", {})
    imported = []
    registry = modules._storables

    def importing(package):
        from passes.tracing.mode import Mode

        imported.append(package)
        registry[name] = Mode

    monkeypatch.setattr(modules.importlib, "import_module", importing)
    built = build_module({"storable": name, "config": config}, "mode", {})
    assert imported == ["passes.tracing.mode"]
    assert (built.train_value, built.eval_value) == ((1, 0.5), None)


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (nn.MultiheadAttention(4, 2), lambda m: setattr(m, "num_heads", 1)),
        (nn.MultiheadAttention(4, 2, dropout=0.5), lambda m: setattr(m, "dropout", 0.0)),
        (nn.BatchNorm2d(3), lambda m: setattr(m, "momentum", 0.2)),
        (nn.Linear(3, 3), lambda m: setattr(m, "bias", None)),
        (nn.TransformerEncoderLayer(4, 2), lambda m: setattr(m, "norm_first", True)),
        (nn.Dropout(0.5), lambda m: setattr(m, "p", 1)),
        (nn.Sequential(nn.ReLU()), lambda m: m.append(nn.ReLU())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_difference_is_seen(layer, change):
    description = {"class": modules._qualified(type(layer)), "arguments": {}}
    twin = type(layer)(*(nn.ReLU(),)) if isinstance(layer, nn.Sequential) else rebuild(layer)[1]
    assert same_structure(layer, twin), description
    change(twin)
    assert not same_structure(layer, twin)


def test_other_attributes_on_a_layer_do_not_matter():
    layer = nn.Linear(2, 2)
    layer.label = object()
    assert "class" in describe_module(layer, "layer")


def test_an_attribute_that_was_removed_makes_a_layer_custom():
    layer = nn.MultiheadAttention(4, 2)
    del layer.kdim
    assert list(describe_module(layer, "layer")) == ["custom"]


def test_a_subclass_is_custom():
    class MyLinear(nn.Linear):
        pass

    assert describe_module(MyLinear(2, 2), "layer")["custom"].endswith("MyLinear")


def test_torchvision_layers_are_known():
    pytest.importorskip("passes.torchvision_shim").ensure_torchvision_importable()
    ops = pytest.importorskip("torchvision.ops")
    description, rebuilt = rebuild(ops.StochasticDepth(0.3, "row"))
    assert "class" in description
    assert (rebuilt.p, rebuilt.mode) == (0.3, "row")
