from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import get_overridable_functions

from passes.storage import allow_list
from passes.storage.allow_list import (
    class_name,
    class_named,
    function_name,
    function_named,
    is_attribute,
    is_identifier,
    is_method,
    is_path,
)

# Anything that opens files, imports, compiles, unpickles or calls back.
DANGEROUS = """
    load save from_file compile import exec eval pickle .hub. jit callable script package numpy
    storage hook fbgemm miopen cudnn
""".split()  # noqa: SIM905


def test_every_name_leads_to_its_function_and_back():
    table = allow_list._functions()
    for name, function in table.items():
        assert function_named(name) is function
        found = function_name(function)
        assert found is not None
        assert function_named(found) == function  # equal C functions may have two names


def test_functions_are_those_that_take_tensors_and_the_few_that_we_name():
    overridable = {f for functions in get_overridable_functions().values() for f in functions}
    others = {name for name, f in allow_list._functions().items() if f not in overridable}
    named = {"torch": allow_list._FACTORIES, "torch.nn.functional": allow_list._FUNCTIONAL,
             "operator": allow_list._OPERATORS, "builtins": allow_list._BUILTINS,
             "math": allow_list._MATH}  # fmt: skip
    assert others <= {f"{prefix}.{name}" for prefix, names in named.items() for name in names}


@pytest.mark.parametrize("word", DANGEROUS)
def test_nothing_dangerous_slipped_in(word):
    assert [name for name in allow_list._functions() if word in name] == []
    assert [name for name in allow_list._methods() if word in name] == []


def test_nothing_private_slipped_in():
    tails = [name.rpartition(".")[2] for name in allow_list._functions()]
    assert [name for name in tails if name.startswith("_")] == ["_assert"]
    assert [name for name in allow_list._methods() if name.startswith("_")] == []
    assert [name for name in allow_list._ATTRIBUTES if name.startswith("_")] == []


@pytest.mark.parametrize(
    "function",
    [torch.load, torch.save, torch.hub.load, eval, exec, open, __import__, print, setattr,
     operator.methodcaller, operator.attrgetter, torch.compile, torch.from_file, lambda x: x,
     torch.Tensor.apply_, torch.Tensor.__reduce_ex__, {}.get],
)  # fmt: skip
def test_functions_that_have_no_name(function):
    assert function_name(function) is None


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.flatten, "torch.flatten"),
        (F.relu, "torch.nn.functional.relu"),
        (F.max_pool2d, "torch.nn.functional.max_pool2d"),
        (F.scaled_dot_product_attention, "torch.nn.functional.scaled_dot_product_attention"),
        (F.hardswish, "torch.nn.functional.hardswish"),
        (operator.getitem, "operator.getitem"),
        (getattr, "builtins.getattr"),
        (torch.linalg.norm, "torch.linalg.norm"),
        (torch._assert, "torch._assert"),
    ],
)
def test_names_are_the_public_ones(function, name):
    assert function_name(function) == name


def test_torchvision_functions():
    pytest.importorskip("torchvision")
    name = "torchvision.models.swin_transformer.shifted_window_attention"
    assert function_name(function_named(name)) == name
    assert function_named("torchvision.models.get_model") is None


def test_without_torchvision_its_names_are_not_on_the_list(monkeypatch):
    def absent(_name):
        raise ImportError

    allow_list._torchvision.cache_clear()
    monkeypatch.setattr(allow_list.importlib, "import_module", absent)
    assert function_named("torchvision.ops.stochastic_depth.stochastic_depth") is None
    allow_list._torchvision.cache_clear()


def test_methods_and_attributes():
    assert all(map(is_method, ["size", "view", "add_", "contiguous", "expand", "dim", "items"]))
    assert not any(map(is_method, ["__add__", "numpy", "apply_", "_values", "T", "", None, []]))
    assert all(map(is_attribute, ["shape", "T", "mT", "dtype", "values"]))
    assert not any(map(is_attribute, ["__class__", "grad_fn", "", None, []]))


def test_classes():
    assert class_named(class_name(nn.Conv2d)) is nn.Conv2d
    assert class_name(nn.DataParallel) is None
    assert class_name(nn.LazyLinear) is None
    assert class_named("torch.nn.modules.module.Module") is None
    impostor = type("Conv2d", (nn.Module,), {"__module__": "torch.nn.modules.conv"})
    assert class_name(impostor) is None


def test_identifiers_and_paths():
    assert all(map(is_identifier, ["x", "_tensor_constant0", "conv_1", "input_1"]))
    assert all(map(is_path, ["a", "0.1.weight", "layer-1.conv", "_tensor_constant0", "en:de.x"]))
    assert not any(
        map(is_path, ["a..b", ".a", "a.", "a.__class__", 'a"b', "a.class", "train", "a\n"])
    )
    assert is_path("a.code")
    assert not is_path("code")  # the graph module itself has a property of this name
