"""A copy of a model without gates that becomes really small, state after state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from energy_model.errors import PreconditionError
from passes.ising.slice_memory import SliceMemory
from passes.rewrite.fold_batch_norm import fold_batch_norms
from passes.rewrite.layer_numbers import match_parameters
from passes.rewrite.live_gates import LiveGates, remove_live_gates

Table = dict[str, Tensor | None]

# Plans that are kept: parents are scored again in every generation.
_PLANS = 256


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A tensor of the shell that loses indices.

    Attributes:
        source: Where the whole tensor is: a table of parameters or buffers.
        target: The table of the shell.
        name: The name in both.
        lines: By dimension, the number of the line that cuts it.
    """

    source: Table
    target: Table
    name: str
    lines: tuple[tuple[int, int], ...]


@dataclass(slots=True, eq=False)
class _Plan:
    """What a state leaves.

    Attributes:
        indices: For each line the indices that stay, int64; `None` if all do.
        numbers: The numbers of each layer that loses something; `None` until it was loaded.
    """

    indices: tuple[Tensor | None, ...]
    numbers: tuple[dict[str, int], ...] | None = None

    def cuts(self, lines: tuple[tuple[int, int], ...]) -> list[tuple[int, Tensor]]:
        """Of the dimensions and their lines, those that lose something, and what stays."""
        found = ((dim, self.indices[line]) for dim, line in lines)
        return [(dim, indices) for dim, indices in found if indices is not None]


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A layer and the batch norm that it takes up.

    Attributes:
        layer: The layer of the model.
        norm: The norm of the model.
        tensors: The layer's weight and bias with the norm in them.
    """

    layer: Any
    norm: Any
    tensors: Table


class SlicedShell:
    """The model as it would be if channels were removed; nothing of it is computed from gates.

    Layers of the shell hold the parameters and buffers of the model itself, or what `index_select`
    leaves of them until the next state (no output is a slice, as outputs keep their shapes). Lines,
    the ways in which dimensions are cut, are few: most tensors share them.

    Args:
        gates: Those of the model.
        fold_norms: Let layers take up the batch norms behind them, by their running statistics.

    Raises:
        PreconditionError: The model cannot be copied, or a layer is parametrized.
    """

    def __init__(self, gates: LiveGates, *, fold_norms: bool) -> None:
        self._gates = gates
        self.module = _copy_of(gates.module)
        self._pairs = dict(self._take_up_norms()) if fold_norms else {}
        self._tables = [
            (mine, theirs)
            for path, part in self.module.named_modules()
            for mine, theirs in zip(_tables(part), _tables(self._of_model(path)), strict=True)
        ]
        self._lines: list[NDArray[np.int64]] = []
        self._numbers_of_lines: dict[bytes, int] = {}
        self._places = list(self._find_places())
        self._parts = self._cut_layers()
        self._whole = tuple(_numbers(part) for part in self._parts)
        self._plan = lru_cache(_PLANS)(self._plan_of)
        self._memory = SliceMemory()

    def refresh(self) -> None:
        """Read the tensors that the model holds now."""
        self.release()
        for pair in self._pairs.values():
            pair.tensors.update(_folded(pair))

    def release(self) -> None:
        """Hold the whole tensors of the model, and nothing else."""
        for mine, theirs in self._tables:
            mine.update((name, theirs[name]) for name in mine)
        for pair in self._pairs.values():
            pair.tensors.update(weight=None, bias=None)

    def load(self, bits: Tensor) -> None:
        """Become the model in a state; `refresh` first.

        Args:
            bits: Which nodes stay: bool `(nodes,)`, on the CPU.
        """
        plan = self._plan(bits.numpy().tobytes())
        cut: dict[int, Tensor] = {}
        for place in self._places:
            tensor = place.source[place.name]
            if tensor is None:
                continue
            if id(tensor) not in cut:  # tied tensors are cut once
                cut[id(tensor)] = self._memory.select(place, tensor, plan.cuts(place.lines))
            place.target[place.name] = cut[id(tensor)]
        if plan.numbers is None:
            self._tell(self._whole)
            for part in self._parts:
                match_parameters(part)
            plan.numbers = tuple(_numbers(part) for part in self._parts)
        self._tell(plan.numbers)

    def _tell(self, numbers: tuple[dict[str, int], ...]) -> None:
        for part, values in zip(self._parts, numbers, strict=True):
            part.__dict__.update(values)

    def _of_model(self, path: str) -> nn.Module:
        return self._gates.module.get_submodule(path)

    def _take_up_norms(self) -> Iterator[tuple[str, _Pair]]:
        """Remove norms that layers take up; yields the paths of these layers."""
        spread = {
            n for n, part in self.module.named_modules() if isinstance(part, _ConvTransposeNd)
        }
        norms = set(fold_batch_norms(copy.deepcopy(self.module), alone=frozenset(spread)))
        for node in list(self.module.graph.nodes):
            if node.op == "call_module" and node.target in norms:
                layer = node.args[0]
                node.replace_all_uses_with(layer)
                self.module.graph.erase_node(node)
                live = self._of_model(layer.target), self._of_model(node.target)
                yield layer.target, _Pair(*live, {})
        self.module.recompile()
        self.module.delete_all_unused_submodules()

    def _find_places(self) -> Iterator[_Place]:
        """Every tensor of the shell that a free group cuts, and those that hold norms."""
        layers = dict(self.module.named_modules())
        cut = self._cut_dimensions()
        for (path, name), lines in cut.items():
            for number, target in enumerate(_tables(layers.get(path))):
                if name in target and path not in self._pairs:
                    source = _tables(self._of_model(path))[number]
                    yield _Place(source, target, name, tuple(lines.items()))
        for path, pair in self._pairs.items():
            target, lines = layers[path]._parameters, cut.get((path, "weight"), {})
            rows = tuple((dim, line) for dim, line in lines.items() if dim == 0)
            yield _Place(pair.tensors, target, "weight", tuple(lines.items()))
            yield _Place(pair.tensors, target, "bias", rows)

    def _cut_dimensions(self) -> dict[tuple[str, str], dict[int, int]]:
        """By path and attribute of each tensor that is cut, the line of each dimension."""
        nodes: dict[tuple[str, str], dict[int, NDArray[np.int64]]] = {}
        layout = self._gates.layout
        for group in self._gates.groups.free:
            start = layout.parts[group.name].start
            for member in group.members:
                dims = nodes.setdefault((member.path, member.attribute), {})
                index = dims.setdefault(member.dim, np.full(len(member.units), layout.nodes))
                np.copyto(index, member.units + start, where=member.units >= 0)
        return {
            place: {dim: self._line(index) for dim, index in dims.items()}
            for place, dims in nodes.items()
        }

    def _line(self, nodes: NDArray[np.int64]) -> int:
        """The number of a line, given the node of each index."""
        key = nodes.tobytes()
        if key not in self._numbers_of_lines:
            self._numbers_of_lines[key] = len(self._lines)
            self._lines.append(nodes)
        return self._numbers_of_lines[key]

    def _cut_layers(self) -> list[Any]:
        """The layers that hold the places.

        Raises:
            PreconditionError: One of them computes its weight from others.
        """
        tables = {id(place.target) for place in self._places}
        found = []
        for path, part in self.module.named_modules():
            if any(id(table) in tables for table in _tables(part)):
                if parametrize.is_parametrized(part) or "parametrizations" in path.split("."):
                    raise PreconditionError(
                        "the layer is parametrized, so that its weight cannot be sliced",
                        where=path,
                        remedy="Score with another back end.",
                    )
                found.append(part)
        return found

    def _plan_of(self, bits: bytes) -> _Plan:
        row = np.append(np.frombuffer(bits, dtype=bool), True)
        device = self._gates.device

        def indices(nodes: NDArray[np.int64]) -> Tensor | None:
            keep = row[nodes]
            return None if keep.all() else torch.from_numpy(np.flatnonzero(keep)).to(device)

        return _Plan(tuple(map(indices, self._lines)))


def _copy_of(module: GraphModule) -> GraphModule:
    """A copy in evaluation mode without gates, that holds the same tensors."""
    held: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        shell: GraphModule = copy.deepcopy(module, held)
    except RuntimeError as error:
        raise PreconditionError(
            f"the model cannot be copied: {str(error).splitlines()[0]}",
            where=type(module).__name__,
            remedy="Detach tensors that were stored on modules during training.",
        ) from error
    remove_live_gates(shell)
    return shell.eval()


def _tables(part: nn.Module | None) -> tuple[Any, ...]:
    return () if part is None else (part._parameters, part._buffers)


def _numbers(part: nn.Module) -> dict[str, int]:
    """The numbers that a layer tells."""
    return {name: value for name, value in vars(part).items() if type(value) is int}


def _folded(pair: _Pair) -> Table:
    """A layer's weight and bias with a norm in them, `(C_out, ...)` and `(C_out,)`."""
    layer, norm = pair.layer, pair.norm
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    if layer.bias is not None:
        shift = shift + layer.bias * scale
    return {"weight": layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)), "bias": shift}
