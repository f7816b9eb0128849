"""Which units stay under a budget: the ones with the lowest scores go, what still fits returns.

The repair step of H. Salehinejad and S. Valaee, "EDropout: Energy-Based Dropout and Pruning of Deep
Neural Networks" (IEEE TNNLS 2022), generalised to any scores, any costs and several limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from energy_model.resolved import ResolvedLimit
from passes.structure.costs import StructureCosts
from passes.structure.groups import ChannelGroups
from passes.structure.ranking import allowed_counts
from passes.structure.restrict import restricted
from passes.structure.search import Scores, Search
from passes.structure.state import State

__all__ = [
    "Selection",
    "repair",
    "restricted",
    "select_global",
    "select_per_layer",
    "select_smallest",
]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which units stay.

    Attributes:
        state: Of every free group, by name, whether each unit stays: bool `(units,)`.
        reached: What that costs, by key.
    """

    state: dict[str, NDArray[np.bool_]]
    reached: dict[str, int | float]

    @property
    def kept(self) -> dict[str, int]:
        """Number of units that stay, by group."""
        return {name: int(np.count_nonzero(keep)) for name, keep in self.state.items()}


def select_global(
    costs: StructureCosts,
    groups: ChannelGroups,
    scores: Scores,
    limits: Sequence[ResolvedLimit],
    *,
    multiple: int = 1,
    per_cost: bool = False,
    state: State | None = None,
) -> Selection:
    """Rank the units of all groups together.

    While a limit is exceeded, the block of units with the lowest mean score goes; with `per_cost`,
    the one with the lowest score for what it saves, which is the sum over the exceeded limits of
    its share in what is too much. Then, as long as one fits, the block with the highest mean score
    returns. Ties go by the order of the groups, then by index.

    Args:
        costs: Costs of the keep-states, among them all that are limited.
        groups: The groups; those that costs does not know as free must be frozen.
        scores: Of every free group a number for each unit, `(units,)`.
        limits: The budget in absolute terms.
        multiple: Channel counts are to be multiples of this.
        per_cost: Rank by score per saving.
        state: Where to start; `None` is with everything. A number of units that is not allowed is
            raised to the next one that is, before anything goes.

    Raises:
        InfeasibleBudget: A limit is exceeded with the fewest units, too, or no group is free.
        PreconditionError: The costs of a free group cannot be counted.
        ArgumentError: Scores, state or multiple are malformed.
    """
    search = Search(costs, groups, scores, limits, multiple, state)
    search.drop(per_cost=per_cost)
    search.fill()
    return _selection(search)


def repair(
    costs: StructureCosts,
    groups: ChannelGroups,
    state: State,
    scores: Scores,
    limits: Sequence[ResolvedLimit],
    *,
    multiple: int = 1,
    per_cost: bool = True,
) -> Selection:
    """The nearest state that fits: least score per saving goes, then what fits returns.

    A state that fits, and with which nothing more does, stays as it is; see `select_global`.
    """
    return select_global(
        costs, groups, scores, limits, multiple=multiple, per_cost=per_cost, state=state
    )


def select_per_layer(
    costs: StructureCosts,
    groups: ChannelGroups,
    scores: Scores,
    limits: Sequence[ResolvedLimit],
    *,
    multiple: int = 1,
) -> Selection:
    """The same share of every group stays, the largest with which all limits hold.

    Every group keeps the allowed number of units that is nearest to the share; ties go up. All
    shares at which a number changes are tried from the largest one on: the energy of a layer may
    rise when a channel goes, as its rows then pack differently into the cache, so that bisection
    could miss the largest.

    Args, Raises: As `select_global`.
    """
    search = Search(costs, groups, scores, limits, multiple, None)
    changes: dict[Fraction, list[str]] = {}
    for group in groups.free:
        counts = allowed_counts(group, multiple)
        for before, after in pairwise(counts):
            changes.setdefault(Fraction(before + after, 2 * group.units), []).append(group.name)
    for share in sorted(changes, reverse=True):
        if not search.exceeded():
            break
        for name in changes[share]:
            search.move_out(name)
    search.check()
    return _selection(search)


def select_smallest(
    costs: StructureCosts, groups: ChannelGroups, scores: Scores, *, multiple: int = 1
) -> Selection:
    """The fewest units of every group stay, those with the highest scores.

    Args, Raises: As `select_global`; there is no limit that could be exceeded.
    """
    search = Search(costs, groups, scores, (), multiple, None)
    for name, ranking in search.rankings.items():
        while ranking.next_out() is not None:
            search.move_out(name)
    return _selection(search)


def _selection(search: Search) -> Selection:
    state = {name: ranking.keep() for name, ranking in search.rankings.items()}
    return Selection(state, dict(zip(search.costs.keys, search.tally.values, strict=True)))
