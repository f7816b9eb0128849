"""Plans of methods that remove channels: which units of every group stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from passes.methods.plan import PlanRow
from passes.structure.groups import ChannelGroup, ChannelGroups

# Of every free group, by name, the units that stay, ascending.
KeptUnits = dict[str, list[int]]


def kept_rows(groups: ChannelGroups, units: Mapping[str, Sequence[int]]) -> tuple[PlanRow, ...]:
    """The rows of a plan: how many units of each group stay, and why."""
    return tuple(_row(group, units) for group in groups)


def _row(group: ChannelGroup, units: Mapping[str, Sequence[int]]) -> PlanRow:
    if group.frozen:
        return PlanRow(group.name, group.units, group.units, group.why)
    keep = len(units[group.name])
    why = "by the budget"
    if keep == group.units:
        why = "all kept"
    elif keep <= group.minimum:
        why = "at its minimum"
    return PlanRow(group.name, group.units, keep, why)
