"""Modules as JSON: a class from the allow-list and its constructor arguments.

A description is one of

    {"container": "torch.nn.modules.module.Module"}       children are stored one by one
    {"class": "torch.nn.modules.conv.Conv2d", "arguments": {...}}
    {"storable": "passes.tracing.mode.Mode", "config": {...}}
    {"custom": "their.package.Layer"}                     the user brings the module at load time

Modules are rebuilt on the meta device: no memory, no time and no random number is spent on initial
values that the stored tensors replace.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import fx, nn

from energy_model.errors import StorageError
from passes.storage.allow_list import class_name, class_named, is_identifier
from passes.storage.constructors import constructor_arguments
from passes.storage.values import damaged, decode_value, encode_value

Description = dict[str, Any]

_CONTAINERS: Mapping[str, type[nn.Module]] = {
    f"{cls.__module__}.{cls.__qualname__}": cls
    for cls in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What every module has, and the caches that recurrent layers rebuild from their parameters.
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}


class Storable(Protocol):
    """A module of ours that can be written down and rebuilt."""

    def to_config(self) -> dict[str, Any]:
        """Arguments of the module: whatever a graph node may take as an argument."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild from `to_config`; runs on the meta device, so it must read no tensor values."""


_StorableT = TypeVar("_StorableT", bound=Storable)
_storables: dict[str, type[Any]] = {}


def storable(cls: type[_StorableT]) -> type[_StorableT]:
    """Class decorator: let stored graphs hold modules of this class.

    Raises:
        TypeError: The class lacks `to_config` or `from_config`.
    """
    missing = [name for name in ("to_config", "from_config") if not hasattr(cls, name)]
    if missing:
        raise TypeError(f"{cls.__qualname__} cannot be storable: it lacks {' and '.join(missing)}")
    _storables[_qualified(cls)] = cls
    return cls


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def model_class_name(model: nn.Module) -> str:
    """The class of a whole model, for people; fx names a graph's after the model it traced."""
    cls = type(model)
    return cls.__name__ if isinstance(model, fx.GraphModule) else _qualified(cls)


def is_container(module: nn.Module) -> bool:
    """Whether the module only holds others, so that its children are stored one by one."""
    plain = type(module) in _CONTAINERS.values() or isinstance(module, fx.GraphModule)
    return plain and "forward" not in vars(module) and not _has_hooks(module)


def describe_module(module: nn.Module, path: str) -> Description:
    """Describe one module, and verify that the description rebuilds it.

    Args:
        module: A container, a layer, or anything else; the latter becomes `custom`.
        path: Where it stands, for errors.
    """
    if is_container(module):
        return {"container": _qualified(type(module))}
    description = _described(module, path)
    if description is not None:
        rebuilt = _build_or_none(description, path)
        if rebuilt is not None and same_structure(module, rebuilt):
            return description
    return {"custom": _qualified(type(module))}


def _described(module: nn.Module, path: str) -> Description | None:
    name = _qualified(type(module))
    if _storables.get(name) is type(module):
        return {"storable": name, "config": _encoded(module.to_config(), path)}  # type: ignore[operator]
    allowed = class_name(type(module))
    arguments = constructor_arguments(module) if allowed else None
    if arguments is None:
        return None
    try:
        return {"class": allowed, "arguments": _encoded(arguments, path)}
    except StorageError:
        return None  # an argument is an object of its own: the module must come from the user


def _encoded(arguments: Mapping[str, Any], path: str) -> Description:
    return {name: _encoded_argument(value, path) for name, value in arguments.items()}


def _encoded_argument(value: object, path: str) -> Any:
    if not isinstance(value, nn.Module):
        return encode_value(value, path)
    nested = _described(value, path)
    if nested is None:
        raise StorageError("a nested module cannot be rebuilt", where=path)
    return {"module": nested}


def _build_or_none(description: Description, path: str) -> nn.Module | None:
    try:
        return build_module(description, path, {})
    except StorageError:
        return None


def build_module(description: object, path: str, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Rebuild a module on the meta device; a custom one is copied from `modules`.

    Args:
        description: What `describe_module` returned; untrusted.
        path: Where the module stands in the model.
        modules: The user's own modules by path.

    Raises:
        StorageError: A class is not on the allow-list, its arguments do not fit, or a custom
            module was not given.
    """
    if not isinstance(description, dict):
        raise damaged("a malformed module", path)
    match sorted(description):
        case ["container"]:
            return _known(_CONTAINERS.get, description["container"], path)()  # type: ignore[no-any-return]
        case ["arguments", "class"]:
            cls = _known(class_named, description["class"], path)
            return _construct(cls, _decoded(description["arguments"], path), path)
        case ["config", "storable"]:
            cls = _known(_storable_named, description["storable"], path)
            return _construct(
                cls.from_config, {"config": _decoded(description["config"], path)}, path
            )
        case ["custom"]:
            return _custom(str(description["custom"]), path, modules)
    raise damaged(f"a module described by {sorted(description)}", path)


def _known(table: Any, name: object, path: str) -> Any:
    found = table(name) if isinstance(name, str) else None
    if found is None:
        raise StorageError(
            f"the stored graph names the class {name!r}, which is not on the allow-list",
            where=path,
            remedy="The file is damaged, of another version, or not to be trusted.",
        )
    return found


def _storable_named(name: str) -> type[Any] | None:
    """A registered class; a module of our own package is imported so that it can register it."""
    package, _, _ = name.rpartition(".")
    ours = package.startswith("passes.") and all(map(is_identifier, package.split(".")))
    if ours and name not in _storables:
        try:
            importlib.import_module(package)
        except ImportError:
            return None
    return _storables.get(name)


def _decoded(arguments: object, path: str) -> dict[str, Any]:
    if not isinstance(arguments, dict):
        raise damaged("malformed arguments of a module", path)
    return {name: _decoded_argument(value, path) for name, value in arguments.items()}


def _decoded_argument(value: object, path: str) -> Any:
    if isinstance(value, dict) and list(value) == ["module"]:
        return build_module(value["module"], path, {})
    return decode_value(value, {}, path)


def _construct(factory: Any, arguments: dict[str, Any], path: str) -> nn.Module:
    try:
        with torch.device("meta"):
            built = factory(**arguments)
    except Exception as error:
        # A constructor may object to arguments that we never wrote in any way it likes.
        raise damaged(f"arguments that the module's class refuses ({error})", path) from error
    if not isinstance(built, nn.Module):
        raise damaged("a class that builds no module", path)
    return built


def _custom(name: str, path: str, modules: Mapping[str, nn.Module]) -> nn.Module:
    given = modules.get(path)
    if given is None:
        lacks = "the model given has none here" if modules else "not part of torch or torchvision"
        raise StorageError(
            f"the module is an instance of {name}: {lacks}",
            where=path,
            remedy="Pass model=..., an instance of the class that was compressed.",
        )
    if _qualified(type(given)) != name:
        raise StorageError(
            f"the model given holds a {model_class_name(given)} here, the saved one a {name}",
            where=path,
            remedy="Pass model=..., an instance of the class that was compressed.",
        )
    return copy.deepcopy(given)


def same_structure(module: nn.Module, rebuilt: nn.Module) -> bool:
    """Whether two modules agree in everything but the values of their tensors."""
    ours, theirs = dict(module.named_modules()), dict(rebuilt.named_modules())
    return (
        list(ours) == list(theirs)
        and repr(module) == repr(rebuilt)
        and _tensor_shapes(module) == _tensor_shapes(rebuilt)
        and all(_same_layer(ours[name], theirs[name]) for name in ours)
    )


def _tensor_shapes(module: nn.Module) -> list[tuple[str, str, Any]]:
    kept = module.state_dict(keep_vars=True)
    shapes = [("state", name, getattr(value, "shape", None)) for name, value in kept.items()]
    shapes += [
        ("parameter", n, v.shape) for n, v in module.named_parameters(remove_duplicate=False)
    ]
    return shapes + [
        ("buffer", n, v.shape) for n, v in module.named_buffers(remove_duplicate=False)
    ]


def _same_layer(a: nn.Module, b: nn.Module) -> bool:
    """Compare the attributes that the class sets: it cannot read what else hangs on a layer."""
    ours, theirs = vars(a), vars(b)
    return (
        type(a) is type(b)
        and "forward" not in ours
        and not _has_hooks(a)
        and all(
            name in ours and _same_value(ours[name], value)
            for name, value in theirs.items()
            if name not in _BOOKKEEPING
        )
    )


def _same_value(a: object, b: object) -> bool:
    # By text: nan equals itself, and 1, 1.0 and True differ.
    return a is b or (_is_plain(a) and _is_plain(b) and repr(a) == repr(b))


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    plain = (bool, int, float, str, torch.dtype, torch.device, torch.memory_format, slice, range)
    return value is None or value is ... or isinstance(value, plain)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)
