"""How channel groups grow together when parts are removed and skip connections added.

A value that takes the place of another, or is added to it, has the same channels: the groups that
hold them become one. This is found once for each part and each skip, on the teacher alone; the
groups of a student are then the connected components of what its genotype ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from passes.architecture.steps import traced_module
from passes.graph import Decision, ModelGraph
from passes.structure.context import Context, Layout
from passes.structure.groups import ChannelGroup, ChannelGroups
from passes.structure.lines import held
from passes.structure.record import record
from passes.structure.walk import walk

# No group: a channel that always stays.
_FIXED = -1


@dataclass(frozen=True, slots=True)
class Merge:
    """What becomes one when a value takes the place of another, or is added to it.

    Attributes:
        pairs: Groups that become one, by their numbers, each pair sorted.
        frozen: Free groups that meet channels which always stay.
    """

    pairs: tuple[tuple[int, int], ...] = ()
    frozen: tuple[int, ...] = ()


class ValueMaps:
    """Of every value of a graph, the group and the unit that each of its elements belongs to.

    Args:
        graph: The traced model; one sample is run.
        groups: Its channel groups; they are numbered in their order.
    """

    def __init__(self, graph: ModelGraph, groups: ChannelGroups) -> None:
        module = traced_module(graph)
        context, self._values = walk(module, record(graph, module))
        self.groups = groups
        self._group, self._unit = _owners_of_slots(graph, groups, context)
        self._known: dict[Node, tuple[NDArray[np.int64], NDArray[np.int64]] | None] = {}

    def of(self, node: Node) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Numbers of groups, -1 for none, and units: int64 of the value's rank.

        Dimensions along which nothing changes may have size 1. `None` for what is no tensor.
        """
        if node not in self._known:
            layout = self._values.get(node)
            found = None
            if isinstance(layout, Layout) and layout.slots is not None:
                found = self._group[layout.slots], self._unit[layout.slots]
            self._known[node] = found
        return self._known[node]

    def channels(self, node: Node, dim: int, size: int) -> dict[int, NDArray[np.int64]]:
        """Of every group along a dimension, how many indices each of its units holds there.

        Args:
            node: The value.
            dim: One of its dimensions.
            size: The length of that dimension.
        """
        maps = self.of(node)
        if maps is None or any(n > 1 for d, n in enumerate(maps[0].shape) if d != dim):
            return {}
        group, unit = (np.broadcast_to(line.reshape(-1), (size,)) for line in maps)
        return {
            number: np.bincount(unit[group == number], minlength=self.groups[number].units)
            for number in np.unique(group[group >= 0]).tolist()
        }

    def merge(self, a: Node, b: Node) -> Merge | str:
        """What becomes one if a value takes the place of another; or why that cannot be.

        Args:
            a: A value.
            b: Another of the same shape.
        """
        left, right = self.of(a), self.of(b)
        if left is None or right is None or left[0].ndim != right[0].ndim:
            return "the channels of one of the two values are not known"
        lines = [line.reshape(-1) for line in np.broadcast_arrays(*left, *right)]
        pairs = np.unique(np.stack([lines[0], lines[2], lines[1], lines[3]], axis=1), axis=0)
        ties: set[tuple[int, int]] = set()
        frozen: set[int] = set()
        for first, second in {(int(p), int(q)) for p, q in pairs[:, :2]}:
            if self._free(first) != self._free(second):
                frozen.add(first if self._free(first) else second)
            elif self._free(first):
                chosen = pairs[(pairs[:, 0] == first) & (pairs[:, 1] == second)]
                if not self._alike(first, second, chosen[:, 2], chosen[:, 3]):
                    names = self.groups[first].name, self.groups[second].name
                    return f"the channels of {names[0]} and {names[1]} lie in different orders"
                if first != second:
                    ties.add((min(first, second), max(first, second)))
        return Merge(tuple(sorted(ties)), tuple(sorted(frozen)))

    def _free(self, number: int) -> bool:
        return number != _FIXED and not self.groups[number].frozen

    def _alike(self, first: int, second: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
        """Whether unit meets equal unit; between two groups, whether all units do."""
        if not (a == b).all():
            return False
        if first == second:
            return True
        units = self.groups[first].units
        return units == self.groups[second].units == len(a)


def _owners_of_slots(
    graph: ModelGraph, groups: ChannelGroups, context: Context
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group and unit of every slot; a last entry stands for what always stays."""
    roots = context.slots.roots()
    group = np.full(context.slots.count + 1, _FIXED, dtype=np.int64)
    unit = np.zeros(context.slots.count + 1, dtype=np.int64)
    for number, found in enumerate(groups):
        for member in found.members:
            tensor = held(graph, member.path, member.attribute)
            entry = context.entries.get((id(tensor), member.dim))
            if entry is None:
                continue
            mine = (member.units >= 0) & (entry.slots >= 0)
            places = roots[entry.slots[mine]]
            group[places], unit[places] = number, member.units[mine]
    group[:-1], unit[:-1] = group[roots], unit[roots]
    return group, unit


def with_even_units(groups: ChannelGroups, uneven: Iterable[tuple[int, str]]) -> ChannelGroups:
    """Freeze groups whose costs depend on which units stay, and not on how many alone.

    Args:
        groups: The groups.
        uneven: Their numbers, each with where its units hold unlike numbers of channels.
    """
    reasons = {
        groups[number].name: f"its units hold unlike numbers of channels in {where}"
        for number, where in uneven
        if not groups[number].frozen
    }

    def seen(group: ChannelGroup) -> ChannelGroup:
        why = reasons.get(group.name)
        return group if why is None else replace(group, frozen=True, why=why)

    decisions = tuple(
        Decision(group.name, "channels stay", reasons[group.name], before=f"{group.units} units")
        for group in groups
        if group.name in reasons
    )
    return ChannelGroups(tuple(map(seen, groups)), (*groups.decisions, *decisions))


def components(count: int, merges: Sequence[Merge]) -> list[int]:
    """The smallest number that each group is one with: union-find with path halving.

    Args:
        count: Number of groups.
        merges: What a genotype ties.
    """
    parent = list(range(count))
    for merge in merges:
        for a, b in merge.pairs:
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            parent[max(a, b)] = min(a, b)
    for number in range(count):  # a parent is never larger than its children
        parent[number] = parent[parent[number]]
    return parent
