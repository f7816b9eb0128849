"""All that is known of a teacher before any student: steps, parts, skips, groups, and what ties."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import nn

from passes.architecture.costs import owning_steps
from passes.architecture.coupling import Merge, ValueMaps, components, with_even_units
from passes.architecture.policy import Policy
from passes.architecture.removals import Chain, Part, RemovalFinder, chains
from passes.architecture.skips import Skip, possible_skips
from passes.architecture.steps import Step, output_shapes, read_steps, traced_module
from passes.graph import ModelGraph
from passes.structure.groups import ChannelGroups, channel_groups
from passes.structure.lines import Lines, held
from passes.structure.restrict import restricted
from passes.structure.state import least_units, unit_step


@dataclass(frozen=True, slots=True)
class WidthRule:
    """The widths that a channel group can have.

    Attributes:
        units: Units of the teacher.
        step: Others are multiples of this.
        least: The smallest.
    """

    units: int
    step: int
    least: int

    def nearest(self, count: int) -> int:
        """The nearest allowed number of units; ties go up."""
        below = (2 * count + self.step) // (2 * self.step) * self.step
        if self.units - count <= abs(below - count):
            return self.units
        return min(self.units, max(self.least, below))

    def allows(self, count: int) -> bool:
        """Whether a group can have that many units."""
        return count == self.units or (self.least <= count < self.units and count % self.step == 0)


class Structure:
    """A teacher, as the search sees it.

    Args:
        graph: The traced model; it is not changed, and must not change afterwards.
        policy: What the search space allows.
        multiple: Channel counts are multiples of this, or the teacher's.

    Attributes:
        steps: Every node of the graph.
        chains: The layers of the sketch, as the steps that each is made of.
        groups: Channel groups, frozen where a width cannot be searched.
        parts: What can be removed, by name.
        skips: What can be added, by places of source and target.
        by_label: Places of the steps by label.
        rules: The widths that each group can have, by number.
        ties: Groups whose widths the policy ties.
        layer_of: Of every step the number of its layer, or -1.
        outputs: Shapes of what the model returns for one sample.
        decisions: What cannot be changed, and why.

    Raises:
        PreconditionError: The model as a whole could not be traced.
    """

    def __init__(self, graph: ModelGraph, policy: Policy, multiple: int) -> None:
        self.graph, self.policy = graph, policy
        self.steps = read_steps(graph)
        self.chains = chains(self.steps)
        self.layer_of = _layers(self.steps, self.chains)
        groups = restricted(channel_groups(graph), graph)
        maps = ValueMaps(graph, groups)
        self.groups = with_even_units(groups, _uneven(graph, groups, maps, self.steps, self.chains))
        maps.groups = self.groups
        self.maps = maps
        finder = RemovalFinder(graph, self.steps, maps, policy)
        self.parts: dict[str, Part] = {part.name: part for part in finder.parts()}
        self.by_label = {step.label: step.index for step in self.steps}
        found = possible_skips(
            self.steps, self.chains, maps, policy, self.reach(self.same), self.layer_of
        )
        self.skips: dict[tuple[int, int], Skip] = {(s.source, s.target): s for s in found}
        self.rules = tuple(
            WidthRule(group.units, unit_step(group, multiple), least_units(group, multiple))
            for group in self.groups
        )
        self.ties = _ties(graph, self.groups, self.steps, policy)
        self.outputs = output_shapes(graph)
        self.decisions = (*self.groups.decisions, *finder.refused)
        self.number = {group.name: number for number, group in enumerate(self.groups)}

    @cached_property
    def same(self) -> list[int]:
        """Every step's own place: nothing takes the place of anything."""
        return list(range(len(self.steps)))

    @cached_property
    def classes(self) -> list[list[int]]:
        """Free groups by number, those together whose widths are tied."""
        roots = components(len(self.groups), self.ties)
        found: dict[int, list[int]] = {}
        for number, group in enumerate(self.groups):
            if not group.frozen:
                found.setdefault(roots[number], []).append(number)
        return list(found.values())

    def names_of(self, pair: tuple[int, int]) -> tuple[str, str]:
        """A skip as genotypes name it."""
        return self.steps[pair[0]].label, self.steps[pair[1]].label

    @cached_property
    def origins(self) -> list[int]:
        """Of every step, that which computes its value, through layers that do nothing."""
        found = list(range(len(self.steps)))
        for step in self.steps:
            if step.kind == "pass" and _is_identity(self.graph, step):
                found[step.index] = found[step.data]
        return found

    @cached_property
    def sums(self) -> list[tuple[int, int, int]]:
        """Places of all sums of two values, each with those of its operands."""
        found = []
        for step in self.steps:
            if step.kind == "add" and "alpha" not in step.node.kwargs:
                a, b = (i for i in step.inputs if self.steps[i].kind not in ("constant", "number"))
                if self.origins[a] != self.origins[b]:
                    found.append((step.index, a, b))
        return found

    @cached_property
    def group_steps(self) -> NDArray[np.bool_]:
        """Which steps hold channels of which group: `(groups, steps)`."""
        found = np.zeros((len(self.groups), len(self.steps)), dtype=bool)
        calls = {
            str(s.node.target): s.index for s in reversed(self.steps) if s.node.op == "call_module"
        }
        owners = owning_steps(self.graph, self.steps)
        for number, group in enumerate(self.groups):
            for member in group.members:
                tensor = held(self.graph, member.path, member.attribute)
                step = owners.get(id(tensor))
                path = member.path
                while step is None and path:
                    step, path = calls.get(path), path.rpartition(".")[0]
                found[number, len(self.steps) - 1 if step is None else step] = True
        return found

    def reach(self, resolved: Sequence[int]) -> list[int]:
        """Of every step, the layers that its value comes from directly, as a set of bits.

        Args:
            resolved: Of every step the step whose value takes its place.
        """
        found = [0] * len(self.steps)
        for step in self.steps:
            index = step.index
            if resolved[index] != index:
                found[index] = found[resolved[index]]
            elif self.layer_of[index] >= 0:
                found[index] = 1 << self.layer_of[index]
            else:
                bits = 0
                for source in step.inputs:
                    bits |= found[source]
                found[index] = bits
        return found


def _is_identity(graph: ModelGraph, step: Step) -> bool:
    if step.node.op != "call_module":
        return False
    return isinstance(traced_module(graph).get_submodule(str(step.node.target)), nn.Identity)


def _layers(steps: Sequence[Step], found: Iterable[Chain]) -> list[int]:
    layer_of = [-1] * len(steps)
    for number, chain in enumerate(found):
        for index in chain.steps:
            layer_of[index] = number
    return layer_of


def _uneven(
    graph: ModelGraph,
    groups: ChannelGroups,
    maps: ValueMaps,
    steps: Sequence[Step],
    found: Sequence[Chain],
) -> list[tuple[int, str]]:
    """Groups of which some parameter or layer holds unlike numbers of channels for its units."""
    numbers = {group.name: number for number, group in enumerate(groups)}
    lines = Lines(graph, groups)
    uneven = []
    for name, tensor in graph.module.named_parameters():
        for dim in range(tensor.dim()):
            line = lines.side(tensor, dim).line
            if line is not None:
                for group, counts in lines.all[line].counts.items():
                    if (counts != counts[0]).any():
                        uneven.append((numbers[group], repr(name)))
    for chain in found:
        head, last = steps[chain.steps[0]], steps[chain.steps[-1]]
        for step in (steps[head.data], last):
            if step.channel >= 0 and step.shape is not None:
                counts_of = maps.channels(step.node, step.channel, step.shape[step.channel])
                for number, counts in counts_of.items():
                    if (counts != counts[0]).any():
                        uneven.append((number, f"the value of {step.label!r}"))
    return uneven


def _ties(
    graph: ModelGraph, groups: ChannelGroups, steps: Sequence[Step], policy: Policy
) -> tuple[Merge, ...]:
    """Groups of equal width, and of equal spatial size if the policy says so."""
    if policy.widths == "free":
        return ()
    outputs = {str(s.node.target): s.shape for s in steps if s.node.op == "call_module"}
    classes: dict[object, list[int]] = {}
    for number, group in enumerate(groups):
        if group.frozen:
            continue
        key: tuple[object, ...] = (group.units, group.unit_size)
        if policy.widths == "stage":
            paths = [m.path for m in group.members if m.role == "out"]
            shape = outputs.get(paths[0]) if paths else None
            key = (*key, shape[2:] if shape is not None and len(shape) > 2 else ())
        classes.setdefault(key, []).append(number)
    pairs = [(a, b) for found in classes.values() for a, b in pairwise(found)]
    return (Merge(tuple(pairs)),) if pairs else ()
