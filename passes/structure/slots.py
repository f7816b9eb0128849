"""Slots: one number per removable channel, and what ties slots together.

Every element of every tensor of a graph carries the slot of the channel that it belongs to, or
`ALWAYS`. An element exists if and only if its slot is kept, so slots that can only go together are
united, and slots that cannot go are frozen.

The slots of a tensor are an int64 array of the tensor's rank in which every dimension has its full
size, or 1 where the slot does not change along it: those of a convolution are `(1, C, 1, 1)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

SlotArray = NDArray[np.int64]

# An element that is always there: part of an input, a zero that pads, a width that stays.
ALWAYS = -1


class Slots:
    """All slots of one graph: a growing set, its unions, and the reasons why some are frozen."""

    def __init__(self) -> None:
        self.count = 0
        self._edges: list[tuple[SlotArray, SlotArray]] = []
        self._frozen: list[tuple[SlotArray, str]] = []

    def fresh(self, count: int) -> SlotArray:
        """New slots, `(count,)`."""
        first, self.count = self.count, self.count + count
        return np.arange(first, self.count, dtype=np.int64)

    def unite(self, a: SlotArray, b: SlotArray, why: str) -> SlotArray:
        """Tie two arrays of slots element by element; they broadcast.

        A slot that is tied to what is always there is frozen.

        Returns:
            Slots of the result, of the broadcast shape.
        """
        a, b = np.broadcast_arrays(a, b)
        differ = a != b
        if differ.any():
            left, right = a[differ], b[differ]
            both = (left >= 0) & (right >= 0)
            self._edges.append((left[both], right[both]))
            self.freeze(np.maximum(left, right)[~both], why)
        return np.where(a < 0, b, a)

    def couple(self, slots: SlotArray, dim: int, why: str) -> SlotArray:
        """Tie all slots along one dimension, which is left with size 1."""
        if slots.shape[dim] == 1:
            return slots
        first = slots.take([0], dim)
        united = self.unite(np.broadcast_to(first, slots.shape), slots, why)
        return united.take([0], dim)

    def freeze(self, slots: SlotArray, why: str) -> None:
        """Keep slots for ever; the first reason is the one that is told."""
        found = slots[slots >= 0]
        if found.size:
            self._frozen.append((found, why))

    def roots(self) -> SlotArray:
        """The smallest slot that each slot is tied to, `(count,)`."""
        roots = np.arange(self.count, dtype=np.int64)
        if not self._edges:
            return roots
        pairs = np.stack([np.concatenate(side) for side in zip(*self._edges, strict=True)], axis=1)
        # One number per pair: sorting those is much faster than sorting rows.
        keys = np.unique(pairs.min(axis=1) * self.count + pairs.max(axis=1))
        graph = nx.Graph()
        graph.add_edges_from(
            zip((keys // self.count).tolist(), (keys % self.count).tolist(), strict=True)
        )
        for component in nx.connected_components(graph):
            members = list(component)
            roots[members] = min(members)
        return roots

    def reasons(self, roots: SlotArray) -> dict[int, str]:
        """Why what is tied to a root is frozen, by root; free roots are absent."""
        found: dict[int, str] = {}
        for slots, why in self._frozen:
            for root in np.unique(roots[slots]).tolist():
                found.setdefault(root, why)
        return found


def compact(full: SlotArray) -> SlotArray:
    """Reduce every dimension to size 1 along which nothing changes."""
    for dim, size in enumerate(full.shape):
        if size > 1:
            first = full.take([0], dim)
            if (full == first).all():
                full = first
    return full


def varying(slots: SlotArray) -> tuple[int, ...]:
    """Dimensions along which the slots change."""
    return tuple(dim for dim, size in enumerate(slots.shape) if size > 1)


def always(rank: int) -> SlotArray:
    """Slots of a tensor that is always there, of that many dimensions."""
    return np.full((1,) * rank, ALWAYS, dtype=np.int64)


def along(slots: SlotArray, dim: int, rank: int) -> SlotArray:
    """A list of slots `(n,)` as the slots of a tensor with that many dimensions."""
    return slots.reshape([-1 if d == dim % rank else 1 for d in range(rank)])


def aligned(slots: SlotArray, rank: int) -> SlotArray:
    """Put dimensions of size 1 in front, as broadcasting does."""
    return slots.reshape((1,) * (rank - slots.ndim) + slots.shape)


def first_of_groups(slots: SlotArray, groups: int, all_slots: Slots, why: str) -> SlotArray:
    """Tie a list of slots position by position across equal consecutive parts.

    Returns:
        Slots of the first part, `(n / groups,)`.
    """
    return all_slots.couple(slots.reshape(groups, -1), 0, why).reshape(-1)


def joined(parts: Sequence[SlotArray], shapes: Sequence[Sequence[int]], dim: int) -> SlotArray:
    """Concatenate slots of tensors of the given shapes along one dimension."""
    rank = parts[0].ndim
    sizes = [max(p.shape[d] for p in parts) for d in range(rank)]
    full = []
    for part, shape in zip(parts, shapes, strict=True):
        target = [shape[d] if d == dim % rank else sizes[d] for d in range(rank)]
        full.append(np.broadcast_to(part, target))
    return compact(np.concatenate(full, axis=dim))
