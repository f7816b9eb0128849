"""Gates in the model itself, all open at first, that follow a keep-state while it is searched.

The weights are never touched: a state is set, another is tried, and `detach_gates` gives the model
back as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import Decision, ModelGraph
from passes.ising.layout import Layout
from passes.rewrite.gate_context import GateContext, LiveGate
from passes.rewrite.gated_layer import GatedLayer, takes_gate
from passes.rewrite.gates import (
    Places,
    add_gate,
    gateable_module,
    head_places,
    insert_gate,
    reader_places,
)
from passes.rewrite.head_attention import HeadAttention, replace_layer
from passes.structure.groups import ChannelGroups
from passes.structure.state import checked_state


class LiveGates:
    """The gates of a model, as `attach_gates` has placed them.

    Attributes:
        module: The graph that holds them.
        groups: The channel groups.
        layout: Their nodes.
        context: What the gates compute now.
    """

    def __init__(self, graph: ModelGraph, groups: ChannelGroups, layout: Layout) -> None:
        self.module = gateable_module(graph)
        self.groups, self.layout, self.context = groups, layout, GateContext()
        self._bits = torch.ones(layout.nodes, dtype=torch.bool)
        self._least = torch.tensor([group.minimum for group in groups.free])
        self._was_rewritten = graph.rewritten
        self._attention: list[tuple[nn.MultiheadAttention, HeadAttention]] = []

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def bits(self) -> Tensor:
        """A copy of the state that is set: bool `(nodes,)`, on the CPU."""
        return self._bits.clone()

    def set(self, bits: Tensor) -> None:
        """Set the state that the model runs with.

        Args:
            bits: Which nodes stay: bool `(nodes,)`.

        Raises:
            ArgumentError: It does not fit the groups.
        """
        checked_state(self.groups, self.layout.state(bits))
        self._bits = bits.detach().cpu().clone()
        row = _padded(self._bits).to(self.device)
        for gate in _live(self.module):
            gate.keep.copy_(row.index_select(0, gate.nodes))

    def rows(self, population: Tensor) -> Tensor:
        """States as the context takes them: bool `(states, nodes + 1)`, where the model is.

        Args:
            population: Bool `(states, nodes)`.

        Raises:
            ArgumentError: It has another shape or type, or a group keeps fewer than its minimum.
        """
        given = (population.dtype, population.dim(), population.shape[-1:])
        if given != (torch.bool, 2, (self.layout.nodes,)):
            shape = tuple(population.shape)
            raise ArgumentError(
                f"is {population.dtype} of shape {shape}, expected bool "
                f"(states, {self.layout.nodes})",
                where="population",
            )
        if self.layout.names:
            short = (self.layout.kept(population.cpu()) < self._least).nonzero()
            if len(short):
                state, group = short[0].tolist()
                raise ArgumentError(
                    f"state {state} keeps fewer units of {self.layout.names[group]!r} than its "
                    f"minimum, {int(self._least[group])}",
                    where="population",
                )
        return _padded(population).to(self.device)

    @contextmanager
    def acting(self, rows: Tensor) -> Iterator[None]:
        """While this runs, the gates compute what the rows say; see `GateContext`."""
        before = self.context.rows, self.context.folded
        self.context.rows, self.context.folded = rows, False
        try:
            yield
        finally:
            self.context.rows, self.context.folded = before


def gateable(graph: ModelGraph, groups: ChannelGroups) -> ChannelGroups:
    """The groups, those that no gate can be placed for frozen, with the reason.

    These are heads of attention layers with hooks: the layer is replaced while there are gates, and
    its hooks would not be called.

    Args:
        graph: The traced model.
        groups: Its channel groups.
    """
    if graph.graph_module is None:
        return groups
    module, why = graph.graph_module, "heads of a layer with hooks"
    hooked = {
        group.name
        for path, group, _ in head_places(module, groups.free)
        if _has_hooks(module.get_submodule(path))
    }
    found = (replace(g, frozen=True, why=why) if g.name in hooked else g for g in groups)
    decisions = (Decision(name, "channels stay", why) for name in sorted(hooked))
    return ChannelGroups(tuple(found), (*groups.decisions, *decisions))


def attach_gates(graph: ModelGraph, groups: ChannelGroups, layout: Layout) -> LiveGates:
    """Put a gate before every reader of every free group, in place; all nodes stay at first.

    `graph.graph_module` is the model from now on. Attention layers, which have their heads inside,
    become `HeadAttention` with the same parameters and a gate before the output projection.

    Args:
        graph: The traced model.
        groups: Its channel groups; `gateable` tells which of them can have gates.
        layout: Their nodes: `Layout.of(groups)`.

    Raises:
        ArgumentError: The layout is that of other groups.
        PreconditionError: The model has no graph, or an attention layer has hooks.
        UnsupportedLayer: An attention layer cannot be gated.
    """
    if layout != Layout.of(groups):
        raise ArgumentError("is the layout of other groups", where="layout")
    gates = LiveGates(graph, groups, layout)
    device, module = gates.device, gates.module
    heads = _indices(head_places(module, groups.free), layout)
    layers = {path: _head_attention(module, path) for path, _ in heads}
    nodes = {node.name: node for node in module.graph.nodes}
    for (name, dim), index in _indices(reader_places(groups.free), layout):
        _place(module, nodes[name], torch.from_numpy(index).to(device), dim, gates.context)
    for path, index in heads:
        old, layer = layers[path]
        gate = LiveGate(torch.from_numpy(index).to(device), -1, gates.context)
        layer.gate = gate.train(layer.training)
        if isinstance(old, nn.MultiheadAttention):
            replace_layer(old, layer, graph.module, module)
            gates._attention.append((old, layer))
    _recompile(module)
    graph.rewritten = True
    return gates


def _place(module: GraphModule, node: Node, index: Tensor, dim: int, context: GateContext) -> None:
    """Put a gate before a reader; a layer that sums over its channels becomes one with its gate."""
    if not takes_gate(module, node):
        insert_gate(module, node, LiveGate(index, dim, context))
        return
    path = str(node.target)
    layer = GatedLayer(index, dim, context, path, module.get_submodule(path))
    node.target = add_gate(module, node, layer)


def detach_gates(graph: ModelGraph, gates: LiveGates) -> None:
    """Take every gate out again; the model computes with all nodes and can be cut.

    Attention layers are those of torch again, and `graph.rewritten` is what it was.

    Args:
        graph: The model; it is changed in place.
        gates: What `attach_gates` returned for it.

    Raises:
        ArgumentError: They are the gates of another model.
    """
    if gates.module is not graph.graph_module:
        raise ArgumentError("are those of another model", where="gates")
    for old, layer in gates._attention:
        replace_layer(layer, old.train(layer.training), graph.module, gates.module)
    remove_live_gates(gates.module)
    graph.rewritten = gates._was_rewritten


def remove_live_gates(module: GraphModule) -> None:
    """Remove the nodes and modules of all live gates from a graph, in place."""
    for node in list(module.graph.nodes):
        part = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(part, GatedLayer):
            node.target = part.path
        elif isinstance(part, LiveGate):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    for part in module.modules():
        if isinstance(part, HeadAttention) and isinstance(part.gate, LiveGate):
            part.gate = None
    for path, part in list(module.named_modules()):
        if isinstance(part, LiveGate):
            holder = path.rpartition(".")[0]
            module.delete_submodule(path)
            if not list(module.get_submodule(holder).children()):
                module.delete_submodule(holder)
    _recompile(module)


def _recompile(module: GraphModule) -> None:
    module.graph.lint()
    module.recompile()


def _live(module: nn.Module) -> Iterator[LiveGate]:
    return (part for part in module.modules() if isinstance(part, LiveGate))


def _padded(states: Tensor) -> Tensor:
    """With a last column for what always stays."""
    return torch.cat([states, states.new_ones(*states.shape[:-1], 1)], dim=-1)


def _indices(places: Places, layout: Layout) -> list[tuple[Any, NDArray[np.int64]]]:
    """The node of every channel that is read at each place; a place comes twice if two meet."""
    found: dict[Any, list[NDArray[np.int64]]] = {}
    always = layout.nodes
    for place, group, units in places:
        flat = np.where(units >= 0, units + layout.parts[group.name].start, always)
        here = found.setdefault(place, [])
        free = next((i for i in here if ((i == always) | (flat == always)).all()), None)
        if free is None:
            here.append(flat)
        else:
            np.copyto(free, flat, where=flat != always)
    return [(place, index) for place, here in found.items() for index in here]


def _head_attention(module: nn.Module, path: str) -> tuple[nn.Module, HeadAttention]:
    """An attention layer, and what takes its place.

    Raises:
        PreconditionError: It has hooks, which would not be called.
    """
    layer = module.get_submodule(path)
    if isinstance(layer, HeadAttention):
        return layer, layer
    assert isinstance(layer, nn.MultiheadAttention)
    if _has_hooks(layer):
        raise PreconditionError(
            "the layer has hooks, and is to be replaced",
            where=path,
            remedy="Remove them, and register them again afterwards.",
        )
    return layer, HeadAttention.of(layer, path)


def _has_hooks(layer: nn.Module) -> bool:
    if isinstance(layer, HeadAttention):
        return False  # stays where it is
    tables = (layer._forward_hooks, layer._forward_pre_hooks)
    return any((*tables, layer._backward_hooks, layer._backward_pre_hooks))
