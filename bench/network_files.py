"""Files of one model at many widths: exported once, then only the weights are exchanged.

An export takes seconds, and the graph of a network without some of its channels is the same graph
with smaller weights. Every file is compared with torch; where the graph does depend on the widths,
that network is exported on its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from energy_model.errors import ExportError, ParityError
from export.fold_slices import fold_slices
from export.initializers import locate
from export.onnx_file import float_model
from export.parity import check_parity
from passes.graph import ModelGraph
from passes.isolation import preserved_random_state
from passes.rewrite.freeze import Frozen, freeze
from passes.rewrite.shrink import shrink
from passes.structure.groups import ChannelGroups
from passes.structure.state import State

_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """A file of a network.

    Attributes:
        path: The file.
        names: Layer by the name of its weight in the file; see `bench.layer_times`.
        exported: Whether it was exported on its own.
    """

    path: Path
    names: Mapping[str, str]
    exported: bool


class NetworkFiles:
    """Writes networks that differ in their widths alone.

    The graph is exported at two widths: what changes from one to the other are weights, and numbers
    in shapes that are the size of a weight.

    Args:
        graph: The traced model; only copied. Its weights are of no concern to the time, and are
            replaced by random ones, so that no two tensors are equal and stored as one.
        groups: Its channel groups.
        seed: Seed of the weights.

    Raises:
        ExportError: The model has no ONNX form.
    """

    def __init__(self, graph: ModelGraph, groups: ChannelGroups, seed: int = 0) -> None:
        self._groups = groups
        self._graph = copy.deepcopy(graph)
        _randomize(self._graph.module, seed)
        frozen = freeze(self._graph)
        self._model = _exported(frozen, self._graph)
        self._sources: dict[str, _Source] | None = None
        if groups.free:
            other, smaller = self._shrunk(_telling_state(groups))
            pair = self._model, _exported(smaller, other)
            self._sources = _sources(*pair, _tensors(frozen.module), _tensors(smaller.module))

    def write(self, state: State, path: Path) -> NetworkFile:
        """Write the network that a keep-state leaves.

        Args:
            state: Which units stay.
            path: Where the file goes.

        Raises:
            ExportError: The network has no ONNX form.
            ParityError: Its file computes something else.
        """
        graph, frozen = self._shrunk(state)
        model = self._with_weights(frozen)
        if model is not None and _agrees(model, graph, path):
            return NetworkFile(path, _names(model, graph, frozen), exported=False)
        self._sources = None  # the graph depends on the widths: every network has its own
        model = _exported(frozen, graph)
        onnx.save_model(model, str(path))
        check_parity(path, graph.runnable, graph.call)
        return NetworkFile(path, _names(model, graph, frozen), exported=True)

    def _shrunk(self, state: State) -> tuple[ModelGraph, Frozen]:
        graph = copy.deepcopy(self._graph)
        with preserved_random_state():
            shrink(graph, self._groups, state)
        return graph, freeze(graph)

    def _with_weights(self, frozen: Frozen) -> onnx.ModelProto | None:
        """The model as exported with other weights; `None` if that cannot be done."""
        if self._sources is None:
            return None
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        tensors = _tensors(frozen.module)
        for item in model.graph.initializer:
            if item.name in self._sources:
                value = self._sources[item.name].value(tensors)
                item.CopyFrom(numpy_helper.from_array(value, item.name))
        return model


@dataclass(frozen=True, slots=True)
class _Weight:
    """An initialiser that holds a tensor of the module."""

    name: str
    transposed: bool = False

    def value(self, tensors: Mapping[str, Tensor]) -> NDArray[Any]:
        """Its elements, given the tensors by name."""
        tensor = tensors[self.name]
        return (tensor.T if self.transposed else tensor).contiguous().numpy()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Integers, some of which are the size of a tensor along a dimension: index to both."""

    numbers: NDArray[Any]
    places: Mapping[int, tuple[str, int]]

    def value(self, tensors: Mapping[str, Tensor]) -> NDArray[Any]:
        """Its elements, given the tensors by name."""
        found = self.numbers.copy()
        for index, (name, dim) in self.places.items():
            found.flat[index] = tensors[name].shape[dim]
        return found


_Source = _Weight | _Sizes


def _telling_state(groups: ChannelGroups) -> dict[str, NDArray[np.bool_]]:
    """A state in which as many groups as possible have a width of their own."""
    state, taken = {}, set[int]()
    for group in sorted(groups.free, key=lambda group: group.units):
        counts = range(group.units - 1, group.minimum - 1, -1)
        count = next((n for n in counts if n not in taken), max(group.minimum, group.units - 1))
        taken.add(count)
        state[group.name] = np.arange(group.units) < count
    return state


def _randomize(module: nn.Module, seed: int) -> None:
    """Weights whose outputs stay finite, and all of which differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            if tensor.dim() > 1:
                tensor.copy_(noise / (tensor.numel() / tensor.shape[0]) ** 0.5)
            else:
                whole = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
                tensor.copy_(whole + _SPREAD * noise.clamp(-2, 2))


def _exported(frozen: Frozen, graph: ModelGraph) -> onnx.ModelProto:
    return fold_slices(float_model(frozen.module, graph.call))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    return {name: tensor.detach().cpu() for name, tensor in named}


def _sources(
    whole: onnx.ModelProto,
    smaller: onnx.ModelProto,
    tensors: Mapping[str, Tensor],
    cut: Mapping[str, Tensor],
) -> dict[str, _Source] | None:
    """Where every initialiser that changes with the widths comes from.

    Args:
        whole: The network at full widths.
        smaller: At other widths.
        tensors: Tensors of the module at full widths.
        cut: Those at other widths.

    Returns:
        By name; `None` where a part of the graph changes that comes from nowhere.
    """
    if [n.SerializeToString() for n in whole.graph.node] != [
        n.SerializeToString() for n in smaller.graph.node
    ]:
        return None
    weights = _by_bytes(tensors)
    others = {item.name: numpy_helper.to_array(item) for item in smaller.graph.initializer}
    found: dict[str, _Source] = {}
    for item in whole.graph.initializer:
        value = numpy_helper.to_array(item)
        source: _Source | None
        if np.issubdtype(value.dtype, np.floating):
            source = weights.get((value.shape, value.tobytes()))
        else:
            source = _sizes(value, others.get(item.name), tensors, cut)
        if source is not None:
            found[item.name] = source
        elif item.name not in others or not np.array_equal(value, others[item.name]):
            return None
    return found


def _by_bytes(tensors: Mapping[str, Tensor]) -> dict[tuple[tuple[int, ...], bytes], _Weight]:
    """Tensors by shape and content, matrices also as they are transposed."""
    found: dict[tuple[tuple[int, ...], bytes], _Weight] = {}
    for name, tensor in tensors.items():
        for transposed in (False, True) if tensor.dim() == 2 else (False,):
            value = _Weight(name, transposed).value(tensors)
            found.setdefault((value.shape, value.tobytes()), _Weight(name, transposed))
    return found


def _sizes(
    value: NDArray[Any],
    other: NDArray[Any] | None,
    tensors: Mapping[str, Tensor],
    cut: Mapping[str, Tensor],
) -> _Sizes | None:
    """Integers that are sizes where they change; `None` if none does, or one is no size."""
    if other is None or other.shape != value.shape or np.array_equal(value, other):
        return None
    sizes = {
        (size, cut[name].shape[dim]): (name, dim)
        for name, tensor in tensors.items()
        for dim, size in enumerate(tensor.shape)
    }
    pairs = enumerate(zip(value.flat, other.flat, strict=True))
    changed = {index: (int(a), int(b)) for index, (a, b) in pairs if a != b}
    if not set(changed.values()) <= set(sizes):
        return None
    return _Sizes(value, {index: sizes[pair] for index, pair in changed.items()})


def _agrees(model: onnx.ModelProto, graph: ModelGraph, path: Path) -> bool:
    """Write a file, and say whether it is the network."""
    onnx.save_model(model, str(path))
    try:
        check_parity(path, graph.runnable, graph.call)
    except (ExportError, ParityError):
        return False
    return True


def _names(model: onnx.ModelProto, graph: ModelGraph, frozen: Frozen) -> dict[str, str]:
    stored = locate(model, graph.sites, frozen.weights)
    return {found.name: site for site, found in stored.items()}
