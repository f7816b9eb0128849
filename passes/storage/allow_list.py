"""What a stored graph may name: functions, methods, attributes and module classes.

A stored graph is untrusted input. Names in it are looked up in the tables of this file and are
never imported or evaluated. The functions take and return tensors and numbers: none of them opens a
file, imports a module or calls back into a value that the graph supplies.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import get_overridable_functions

from passes.torchvision_shim import ensure_torchvision_importable

Function = Callable[..., Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATORS = _words("""
    abs add and_ concat contains eq floordiv ge getitem gt index invert is_ is_not le lshift lt
    matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor
    iadd iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor
""")
_BUILTINS = _words("abs bool float getattr int len list max min range round slice sum tuple")
_MATH = _words("ceil cos exp floor gcd isqrt log log2 log10 pow prod sin sqrt tanh trunc")
_FACTORIES = _words("""
    _assert arange as_tensor empty eye full linspace logspace ones rand randint randn randperm
    scalar_tensor tensor tril_indices triu_indices zeros
    is_tensor numel relu_ selu_ celu_ sigmoid_ tanh_ exp_ log_ sqrt_ abs_ neg_ clamp_
""")
_FUNCTIONAL = _words("""
    celu_ elu_ hardsigmoid hardswish hardtanh_ leaky_relu_ relu_ rrelu_ selu_ sigmoid tanh threshold
    threshold_ upsample upsample_bilinear upsample_nearest
""")
_TORCHVISION_FUNCTIONS = {
    "torchvision.models.googlenet": ("GoogLeNetOutputs",),
    "torchvision.models.inception": ("InceptionOutputs",),
    "torchvision.models.swin_transformer": (
        "_get_relative_position_bias",
        "_patch_merging_pad",
        "shifted_window_attention",
    ),
    "torchvision.ops.stochastic_depth": ("stochastic_depth",),
}
_TORCHVISION_CLASSES = {
    "torchvision.models.convnext": ("LayerNorm2d",),
    "torchvision.ops.misc": ("FrozenBatchNorm2d", "Permute"),
    "torchvision.ops.stochastic_depth": ("StochasticDepth",),
}

# Overridable, but they call a value, hand out raw memory, or are backend internals that trust their
# arguments.
_DENIED_FUNCTIONS = frozenset({"autocast", "lobpcg", "triplet_margin_with_distance_loss"})
_DENIED_PREFIXES = ("_", "batch_norm_", "cudnn_", "fbgemm_", "miopen_", "mkldnn_", "quantized_")
_DENIED_METHODS = _words(
    """
    apply_ backward const_data_ptr data_ptr map2_ map_ module_load numpy pin_memory record_stream
    register_hook register_post_accumulate_grad_hook requires_grad_ resize resize_ resize_as
    resize_as_ resize_as_sparse_ retain_grad set_ share_memory_ sparse_resize_
    sparse_resize_and_clear_ storage storage_offset storage_type untyped_storage
    """
)
_MORE_METHODS = _words(
    """
    new_empty new_full new_ones new_tensor new_zeros stride unflatten expand contiguous
    append copy get index items keys values
    """
)
_ATTRIBUTES = _words(
    """
    shape dtype device ndim T mT H mH real imag layout itemsize nbytes data
    is_cpu is_cuda is_meta is_quantized is_sparse requires_grad
    values indices Q R U S V Vh eigenvalues eigenvectors sign logabsdet mantissa exponent
    """
)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# fx writes a component that is no identifier between double quotes: nothing here can end them.
_COMPONENT = re.compile(r"[A-Za-z0-9_\-+:/ ]+")
_RESERVED_BELOW = frozenset(dir(nn.Module()))
_RESERVED_AT_ROOT = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def is_identifier(name: object) -> bool:
    """Whether fx may write `name` into generated code as a name.

    ASCII only, because Python normalises other letters (a full-width underscore becomes `_`); no
    keyword, no dunder, and neither of the two names that generated code relies on.
    """
    return (
        isinstance(name, str)
        and _IDENTIFIER.fullmatch(name) is not None
        and not keyword.iskeyword(name)
        and not name.startswith("__")
        and name not in {"self", "torch"}
    )


def is_path(path: object) -> bool:
    """Whether `path` is a dotted module or tensor path that shadows no attribute of a module."""
    if not isinstance(path, str):
        return False
    first, *below = path.split(".")
    return _is_component(first, _RESERVED_AT_ROOT) and all(
        _is_component(component, _RESERVED_BELOW) for component in below
    )


def _is_component(name: str, reserved: frozenset[str]) -> bool:
    return (
        _COMPONENT.fullmatch(name) is not None
        and not name.startswith("__")
        and not keyword.iskeyword(name)
        and name not in reserved
    )


def is_method(name: object) -> bool:
    """Whether a stored `call_method` may call `name`."""
    return isinstance(name, str) and name in _methods()


def is_attribute(name: object) -> bool:
    """Whether a stored `getattr` may read `name`."""
    return isinstance(name, str) and name in _ATTRIBUTES


def function_name(function: Function) -> str | None:
    """The stored name of a function, or `None` when it is not on the list."""
    from_torchvision = str(getattr(function, "__module__", "")).startswith("torchvision.")
    tables = (_function_names(), _torchvision_names()) if from_torchvision else (_function_names(),)
    try:
        return next((table[function] for table in tables if function in table), None)
    except TypeError:  # an unhashable callable is nobody's function
        return None


def function_named(name: str) -> Function | None:
    """The function of a stored name, or `None` when it is not on the list."""
    found = _functions().get(name)
    if found is None and name.startswith("torchvision."):
        return _torchvision(functions=True).get(name)
    return found


def class_name(cls: type[nn.Module]) -> str | None:
    """The stored name of a module class, or `None` when it is not on the list."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return name if class_named(name) is cls else None


def class_named(name: str) -> type[nn.Module] | None:
    """The module class of a stored name, or `None` when it is not on the list."""
    found = _classes().get(name)
    if found is None and name.startswith("torchvision."):
        return _torchvision(functions=False).get(name)
    return found


@functools.cache
def _methods() -> frozenset[str]:
    overridable = get_overridable_functions()[torch.Tensor]
    names = {str(getattr(method, "__name__", "_")) for method in overridable}
    public = {name for name in names if not name.startswith("_")}
    return frozenset((public | _MORE_METHODS) - _DENIED_METHODS)


@functools.cache
def _functions() -> Mapping[str, Function]:
    overridable = {
        function for functions in get_overridable_functions().values() for function in functions
    }
    table: dict[str, Function] = {}
    # The first name of a function is the one that is written: the most public module goes first.
    for module in (torch, F, torch.linalg, torch.fft, torch.special, torch.functional):
        for name in dir(module):
            function = getattr(module, name)
            if callable(function) and function in overridable and not _is_denied(name):
                table[f"{module.__name__}.{name}"] = function
    for prefix, module, names in (
        ("torch", torch, _FACTORIES),
        ("torch.nn.functional", F, _FUNCTIONAL),
        ("operator", operator, _OPERATORS),
        ("builtins", builtins, _BUILTINS),
        ("math", math, _MATH),
    ):
        table.update({f"{prefix}.{name}": getattr(module, name) for name in names})
    return MappingProxyType(table)


def _is_denied(name: str) -> bool:
    return name.startswith(_DENIED_PREFIXES) or name in _DENIED_FUNCTIONS


@functools.cache
def _function_names() -> Mapping[Function, str]:
    return _inverted(_functions())


@functools.cache
def _torchvision_names() -> Mapping[Function, str]:
    return _inverted(_torchvision(functions=True))


def _inverted(table: Mapping[str, Function]) -> Mapping[Function, str]:
    names: dict[Function, str] = {}
    for name, function in table.items():
        names.setdefault(function, name)
    return MappingProxyType(names)


@functools.cache
def _classes() -> Mapping[str, type[nn.Module]]:
    found = (getattr(nn, name) for name in nn.modules.__all__)
    classes = [cls for cls in found if isinstance(cls, type) and issubclass(cls, nn.Module)]
    return MappingProxyType(
        {
            f"{cls.__module__}.{cls.__qualname__}": cls
            for cls in classes
            if not cls.__name__.startswith("Lazy") and cls not in (nn.Module, nn.DataParallel)
        }
    )


@functools.cache
def _torchvision(*, functions: bool) -> Mapping[str, Any]:
    ensure_torchvision_importable()
    table: dict[str, Any] = {}
    for module, names in (_TORCHVISION_FUNCTIONS if functions else _TORCHVISION_CLASSES).items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue  # without torchvision, its names are simply not on the list
        table.update({f"{module}.{name}": getattr(found, name) for name in names})
    return MappingProxyType(table)
