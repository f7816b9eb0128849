"""What a rule works with: layouts of tensors, the call that it judges, and the members so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.structure.record import Shape
from passes.structure.slots import SlotArray, Slots, along, always, compact, varying


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One dimension of a parameter or buffer that the graph reads as a tensor.

    Attributes:
        tensor: The parameter.
        dim: The dimension.
        index: For every element of the present tensor its index along `dim`, as slots are.
    """

    tensor: Tensor
    dim: int
    index: SlotArray


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The slots of one tensor of the graph.

    Attributes:
        shape: Its shape.
        slots: As `passes.structure.slots`; `None` for a parameter that has met no channels yet.
        tables: The dimensions of the parameters that it was made from alone.
    """

    shape: tuple[int, ...]
    slots: SlotArray | None
    tables: tuple[Table, ...] = ()

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def kept_whole(shape: tuple[int, ...]) -> Layout:
    """The layout of a tensor that is always there."""
    return Layout(shape, always(len(shape)))


# A tied parameter may have several roles: what computes channels counts most.
_ROLES = ("vector", "in", "out")


@dataclass(eq=False)
class Entry:
    """The slots along one dimension of a parameter or buffer.

    Attributes:
        tensor: The parameter or buffer.
        dim: The dimension.
        slots: One for each index, `(n,)`.
        role: `"out"` where channels are computed, `"in"` where they are read, `"vector"` where
            each is treated on its own.
    """

    tensor: Tensor
    dim: int
    slots: SlotArray
    role: str


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A node that sums over the channels of its first argument.

    Attributes:
        node: The node.
        dim: The dimension of the argument.
        slots: One for each index, `(n,)`.
    """

    node: Node
    dim: int
    slots: SlotArray


@dataclass(frozen=True, slots=True)
class Call:
    """One node that returns tensors.

    Attributes:
        node: The node; its arguments show what is written in the code.
        args: Arguments, tensors as layouts.
        kwargs: Keyword arguments likewise.
        result: What it returned, tensors as `Shape`.
        module: The layer that it calls, if it calls one.
    """

    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    module: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only, or first, tensor that it returns."""
        return next(s.sizes for s in pytree.tree_leaves(self.result) if isinstance(s, Shape))

    @property
    def layouts(self) -> list[Layout]:
        """Every tensor among the arguments, in order."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Layout)]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def written(self, position: int, name: str) -> Any:
        """An argument as it stands in the graph: a node, or a number in the code."""
        args = self.node.args
        return args[position] if len(args) > position else self.node.kwargs.get(name)

    def filled(self, layout: Layout) -> Any:
        """The same slots for every tensor that it returns, if their ranks agree."""
        return pytree.tree_map_only(
            Shape,
            lambda s: replace(layout, shape=s.sizes) if len(s.sizes) == layout.rank else None,
            self.result,
        )

    def __str__(self) -> str:
        """For reasons: what is called, and where."""
        if self.module is not None:
            return f"{self.node.target} ({type(self.module).__name__})"
        target = self.node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        path = list((self.node.meta.get("nn_module_stack") or {"": ("",)}).values())[-1][0]
        return f"{name} in {path}" if path else f"{name} ({self.node.name})"


@dataclass(eq=False)
class Context:
    """The state of one walk over a graph.

    Attributes:
        module: The traced graph.
        slots: All slots.
        entries: The slots of parameters, by tensor and dimension.
        pinned: Parameters that something reads that no rule covers, and why.
        reads: Where channels are summed over.
        opaque: Layers with weights that no rule covers, by path, and their class.
        moved: Nodes that only move elements; that they do so at every width is proved later.
    """

    module: GraphModule
    slots: Slots = field(default_factory=Slots)
    entries: dict[tuple[int, int], Entry] = field(default_factory=dict)
    pinned: list[tuple[Tensor, str]] = field(default_factory=list)
    moved: dict[Node, Callable[..., Any]] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)

    def read(self, call: Call, dim: int, slots: SlotArray) -> None:
        """Note that a node sums over the channels of its first argument."""
        self.reads.append(Read(call.node, dim, slots))

    def enter(self, tensor: Tensor | None, dim: int, slots: SlotArray, role: str, why: str) -> None:
        """Give a dimension of a parameter its slots; each further use ties them."""
        if tensor is None:
            return
        entry = self.entries.setdefault((id(tensor), dim), Entry(tensor, dim, slots, role))
        if entry.slots is not slots:
            why = f"{why} shares a parameter with a layer of fixed width"
            entry.slots = self.slots.unite(entry.slots, slots, why)
            entry.role = max(entry.role, role, key=_ROLES.index)

    def enter_layer(
        self, layer: nn.Module, names: str, slots: SlotArray, role: str, why: str
    ) -> None:
        """Give the first dimension of some of a layer's parameters and buffers their slots."""
        for name in names.split():
            self.enter(getattr(layer, name, None), 0, slots, role, why)

    def pin(self, layout: Layout, why: str) -> None:
        """Keep the parameters whole that a tensor was made from."""
        self.pinned += [(table.tensor, why) for table in layout.tables]

    def known(self, layout: Layout, why: str) -> SlotArray:
        """The slots of a tensor; a parameter that is used here as a tensor stays whole."""
        if layout.slots is None:
            self.pin(layout, why)
            return always(layout.rank)
        return layout.slots

    def freeze(self, layout: Layout, why: str) -> None:
        """Keep all channels of a tensor."""
        self.slots.freeze(self.known(layout, why), why)

    def channels(self, layout: Layout, dim: int, why: str) -> SlotArray:
        """The slots along one dimension, `(n,)`; frozen if they change along another one too."""
        slots = self.known(layout, why)
        dim %= layout.rank
        if set(varying(slots)) - {dim}:
            self.slots.freeze(slots, why)
            slots = always(layout.rank)
        line = slots.reshape(-1)
        return np.broadcast_to(line, (layout.shape[dim],)).copy()

    def passes(self, layout: Layout, dims: set[int], why: str) -> Layout:
        """What an operation leaves that mixes along some dimensions: frozen if slots change."""
        slots = self.known(layout, why)
        if dims & set(varying(slots)):
            self.slots.freeze(slots, why)
            return kept_whole(layout.shape)
        return Layout(layout.shape, slots)


Rule = Callable[[Context, Call], Any]


def no_rule(context: Context, call: Call) -> Any:
    """Keep whole what reaches an operation that is not understood, and what leaves it."""
    why = f"reaches {call}, for which there is no rule"
    for layout in call.layouts:
        context.freeze(layout, why)
    if call.module is not None:
        held = (*call.module.parameters(), *call.module.buffers())
        context.pinned += [(tensor, why) for tensor in held]
        if held:
            context.opaque[str(call.node.target)] = type(call.module).__name__
    return pytree.tree_map_only(Shape, lambda s: kept_whole(s.sizes), call.result)


def produced(context: Context, slots: SlotArray, call: Call, dim: int) -> Layout:
    """The layout of a layer's output, whose channels run along one dimension."""
    return Layout(call.shape, compact(along(slots, dim, len(call.shape))))
