"""The tensors of a graph module: which there are, how they are tied, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from energy_model.errors import StorageError
from passes.storage.allow_list import is_path
from passes.storage.values import damaged, decode_value, encode_value

KINDS = ("parameter", "buffer", "attribute")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where a tensor stands in the model, and which entry of the state holds its values.

    Attributes:
        path: Dotted path in the model.
        kind: `parameter`, `buffer`, or `attribute` (a plain tensor that the graph reads).
        entry: Key in the state. Equal entries share one storage.
        tied_to: Path of the first record that is the very same object, if there is an earlier one.
        shape: Shape of the tensor.
        dtype: Element type.
        requires_grad: Whether it is trained.
        persistent: Whether `state_dict` holds it; parameters always are.
    """

    path: str
    kind: str
    entry: str
    tied_to: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    persistent: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return data | {"shape": list(self.shape), "dtype": encode_value(self.dtype, self.path)}

    @classmethod
    def from_json(cls, data: object) -> TensorRecord:
        """Read an untrusted record.

        Raises:
            StorageError: A field is missing, unknown or of the wrong type.
        """
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise damaged("a malformed tensor record", "tensors")
        record = cls(**data)
        path = str(record.path)
        dtype = decode_value(record.dtype, {}, path)
        checks = (
            is_path(record.path),
            record.kind in KINDS,
            isinstance(record.entry, str),
            record.tied_to is None or isinstance(record.tied_to, str),
            isinstance(record.shape, list) and all(type(n) is int for n in record.shape),
            isinstance(dtype, torch.dtype),
            isinstance(record.requires_grad, bool) and isinstance(record.persistent, bool),
        )
        if not all(checks):
            raise damaged("a malformed tensor record", path)
        return cls(**data | {"shape": tuple(record.shape), "dtype": dtype})


def graph_state(graph_module: fx.GraphModule) -> dict[str, Tensor]:
    """Every tensor that a stored graph needs, one entry for each distinct storage.

    Parameters, buffers (persistent or not) and constants that the graph reads, but no buffers that
    their module makes again: those that its class names in `regenerated`. The tensors are
    detached and contiguous; they share memory with the model where they can.

    Args:
        graph_module: The graph; on any device.

    Returns:
        Tensors by the name that `graph_to_json` writes beside them.

    Raises:
        StorageError: For a tensor that is not an ordinary one.
    """
    return {
        record.entry: tensor.detach().contiguous()
        for record, tensor in tensor_records(graph_module)
        if record.entry == record.path
    }


def tensor_records(graph_module: fx.GraphModule) -> Iterator[tuple[TensorRecord, Tensor]]:
    """Every tensor of the model with its record, in a fixed order; ties are found by storage."""
    first_object: dict[int, str] = {}
    first_storage: dict[object, str] = {}
    for path, kind, tensor in _tensors(graph_module):
        _check_ordinary(tensor, path)
        tied_to = first_object.setdefault(id(tensor), path)
        owner, name = _owner(graph_module, path)
        yield (
            TensorRecord(
                path=path,
                kind=kind,
                entry=first_storage.setdefault(_storage_key(tensor), path),
                tied_to=None if tied_to == path else tied_to,
                shape=tuple(tensor.shape),
                dtype=tensor.dtype,
                requires_grad=tensor.requires_grad,
                persistent=name not in owner._non_persistent_buffers_set,
            ),
            tensor,
        )


def _tensors(graph_module: fx.GraphModule) -> Iterator[tuple[str, str, Tensor]]:
    seen = set()
    for path, parameter in graph_module.named_parameters(remove_duplicate=False):
        seen.add(path)
        yield path, "parameter", parameter
    for path, buffer in graph_module.named_buffers(remove_duplicate=False):
        if not _is_regenerated(graph_module, path):
            seen.add(path)
            yield path, "buffer", buffer
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and node.target not in seen:
            seen.add(node.target)
            yield node.target, "attribute", _plain_tensor(graph_module, node)


def _plain_tensor(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    path = str(node.target)
    owner, name = _owner(graph_module, path)
    value = getattr(owner, name, None)
    if isinstance(value, Tensor) and _is_bare(owner):
        return value
    raise StorageError(
        f"the graph reads an attribute ({type(value).__name__}) that is no parameter or buffer",
        where=path,
        remedy="Register it as a buffer, or keep it inside a module of its own.",
    )


def _is_regenerated(root: nn.Module, path: str) -> bool:
    owner, name = _owner(root, path)
    return name in getattr(type(owner), "regenerated", ())


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return root.get_submodule(parent), name


def _is_bare(module: nn.Module) -> bool:
    """Whether the module holds only what tracing gave it, so that anything may be added."""
    return type(module) is nn.Module or isinstance(module, fx.GraphModule)


def _check_ordinary(tensor: Tensor, path: str) -> None:
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not plain or tensor.layout is not torch.strided or tensor.is_quantized:
        raise StorageError(
            f"a tensor of type {type(tensor).__name__} and layout {tensor.layout} cannot be stored",
            where=path,
            remedy="Only ordinary dense tensors can; materialise lazy layers by one forward pass.",
        )


def _storage_key(tensor: Tensor) -> object:
    storage = tensor.untyped_storage()
    place = (storage._cdata, tensor.storage_offset(), tensor.dtype)
    return (*place, tuple(tensor.shape), tensor.stride())


def assign_tensors(
    root: nn.Module, records: list[TensorRecord], state: Mapping[str, Tensor]
) -> None:
    """Put the stored tensors into a rebuilt model, which takes them as they are, without a copy.

    Args:
        root: The model, all its modules in place.
        records: What to put where.
        state: Tensors by entry.

    Raises:
        StorageError: A tensor is missing, left over, or of another shape or dtype.
    """
    placed: dict[str, Tensor] = {}
    for record in records:
        if record.tied_to is None:
            placed[record.path] = _materialise(record, _entry(record, state))
        else:
            placed[record.path] = _tied(record, placed)
        _assign(root, record, placed[record.path])
    _check_complete(root, set(placed))


def _entry(record: TensorRecord, state: Mapping[str, Tensor]) -> Tensor:
    tensor = state.get(record.entry)
    if tensor is None:
        raise _mismatch("is missing from the saved tensors", record)
    if tuple(tensor.shape) != record.shape or tensor.dtype != record.dtype:
        found = f"{tuple(tensor.shape)} {tensor.dtype}"
        raise _mismatch(f"is {found} in the file, not {record.shape} {record.dtype}", record)
    return tensor


def _mismatch(what: str, record: TensorRecord) -> StorageError:
    return StorageError(
        f"the tensor {what}",
        where=record.path,
        remedy="The graph and the tensors are not from the same save: save the model again.",
    )


def _materialise(record: TensorRecord, tensor: Tensor) -> Tensor:
    trainable = record.dtype.is_floating_point or record.dtype.is_complex
    if record.requires_grad and not trainable:
        raise damaged("an integer tensor that asks for gradients", record.path)
    if record.kind == "parameter":
        return nn.Parameter(tensor.detach(), requires_grad=record.requires_grad)
    return tensor.detach().requires_grad_(record.requires_grad)


def _tied(record: TensorRecord, placed: Mapping[str, Tensor]) -> Tensor:
    found = placed.get(str(record.tied_to))
    same_kind = isinstance(found, nn.Parameter) == (record.kind == "parameter")
    if found is None or not same_kind:
        raise damaged(f"a tie to {record.tied_to!r}, which does not come before", record.path)
    return found


def _assign(root: nn.Module, record: TensorRecord, tensor: Tensor) -> None:
    try:
        owner, name = _owner(root, record.path)
    except AttributeError as error:
        raise damaged("a tensor whose module is not there", record.path) from error
    tables: dict[str, Any] = {"parameter": owner._parameters, "buffer": owner._buffers}
    present = tables.get(record.kind, {}).get(name)
    if present is None and not _is_bare(owner):
        raise damaged(f"a {record.kind} that its module does not have", record.path)
    if present is not None and present.shape != tensor.shape:
        raise _mismatch(f"has the shape {record.shape}, its module {tuple(present.shape)}", record)
    if present is None and (name in owner._modules or hasattr(owner, name)):
        raise damaged("two things of one name", record.path)
    if record.kind == "buffer":
        owner.register_buffer(name, tensor, persistent=record.persistent)
    else:
        setattr(owner, name, tensor)  # not register_parameter: recurrent layers refresh caches here


def _check_complete(root: nn.Module, placed: set[str]) -> None:
    """A tensor that the file does not mention would keep the values of the constructor."""
    named = [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]
    missing = sorted({path for path, _ in named if not _is_regenerated(root, path)} - placed)
    if missing:
        raise damaged(f"no record of {len(missing)} tensors of the model", missing[0])
