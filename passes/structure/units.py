"""From united slots to units, and from units to groups of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.structure.context import Context
from passes.structure.slots import SlotArray


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Every unit of a graph: slots that live or die together.

    Attributes:
        group: Of each slot, the number of its group; -1 if no layer computes it.
        unit: Of each slot, the number of its unit within the group.
        sizes: Units of each group.
        why: Why each group is frozen; empty if it is free.
    """

    group: NDArray[np.int64]
    unit: NDArray[np.int64]
    sizes: tuple[int, ...]
    why: tuple[str, ...]

    def kept(self, choose: Callable[[int], NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Keep some of the units of every free group: of each slot, whether it stays.

        Args:
            choose: From the number of units of a group, those that are kept.

        Returns:
            One entry for each slot, and a last one for `ALWAYS`.
        """
        keep = np.ones(len(self.group) + 1, dtype=bool)
        for number, size in enumerate(self.sizes):
            if not self.why[number]:
                chosen = np.zeros(size, dtype=bool)
                chosen[choose(size)] = True
                members = np.flatnonzero(self.group == number)
                keep[members] = chosen[self.unit[members]]
        return keep


def find_units(context: Context, roots: SlotArray, minimum: int = 1) -> Units:
    """Group the units that the same layers compute.

    Args:
        context: What the walk learnt.
        roots: As `Slots.roots` returns them.
        minimum: Units that a group keeps at least: one of no more is frozen.
    """
    makers = _makers(context, roots)
    reasons = context.slots.reasons(roots)
    numbers: dict[tuple[int, str], int] = {}
    sizes: list[int] = []
    group_of = np.full(context.slots.count, -1, dtype=np.int64)
    unit_of = np.zeros(context.slots.count, dtype=np.int64)
    for root in np.unique(roots).tolist():
        if makers[root]:
            why = reasons.get(root, "")
            number = numbers.setdefault((int(makers[root]), why), len(numbers))
            if number == len(sizes):
                sizes.append(0)
            group_of[root], unit_of[root] = number, sizes[number]
            sizes[number] += 1
    why_of = tuple(why for _, why in numbers)
    alone = "all its channels can only go together"
    why_of = tuple(
        why or (alone if size <= minimum else "") for why, size in zip(why_of, sizes, strict=True)
    )
    return Units(group_of[roots], unit_of[roots], tuple(sizes), why_of)


def _makers(context: Context, roots: SlotArray) -> SlotArray:
    """A number for the set of parameters that compute a unit, by root; 0 for none."""
    makers = np.zeros(context.slots.count, dtype=np.int64)
    known: dict[tuple[int, int], int] = {}
    for number, entry in enumerate(context.entries.values()):
        if entry.role == "out":
            own = np.unique(roots[entry.slots[entry.slots >= 0]])
            before, place = np.unique(makers[own], return_inverse=True)
            after = [known.setdefault((b, number), len(known) + 1) for b in before.tolist()]
            if after:
                makers[own] = np.array(after)[place]
    return makers
