"""A stored graph is hostile until checked: nothing in it may run code or reach a file."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from torch import fx, nn

from energy_model.errors import StorageError
from passes.storage import nodes
from passes.storage.graph_json import graph_from_json, graph_state, graph_to_json


class Victim(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, gain=1.0):
        y = torch.flatten(self.conv(x) * self.scale, 1).mean(dim=1)
        return {"y": y * gain, "shape": x.shape}


GRAPH = fx.symbolic_trace(Victim())
DATA = json.loads(json.dumps(graph_to_json(GRAPH)))
STATE = graph_state(GRAPH)


def record(data, name):
    return next(item for item in data["nodes"] if item["name"] == name)


def load(data):
    return graph_from_json(data, STATE)


def tampered(which, /, **changes):
    data = copy.deepcopy(DATA)
    record(data, which).update(changes)
    return data


def test_the_untouched_data_loads():
    x = torch.randn(2, 1, 3, 3)
    assert torch.equal(load(DATA)(x)["y"], GRAPH(x)["y"])


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
        "builtins.open",
        "builtins.compile",
        "builtins.map",
        "builtins.setattr",
        "subprocess.run",
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.from_file",
        "torch.compile",
        "torch.jit.load",
        "torch.ops.load_library",
        "torch.classes.load_library",
        "torch.package.PackageImporter",
        "torch.serialization.load",
        "torch.utils.cpp_extension.load",
        "torch.storage._load_from_bytes",
        "torch.nn.functional.handle_torch_function",
        "torch.nn.functional.boolean_dispatch",
        "torch.nn.functional.triplet_margin_with_distance_loss",
        "torch.lobpcg",
        "torch.fbgemm_linear_fp16_weight",
        "torch.autocast",
        "torch.Tensor.__reduce_ex__",
        "operator.call",
        "operator.methodcaller",
        "operator.attrgetter",
        "pickle.loads",
        "importlib.import_module",
        "torchvision.io.read_file",
        "torchvision.models.get_model",
        "numpy.load",
        "numpy.fromfile",
        "",
        "torch",
        "flatten",
        "torch.flatten.__globals__",
    ],
)
def test_functions_outside_the_list(target):
    with pytest.raises(StorageError, match="allow-list"):
        load(tampered("flatten", target=target))


@pytest.mark.parametrize("target", [None, 3, ["torch.flatten"], {"custom": ["os.system"]}, {}])
def test_malformed_functions(target):
    with pytest.raises(StorageError, match="malformed function"):
        load(tampered("flatten", target=target))


def test_a_custom_function_is_never_imported():
    with pytest.raises(StorageError, match="Pass model="):
        load(tampered("flatten", target={"custom": "os.system"}))


@pytest.mark.parametrize(
    "method",
    [
        "__reduce__",
        "__reduce_ex__",
        "__class__",
        "__init__",
        "__getattribute__",
        "__setstate__",
        "apply_",
        "map_",
        "numpy",
        "register_hook",
        "untyped_storage",
        "storage",
        "data_ptr",
        "set_",
        "share_memory_",
        "format",
        "tofile",
        "mean()\n import os\n x.mean",
        "mean.__class__",
        "me an",
        "\uff4dean",
        "",
        None,
        7,
        ["mean"],
    ],
)
def test_methods_outside_the_list(method):
    with pytest.raises(StorageError, match="method"):
        load(tampered("mean", target=method))


@pytest.mark.parametrize("args", [[], ["text"], [1.5], [{"tuple": [{"node": "flatten"}]}]])
def test_a_method_is_only_called_on_a_node(args):
    with pytest.raises(StorageError, match="method"):
        load(tampered("mean", args=args))


@pytest.mark.parametrize(
    "attribute",
    [
        "__class__",
        "__reduce_ex__",
        "grad_fn",
        "_backward_hooks",
        "data.__class__",
        "sh ape",
        3,
        None,
    ],
)
def test_attributes_outside_the_list(attribute):
    with pytest.raises(StorageError, match="attribute"):
        load(tampered("getattr_1", args=[{"node": "x"}, attribute]))


@pytest.mark.parametrize(
    "args",
    [
        [{"node": "x"}, "shape", 1],
        [{"node": "x"}],
        ["text", "shape"],
        [{"node": "x"}, {"node": "gain"}],
    ],
)
def test_getattr_has_exactly_one_constant_name(args):
    with pytest.raises(StorageError, match="attribute"):
        load(tampered("getattr_1", args=args))


NAMES = [
    "a;import os",
    "a b",
    "a\nimport os",
    "class",
    "self",
    "torch",
    "__class__",
    "\uff41",
    "a.b",
    "",
    "1a",
    "x=__import__('os')",
    "a: __import__('os').system('x')",
    None,
    3,
    [],
]


@pytest.mark.parametrize("name", [*NAMES, "inf", "device", "print", "eval", "x"])
def test_node_names(name):
    with pytest.raises(StorageError, match="node name"):
        load(tampered("conv", name=name))


@pytest.mark.parametrize(
    "target", [*NAMES, "***x", "x, y", "x=1", "x:int", "*", "**", "x)", "device"]
)
def test_input_names(target):
    with pytest.raises(StorageError, match="input name"):
        load(tampered("x", target=target))


@pytest.mark.parametrize("target", ["x", "*x", "**x"])
def test_two_inputs_of_one_name_or_in_an_impossible_order(target):
    with pytest.raises(StorageError, match="damaged"):
        load(tampered("gain", target=target))
    with pytest.raises(StorageError, match="no function"):
        load(tampered("x", target="**rest"))


@pytest.mark.parametrize("args", [[{"node": "x"}], [[{"node": "x"}]], [1, 2]])
def test_input_defaults_are_constants(args):
    with pytest.raises(StorageError, match="default"):
        load(tampered("gain", args=args))


def test_without_the_check_an_input_name_would_run_code(monkeypatch):
    code = "x=__import__('sys').modules.__setitem__('storage_attack_ran', None)"
    data = tampered("x", target=code)
    with pytest.raises(StorageError, match="input name"):
        load(data)
    assert "storage_attack_ran" not in sys.modules
    monkeypatch.setattr(nodes, "_check_input", lambda *_: None)
    load(data)
    assert sys.modules.pop("storage_attack_ran", "absent") is None


def test_without_the_check_a_keyword_would_run_code(monkeypatch):
    code = "dim=__import__('sys').modules.__setitem__('storage_attack_ran', None) or 1, keepdim"
    monkeypatch.setattr(nodes, "is_identifier", lambda _: True)
    loaded = load(tampered("mean", kwargs={code: False}))
    loaded(torch.zeros(1, 1, 1, 1))
    assert sys.modules.pop("storage_attack_ran", "absent") is None


def test_a_default_that_looks_like_code_stays_text():
    text = '"+__import__("os").abort()+"'
    assert load(tampered("gain", args=[text])).forward.__defaults__ == (text,)


@pytest.mark.parametrize("key", [*[n for n in NAMES if isinstance(n, str)], "dim=1, a", "*a"])
def test_keywords(key):
    with pytest.raises(StorageError, match="keyword"):
        load(tampered("mean", kwargs={key: 1}))


@pytest.mark.parametrize(
    "path",
    [
        "__class__",
        "forward",
        "conv.__class__",
        "conv.forward",
        "conv._parameters",
        "graph",
        'conv"), __import__("os").abort(), ("',
        "nowhere",
        "conv..weight",
        "conv\n",
        "_modules",
        "\uff3f_class__",
        "conv\\",
        "conv{x}",
        "",
        None,
        3,
        [],
    ],
)
@pytest.mark.parametrize("name", ["conv", "scale"])
def test_paths(name, path):
    with pytest.raises(StorageError, match=r"path|damaged"):
        load(tampered(name, target=path))


def test_a_path_to_something_of_another_kind():
    with pytest.raises(StorageError, match="something else"):
        load(tampered("conv", target="scale"))
    with pytest.raises(StorageError, match="something else"):
        load(tampered("scale", target="conv"))


@pytest.mark.parametrize("op", ["call_exec", "root", "", None, 3, [], {}])
def test_operations(op):
    with pytest.raises(StorageError, match="operation"):
        load(tampered("conv", op=op))


@pytest.mark.parametrize("extra", [{"type": "os.system"}, {"meta": {}}, {"stack_trace": "x"}])
def test_types_and_other_fields_are_refused(extra):
    with pytest.raises(StorageError, match="malformed node"):
        load(tampered("conv", **extra))


@pytest.mark.parametrize(
    "value",
    [
        {"node": "mean"},
        {"node": "nowhere"},
        {"node": 3},
        {"dtype": "load"},
        {"dtype": "__class__"},
        {"device": "a;b"},
        {"device": None},
        {"float": "1+1"},
        {"float": 3},
        {"size": ["a"]},
        {"slice": [1]},
        {"range": [0, 1, 0]},
        {"range": [0, 1, "a"]},
        {"eval": "1"},
        {},
        {"a": 1, "b": 2},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"dict": 3},
        {"tuple": 3},
        {"ellipsis": 0},
        {"memory_format": "load"},
        {"layout": 3},
    ],
)
def test_malformed_arguments(value):
    with pytest.raises(StorageError, match="damaged"):
        load(tampered("flatten", args=[{"node": "mul"}, value]))


def test_arguments_nested_without_end():
    value: object = 1
    for _ in range(300):
        value = [value]
    with pytest.raises(StorageError, match="nested"):
        load(tampered("flatten", args=[value]))


def test_strings_cannot_leave_their_quotes():
    text = "');__import__('os').abort();('\\' \" \n \ud800"
    data = tampered("output", args=[{"dict": [[text, {"tuple": [text]}]]}])
    assert load(data)(torch.zeros(1, 1, 1, 1)) == {text: (text,)}
