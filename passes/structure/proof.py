"""Show that what moves elements does so at every width, and freeze where the code does not.

A size in the code may be a number (`view(-1, 64)`), or follow the width (`x.size(1) // 2`). Some of
the free units are removed, every node that moves elements is run on the slots that are left, with
the sizes that the code then computes, and must give the slots that are left of its result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes.structure.context import Context, Layout
from passes.structure.movement import full
from passes.structure.slots import SlotArray, always, compact, varying
from passes.structure.units import Units, find_units


class _Misfit(Exception):
    """The code does not follow the width."""


class _Narrow:
    """The graph's shapes after some units are gone."""

    def __init__(
        self,
        context: Context,
        values: dict[Node, Any],
        roots: SlotArray,
        keep: NDArray[np.bool_],
    ) -> None:
        self.context = context
        self.values = values
        self.roots = np.append(roots, -1)
        self.keep = keep
        self.numbers: dict[Node, Any] = {}

    def slots(self, layout: Layout) -> Tensor:
        """The slots that are left of a tensor, each as its root, every dimension in full."""
        slots = self.resolved(layout)
        left = self.keep[slots]
        result, box = self.roots[slots], np.ones_like(left)
        for dim in varying(slots):
            others = tuple(d for d in range(slots.ndim) if d != dim)
            line = left.any(axis=others)
            box &= line.reshape([-1 if d == dim else 1 for d in range(slots.ndim)])
            result = np.compress(line, result, axis=dim)
        if (box != left).any() and left.any():
            raise _Misfit
        sizes = [
            result.shape[d] if slots.shape[d] > 1 else size for d, size in enumerate(layout.shape)
        ]
        return full(result, tuple(sizes))

    def resolved(self, layout: Layout) -> SlotArray:
        """The slots of a tensor; those of a parameter are what it was given in the end."""
        if layout.slots is not None:
            return layout.slots
        found = []
        for table in layout.tables:
            entry = self.context.entries.get((id(table.tensor), table.dim))
            if entry is not None:
                found.append(compact(entry.slots[table.index]))
        return reduce(np.maximum, found, always(layout.rank))

    def number(self, node: Node) -> Any:
        """What a node returns; for one that returns no tensors, computed from what is left."""
        if node not in self.numbers:
            self.numbers[node] = self._number(node)
        return self.numbers[node]

    def _number(self, node: Node) -> Any:
        value = self.values[node]
        if any(isinstance(leaf, Layout) for leaf in pytree.tree_leaves(value)):
            return pytree.tree_map_only(Layout, self._empty, value)
        if node.op not in ("call_function", "call_method"):
            return value
        args, kwargs = map_arg((node.args, node.kwargs), self.number)
        try:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # whatever the user's arithmetic raises at another width
            raise _Misfit from error

    def _empty(self, layout: Layout) -> Tensor:
        return torch.empty(self.slots(layout).shape, device="meta")

    def check(self, node: Node) -> None:
        """Raise if a node that moves elements gives something else than it should."""
        move = self.context.moved[node]

        def given(source: Node) -> Any:
            return (
                pytree.tree_map_only(Layout, self.slots, self.values[source])
                if _has_tensors(self.values[source])
                else self.number(source)
            )

        args, kwargs = map_arg((node.args, node.kwargs), given)
        try:
            moved = pytree.tree_leaves(move(*args, **kwargs))
        except Exception as error:  # torch refuses sizes that do not fit in many ways
            raise _Misfit from error
        expected = [self.slots(x) for x in pytree.tree_leaves(self.values[node]) if _tensor(x)]
        if len(moved) != len(expected) or not all(map(torch.equal, moved, expected)):
            raise _Misfit

    def check_numbers(self, node: Node) -> Node | None:
        """The argument of a node that changes with the width, if there is one."""
        for source in node.all_input_nodes:
            value = self.values[source]
            if not _has_tensors(value) and self.number(source) != value:
                return source
        return None


def _tensor(value: Any) -> bool:
    return isinstance(value, Layout)


def _has_tensors(value: Any) -> bool:
    return any(map(_tensor, pytree.tree_leaves(value)))


def prove(context: Context, values: dict[Node, Any], roots: SlotArray, seed: int = 0) -> Units:
    """Freeze what the code does not let shrink, until the rest shrinks everywhere.

    Args:
        context: What the walk learnt; gains frozen slots.
        values: Of every node, as the walk returns them.
        roots: As `Slots.roots` returns them.
        seed: Of the choice of units to remove.
    """
    generator = np.random.default_rng(seed)
    units = find_units(context, roots)
    # A size in the code may fit one choice by chance, but hardly all of these: the first half, the
    # last half, and twice a random part, so that the widths of no two groups keep their ratio.
    choices: tuple[Callable[[int], NDArray[np.int64]], ...] = (
        lambda size: np.arange((size + 1) // 2),
        lambda size: np.arange(size // 2, size),
        lambda size: generator.permutation(size)[: generator.integers(1, size)],
        lambda size: generator.permutation(size)[: generator.integers(1, size)],
    )
    clean = 0
    while clean < len(choices) and not all(units.why):
        narrow = _Narrow(context, values, roots, units.kept(choices[clean]))
        if _failures(narrow):
            clean = 0
            units = find_units(context, roots)
        else:
            clean += 1
    return units


def _failures(narrow: _Narrow) -> int:
    found = 0
    for node, value in narrow.values.items():
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        why = f"{node.name} is written for one number of channels"
        try:
            if node in narrow.context.moved:
                narrow.check(node)
                continue
            if not _has_tensors(value):
                narrow.number(node)  # an assertion may fail
                continue
            source = narrow.check_numbers(node)
            for layout in filter(_tensor, pytree.tree_leaves(value)):
                if len(varying(narrow.resolved(layout))) > 1:
                    narrow.slots(layout)
        except _Misfit:
            found += _freeze(narrow, node.all_input_nodes, why)
            found += _freeze(narrow, [node], why)
            continue
        if source is not None:
            found += _freeze(narrow, [source], f"{node.name} computes with a number of channels")
    return found


def _freeze(narrow: _Narrow, nodes: list[Node], why: str) -> int:
    """Freeze the tensors at nodes, and those whose shape the numbers there come from."""
    found, seen, todo = 0, set(), list(nodes)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        layouts = [x for x in pytree.tree_leaves(narrow.values[node]) if _tensor(x)]
        if not layouts:
            todo += node.all_input_nodes
        for layout in layouts:
            slots = narrow.resolved(layout)
            found += int((slots >= 0).any())
            narrow.context.slots.freeze(slots, why)
    return found
