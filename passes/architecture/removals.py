"""Which parts of a traced model may be removed, one by one: blocks, units and single nodes.

To remove a part is to let a value of the same shape take the place of its result. Whether several
removals go together is for the search space to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import nn

from passes.architecture.costs import held_tensors
from passes.architecture.coupling import Merge, ValueMaps
from passes.architecture.policy import Policy
from passes.architecture.steps import SHOWN, WEIGHTED, Step, traced_module
from passes.graph import Decision, ModelGraph


@dataclass(frozen=True, slots=True)
class Part:
    """What is removed as one.

    Attributes:
        name: That of its weight layer or node; of a block that of the sum it ends in.
        kind: `"block"`, `"unit"` or `"node"`.
        steps: Places of the steps that go.
        entry: Place of the step whose value takes the place of the result.
        exit: Place of the step that computes the result, one of `steps`.
        merge: Channel groups that become one.
    """

    name: str
    kind: str
    steps: frozenset[int]
    entry: int
    exit: int
    merge: Merge


@dataclass(frozen=True, slots=True)
class Chain:
    """A weight layer with the norm and the activation after it, or what stands alone.

    Attributes:
        steps: Their places, in order.
    """

    steps: tuple[int, ...]


def users_of(steps: Sequence[Step]) -> list[list[int]]:
    """Places of the steps that read each step."""
    users: list[list[int]] = [[] for _ in steps]
    for step in steps:
        for source in step.inputs:
            users[source].append(step.index)
    return users


def chains(steps: Sequence[Step]) -> tuple[Chain, ...]:
    """Fuse every weight layer with the norm and the activation that alone read it.

    Of what else a sketch shows, a norm takes the activation after it, and all others stand alone.

    Returns:
        In order of their first step; every step of a kind in `SHOWN` is in one of them.
    """
    users = users_of(steps)
    taken: set[int] = set()
    found = []
    for step in steps:
        if step.kind not in SHOWN or step.index in taken:
            continue
        members = [step.index]
        wanted = ["norm", "act"] if step.kind in WEIGHTED else ["act"] * (step.kind == "norm")
        while wanted and len(users[members[-1]]) == 1:
            after = steps[users[members[-1]][0]]
            if after.kind not in wanted or after.data != members[-1]:
                break
            wanted = wanted[wanted.index(after.kind) + 1 :]
            members.append(after.index)
        taken.update(members)
        found.append(Chain(tuple(members)))
    return tuple(found)


class RemovalFinder:
    """Finds what may be removed.

    Args:
        graph: The traced model.
        steps: Its steps.
        maps: Where the channels of every value belong.
        policy: Which kinds of parts are asked for.
    """

    def __init__(
        self, graph: ModelGraph, steps: Sequence[Step], maps: ValueMaps, policy: Policy
    ) -> None:
        self.graph, self.steps, self.maps, self.policy = graph, steps, maps, policy
        self.users = users_of(steps)
        self.refused: list[Decision] = []
        self._tensors = [frozenset(map(id, held_tensors(graph, step))) for step in steps]
        self._last = _last_weights(steps, self.users)
        self._unused = _unused(steps, self.users)
        ruled = {name for name, rule in graph.rules.items() if rule.min_density > 0}
        self._kept = {id(graph.parameter(s)) for s in graph.compressible if s.name in ruled}

    def parts(self) -> tuple[Part, ...]:
        """All removable parts, in order of their results; blocks before what lies inside them."""
        found: list[Part] = []
        if "block" in self.policy.parts:
            found += self._blocks()
        if "unit" in self.policy.parts:
            for chain in chains(self.steps):
                if self.steps[chain.steps[0]].kind in WEIGHTED:
                    found += self._checked("unit", chain.steps)
        if "node" in self.policy.parts:
            kinds = {"norm", "act"} | (WEIGHTED if "unit" not in self.policy.parts else set())
            for step in self.steps:
                if step.kind in kinds:
                    found += self._checked("node", (step.index,))
        order = {"block": 0, "unit": 1, "node": 2}
        return tuple(sorted(found, key=lambda part: (part.exit, order[part.kind])))

    def _blocks(self) -> Iterable[Part]:
        graph = _flow(self.steps)
        dominators = nx.immediate_dominators(graph, -1)
        for step in self.steps:
            if step.kind != "add" or step.index not in dominators or "alpha" in step.node.kwargs:
                continue
            first, second = (i for i in step.inputs if self.steps[i].kind in _COMPUTED)
            for shortcut, branch in ((first, second), (second, first)):
                inner = self._branch(graph, dominators, shortcut, branch, step.index)
                if inner is not None:
                    yield from self._checked("block", (*sorted(inner), step.index), shortcut)
                    break

    def _branch(
        self,
        graph: nx.DiGraph,
        dominators: dict[int, int],
        shortcut: int,
        branch: int,
        total: int,
    ) -> set[int] | None:
        """The steps between a fork and a sum whose other operand is the value at the fork."""
        fork = self._origin(shortcut)
        if branch not in dominators or not _dominates(dominators, fork, branch):
            return None
        inner = (nx.ancestors(graph, branch) & nx.descendants(graph, fork)) | {branch}
        if fork == branch or shortcut in inner:
            return None
        for step in self.steps:  # what is read and then not used goes along
            if step.index in self._unused and not inner.isdisjoint(step.inputs):
                inner.add(step.index)
        if any(user not in inner | {total} for step in inner for user in self.users[step]):
            return None
        return inner if any(self.steps[step].kind in _COMPUTING for step in inner) else None

    def _origin(self, index: int) -> int:
        """The step that computes a value, through layers that do nothing."""
        module = traced_module(self.graph)
        step = self.steps[index]
        while step.node.op == "call_module" and isinstance(
            module.get_submodule(str(step.node.target)), nn.Identity
        ):
            step = self.steps[step.data]
        return step.index

    def _checked(self, kind: str, members: Sequence[int], entry: int = -1) -> list[Part]:
        """The part, if it may go; otherwise the reason is noted, unless its shape tells it."""
        first, last = self.steps[members[0]], self.steps[members[-1]]
        source = self.steps[entry if kind == "block" else first.data]
        name = last.label if kind == "block" else first.label
        if source.shape is None or (source.shape, source.dtype) != (last.shape, last.dtype):
            return []
        gone = self._with_constants(members)
        why = self._why_not(kind, members, gone)
        merge = why or self.maps.merge(source.node, last.node)
        if isinstance(merge, str):
            self.refused.append(Decision(name, f"{kind} stays", merge))
            return []
        return [Part(name, kind, gone, source.index, last.index, merge)]

    def _with_constants(self, members: Iterable[int]) -> frozenset[int]:
        """The steps of a part, and the constants that nothing else reads."""
        gone = set(members)
        for step in reversed(self.steps):
            alone = self.users[step.index] and gone.issuperset(self.users[step.index])
            if (
                step.kind in ("constant", "number")
                and alone
                and not _reads_outside(step, self.steps)
            ):
                gone.add(step.index)
        return frozenset(gone)

    def _why_not(self, kind: str, members: Sequence[int], gone: frozenset[int]) -> str:
        for index in members if kind != "block" else ():
            if sum(self.steps[i].kind in _COMPUTED for i in self.steps[index].inputs) != 1:
                return "it reads several values"
        if gone & self._last:
            return "its weight layer is the last one"
        mine = frozenset().union(*(self._tensors[i] for i in gone))
        others = (self._tensors[s.index] for s in self.steps if s.index not in gone)
        if any(mine & held for held in others):
            return "it shares parameters with what stays"
        if mine & self._kept:
            return "a rule for its layer keeps weights"
        return ""


# Without one of these a branch is nothing that a search should decide on.
_COMPUTING = WEIGHTED | {"attention", "other"}

# Kinds of steps whose value depends on the model's inputs.
_COMPUTED = SHOWN | {"add", "pass", "input"}


def _reads_outside(step: Step, steps: Sequence[Step]) -> bool:
    """Whether a number is computed from a tensor: then it may be read from what stays."""
    return any(steps[i].kind in _COMPUTED for i in step.inputs)


def _flow(steps: Sequence[Step]) -> nx.DiGraph:
    """How values flow, from a common root; without constants."""
    graph = nx.DiGraph()
    graph.add_node(-1)
    for step in steps:
        if step.kind == "constant" or (step.kind == "number" and not step.inputs):
            continue  # a mode of the model reads nothing, as a constant
        sources = [i for i in step.inputs if i in graph]
        graph.add_edges_from((i, step.index) for i in sources)
        if not sources:
            graph.add_edge(-1, step.index)
    return graph


def _dominates(dominators: dict[int, int], above: int, below: int) -> bool:
    step = below
    while step != -1 and step != above:
        step = dominators[step]
    return step == above


def _unused(steps: Sequence[Step], users: Sequence[Sequence[int]]) -> frozenset[int]:
    """Steps that nothing of the output is computed from."""
    found: set[int] = set()
    for step in reversed(steps):
        if step.kind not in ("output", "input") and found.issuperset(users[step.index]):
            found.add(step.index)
    return frozenset(found)


def _last_weights(steps: Sequence[Step], users: Sequence[Sequence[int]]) -> frozenset[int]:
    """Weight layers after which none comes."""
    followed = [False] * len(steps)
    last = set()
    for step in reversed(steps):
        after = any(followed[u] or steps[u].kind in WEIGHTED for u in users[step.index])
        followed[step.index] = after
        if step.kind in WEIGHTED and not after:
            last.add(step.index)
    return frozenset(last)
