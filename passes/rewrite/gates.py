"""Gates: nodes that set dropped channels to zero wherever they are read.

A gated model computes what the model without these channels computes, at the size of the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph
from passes.isolation import copied
from passes.rewrite.head_attention import HeadAttention, replace_layer
from passes.structure.groups import ChannelGroup, ChannelGroups
from passes.structure.state import State, checked_state, kept_along

_CONTAINER = "gates"
_Keep = NDArray[np.bool_]


class Gate(nn.Module):
    """Sets channels to zero, infinities and NaN too.

    `torch.where` rather than a product: zero times infinity is NaN.

    Args:
        keep: Of every channel whether it stays: bool `(n,)`; a buffer, as masks of weights are.
        dim: The dimension of the input that holds the channels.
    """

    keep: Tensor
    # The tracer keeps it as one layer, as it does with those of torch.
    traced_as_layer: ClassVar[bool] = True

    def __init__(self, keep: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The input with zeros, same shape and type."""
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return torch.where(self.keep.view(shape), x, torch.zeros((), dtype=x.dtype))

    def extra_repr(self) -> str:
        """How many channels stay."""
        return f"{int(self.keep.sum())} of {self.keep.numel()} along {self.dim}"


def has_gates(module: nn.Module) -> bool:
    """Whether a gate is left anywhere in a module."""
    return any(isinstance(part, Gate) for part in module.modules())


def insert_gates(graph: ModelGraph, groups: ChannelGroups, state: State) -> GraphModule:
    """Copy the traced model and put gates before every reader of a group that loses units.

    Attention layers, which have their heads inside, become `HeadAttention` with a gate before its
    output projection.

    Args:
        graph: The traced model; it is not changed.
        groups: Its channel groups.
        state: Which units stay.

    Returns:
        A copy in the modes of the original, which shares nothing with it.

    Raises:
        ArgumentError: The state does not fit the groups.
        PreconditionError: The model has no graph, or cannot be copied.
        UnsupportedLayer: Heads are dropped of an attention layer that cannot lose any.
    """
    original = gateable_module(graph)
    state = checked_state(groups, state)
    losing = [group for group in groups.free if not state[group.name].all()]
    device = next((p.device for p in graph.module.parameters()), torch.device("cpu"))
    module: Any = copied(original, device)
    # Copies may rename nodes; they keep the order.
    originals = (node.name for node in original.graph.nodes)
    nodes = dict(zip(originals, module.graph.nodes, strict=True))
    for (name, dim), keep in _kept(reader_places(losing), state).items():
        insert_gate(module, nodes[name], Gate(torch.from_numpy(keep).to(device), dim))
    for path, keep in _kept(head_places(module, losing), state).items():
        _gate_heads(module, path, torch.from_numpy(keep).to(device))
    module.graph.lint()
    module.recompile()
    return module  # type: ignore[no-any-return]


def gateable_module(graph: ModelGraph) -> GraphModule:
    """The traced graph that gates are put into.

    Raises:
        PreconditionError: There is none.
    """
    if graph.graph_module is None:
        raise PreconditionError(
            "the model cannot be traced as a whole, so that no gate can be placed",
            where=type(graph.module).__name__,
            remedy="The decisions of the graph say what could not be traced.",
        )
    return graph.graph_module


# Where a gate belongs, the group whose units it sees, and the unit of each index or -1.
Places = Iterator[tuple[Any, ChannelGroup, NDArray[np.int64]]]


def reader_places(groups: Iterable[ChannelGroup]) -> Places:
    """Every node that reads channels of a group, as its name and the dimension of its input.

    A node that reads several groups comes once for each.
    """
    for group in groups:
        for reader in group.readers:
            yield (reader.node, reader.dim), group, reader.units


def head_places(module: nn.Module, groups: Iterable[ChannelGroup]) -> Places:
    """Every attention layer whose output projection reads heads of a group, by its path."""
    layers = {
        path
        for path, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, nn.MultiheadAttention | HeadAttention)
    }
    for group in groups:
        for member in group.members:
            owner, _, name = member.path.rpartition(".")
            if owner in layers and (name, member.role) == ("out_proj", "in"):
                yield owner, group, member.units


def _kept(places: Places, state: State) -> dict[Any, _Keep]:
    """What may be seen at each place, where that is not all."""
    found: dict[Any, _Keep] = {}
    for place, group, units in places:
        keep = kept_along(units, state[group.name])
        found[place] = found[place] & keep if place in found else keep
    return {place: keep for place, keep in found.items() if not keep.all()}


def insert_gate(module: GraphModule, node: Node, gate: Gate) -> None:
    """Put a gate between a node and its first argument, and nowhere else.

    The graph is to be compiled anew when all gates are there.
    """
    by_name = next((name for name in ("input", "self") if name in node.kwargs), "")
    source = node.args[0] if node.args else node.kwargs[by_name]
    path = add_gate(module, node, gate)
    with module.graph.inserting_before(node):
        gated = module.graph.call_module(path, (source,))
    if node.args:
        node.update_arg(0, gated)
    else:
        node.update_kwarg(by_name, gated)


def add_gate(module: GraphModule, node: Node, gate: Gate) -> str:
    """Register a gate that belongs to a node; returns its path."""
    path = _fresh(module, node.name)
    module.add_submodule(path, gate)
    module.get_submodule(path.rpartition(".")[0]).train(module.training)
    return path


def _fresh(module: GraphModule, name: str) -> str:
    """A path for a gate that nothing else has."""
    container, number = _CONTAINER, 1
    while _taken(module, container, name):
        number += 1
        container = f"{_CONTAINER}_{number}"
    return f"{container}.{name}"


def _taken(module: GraphModule, container: str, name: str) -> bool:
    holder = getattr(module, container, None)
    if holder is None:
        return False
    ours = type(holder) is nn.Module and all(isinstance(g, Gate) for g in holder.children())
    return not ours or hasattr(holder, name)


def _gate_heads(module: GraphModule, path: str, keep: Tensor) -> None:
    layer = module.get_submodule(path)
    if isinstance(layer, nn.MultiheadAttention):
        narrow = HeadAttention.of(layer, path)
        replace_layer(layer, narrow, module)
        layer = narrow
    layer.gate = Gate(keep, dim=-1).train(layer.training)
