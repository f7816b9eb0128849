"""Channel groups: which channels of a model go together, and where each of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from passes.graph import Decision, ModelGraph
from passes.structure.context import Context
from passes.structure.proof import prove
from passes.structure.record import record
from passes.structure.slots import SlotArray
from passes.structure.units import Units
from passes.structure.walk import walk

_MINIMUM = 1


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One dimension of one parameter or buffer that holds channels of a group.

    Attributes:
        path: The module's path; empty for the model itself.
        attribute: Name of the parameter or buffer in the module.
        dim: The dimension.
        units: For every index along `dim` its unit in the group, or -1: int64 `(n,)`.
        role: `"out"` where channels are computed, `"in"` where a layer reads them and sums over
            them, `"vector"` where each is treated on its own.
    """

    path: str
    attribute: str
    dim: int
    units: NDArray[np.int64]
    role: str

    @property
    def name(self) -> str:
        """Path of the parameter."""
        return f"{self.path}.{self.attribute}" if self.path else self.attribute


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A node that sums over channels of a group: where a gate belongs.

    Attributes:
        node: Name of the node in the graph; the channels are in its first argument.
        dim: The dimension of that argument.
        units: For every index along `dim` its unit in the group, or -1: int64 `(n,)`.
    """

    node: str
    dim: int
    units: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units that the same layers compute; each unit is removed as a whole or not at all.

    Attributes:
        name: Path of the first layer that computes it.
        units: Number of units.
        unit_size: Channels of that layer in one unit.
        members: Every place that holds the group's channels; tied parameters once for each owner.
        readers: Every node of the graph that sums over its channels. Attention layers that torch
            offers as one sum over heads inside.
        frozen: Whether all units stay.
        why: Why it is frozen; empty if it is free.
        minimum: Units that stay at least.
    """

    name: str
    units: int
    unit_size: int
    members: tuple[Member, ...]
    readers: tuple[Reader, ...]
    frozen: bool
    why: str
    minimum: int = _MINIMUM

    @property
    def producers(self) -> tuple[str, ...]:
        """Paths of the parameters that compute the channels."""
        return tuple(member.name for member in self.members if member.role == "out")


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """All channel groups of a model, in the order in which they are computed.

    Attributes:
        groups: Free and frozen ones.
        decisions: Why groups are frozen, and which layers with weights no rule covers.
    """

    groups: tuple[ChannelGroup, ...]
    decisions: tuple[Decision, ...] = field(default=())

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups whose units can be removed."""
        return tuple(group for group in self.groups if not group.frozen)

    @property
    def by_name(self) -> dict[str, ChannelGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> ChannelGroup:
        return self.groups[index]

    def __str__(self) -> str:
        """A table with one row for each group."""
        width = max((len(group.name) for group in self.groups), default=5)
        rows = [f"{'group':{width}}  units  size  members  state"]
        for group in self.groups:
            state = f"frozen: {group.why}" if group.frozen else "free"
            rows.append(
                f"{group.name:{width}}  {group.units:5d}  {group.unit_size:4d}  "
                f"{len(group.members):7d}  {state}"
            )
        units = sum(group.units for group in self.free)
        rows.append(f"{len(self.free)} of {len(self.groups)} groups are free: {units} units")
        return "\n".join(rows)


def channel_groups(graph: ModelGraph) -> ChannelGroups:
    """Find the channels that live or die together; the model is not changed.

    If a channel is removed from all members of its group, the model computes what it computed
    before, as long as every layer that reads the channel (role `"in"`) is given zeros for it. What
    cannot be shown to have this property is frozen, with the reason.

    Args:
        graph: A traced model; one sample of its example inputs is run.
    """
    module = graph.graph_module
    if module is None:
        leaf = graph.leaves[0].reason if graph.leaves else "it has no graph"
        why = f"cannot be traced as a whole: {leaf}"
        return ChannelGroups((), (Decision("", "no channel groups", why),))
    context, values = walk(module, record(graph, module))
    owners = _owners(graph)
    _freeze_shared(context, owners)
    units = prove(context, values, context.slots.roots())
    groups = _groups(context, units, owners)
    decisions = tuple(
        Decision(group.name, "channels stay", group.why, before=f"{group.units} units")
        for group in groups
        if group.frozen
    )
    opaque = tuple(
        Decision(path, "channels stay", f"there is no rule for {kind}")
        for path, kind in context.opaque.items()
    )
    return ChannelGroups(groups, (*decisions, *opaque))


Owners = dict[int, list[tuple[str, str]]]


def _owners(graph: ModelGraph) -> Owners:
    """Every module and attribute that holds a tensor, by its identity."""
    found: Owners = {}
    for model in (graph.module, graph.graph_module):
        if model is None:
            continue
        for path, part in model.named_modules():
            for name, value in (*part._parameters.items(), *part._buffers.items()):
                places = found.setdefault(id(value), [])
                if value is not None and (path, name) not in places:
                    places.append((path, name))
    return found


def _freeze_shared(context: Context, owners: Owners) -> None:
    """Freeze parameters with a use that no rule covers, and those that share memory."""
    pinned = {id(tensor): why for tensor, why in context.pinned}
    memory: dict[int, set[int]] = {}
    for tensor in _tensors(context):
        memory.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))
    for entry in context.entries.values():
        tensor = entry.tensor
        if id(tensor) in pinned:
            context.slots.freeze(entry.slots, pinned[id(tensor)])
        if len(memory[tensor.untyped_storage()._cdata]) > 1:
            context.slots.freeze(entry.slots, "shares its memory with another parameter")
        if id(tensor) not in owners:
            context.slots.freeze(entry.slots, "meets a tensor that no module holds")


def _tensors(context: Context) -> list[Tensor]:
    held = [*context.module.parameters(), *context.module.buffers()]
    return [*held, *(entry.tensor for entry in context.entries.values())]


def _groups(context: Context, units: Units, owners: Owners) -> tuple[ChannelGroup, ...]:
    members: list[list[Member]] = [[] for _ in units.sizes]
    for entry in context.entries.values():
        for number, indices in _parts(entry.slots, units):
            members[number] += [
                Member(path, name, entry.dim, indices, entry.role)
                for path, name in owners.get(id(entry.tensor), ())
            ]
    readers: list[list[Reader]] = [[] for _ in units.sizes]
    for read in context.reads:
        for number, indices in _parts(read.slots, units):
            readers[number].append(Reader(read.node.name, read.dim, indices))
    names: dict[str, int] = {}
    groups = []
    for number, count in enumerate(units.sizes):
        first = next((m for m in members[number] if m.role == "out"), None)
        stem = (first.path or first.attribute) if first is not None else "unnamed"
        channels = (
            int(np.count_nonzero(m.units == 0))
            for m in members[number]
            if first is not None and m.role == "out" and m.path == first.path
        )
        names[stem] = names.get(stem, 0) + 1
        name = stem if names[stem] == 1 else f"{stem}#{names[stem]}"
        why = units.why[number]
        groups.append(
            ChannelGroup(
                name,
                count,
                max(channels, default=0),
                tuple(members[number]),
                tuple(readers[number]),
                bool(why),
                why,
            )
        )
    return tuple(groups)


def _parts(slots: SlotArray, units: Units) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The groups that a list of slots holds channels of, and the unit of each index in them."""
    group = np.append(units.group, -1)[slots]
    for number in np.unique(group[group >= 0]).tolist():
        yield number, np.where(group == number, np.append(units.unit, -1)[slots], -1)
