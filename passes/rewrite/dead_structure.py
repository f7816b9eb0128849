"""Remove channels that contribute nothing, after whatever method left them so: exactly.

A channel is dead where every layer that reads it has zeros for it, or is given zeros. One that is
another constant can go as well, if what it contributes to a layer is the same at every position: it
is added to the bias. Whatever a channel needed that is gone may be dead in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from energy_model.errors import ArgumentError
from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.rewrite.channelwise import CONVS, TRANSPOSED
from passes.rewrite.constants import constant_inputs, zero_padded
from passes.rewrite.dead_branches import ROUNDING, Holders, add_to_bias, remove_dead_branches
from passes.rewrite.shrink import shrink
from passes.structure.groups import ChannelGroup, ChannelGroups, Member, Reader, channel_groups
from passes.structure.products import heads
from passes.structure.rules import LAYERS
from passes.structure.state import cuts, full_state, kept_along

# What its decisions say of a group that has lost units.
REMOVED = "dead channels removed"

Mask = NDArray[np.bool_]
Place = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """What constant channels contribute to a layer, for its bias.

    Attributes:
        path: The layer's path.
        values: One number for each output that stays: float64 `(n,)`.
    """

    path: str
    values: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DeadPlan:
    """What can go, and what must be done for it.

    Attributes:
        state: Of every free group whether each unit stays.
        carries: What to add to biases after the channels are cut.
        removed: What goes, for each group that loses units.
        stays: Constant channels that stay, and why.
    """

    state: dict[str, Mask]
    carries: tuple[Carry, ...]
    removed: tuple[Decision, ...]
    stays: tuple[Decision, ...]


def plan_dead(
    graph: ModelGraph,
    groups: ChannelGroups,
    *,
    keep: Collection[str] = (),
    least: Mapping[str, int] | None = None,
) -> DeadPlan:
    """Find the units that can go without changing what the model computes; changes nothing.

    Args:
        graph: A traced model.
        groups: Its channel groups.
        keep: Names of sites that lose nothing, besides those that the graph's rules leave alone.
        least: Nonzero weights that sites keep at least, by name; what the rules ask for by default.

    Returns:
        The plan. One unit of every group stays.

    Raises:
        ArgumentError: `keep` names a site that is not there.
    """
    if graph.graph_module is None:
        return DeadPlan({}, (), (), ())
    least = least_weights(graph) if least is None else least
    whole = {place for site in _kept_sites(graph, keep) for place in site.owners}
    analysis = _Analysis(graph, graph.graph_module, groups)
    while True:
        state = analysis.dead(whole)
        short = _too_few(graph, groups, state, least) - whole
        if not short:
            return analysis.plan(state, whole)
        whole |= short


def least_weights(graph: ModelGraph) -> dict[str, int]:
    """Nonzero weights that the graph's rules want sites to keep, by name."""
    return {name: rule.least(graph.by_name[name].size) for name, rule in _rules(graph).items()}


def _rules(graph: ModelGraph) -> dict[str, LayerRule]:
    return {name: rule for name, rule in graph.rules.items() if name in graph.by_name}


def _kept_sites(graph: ModelGraph, keep: Collection[str]) -> list[Site]:
    unknown = sorted(set(keep) - set(graph.by_name))
    if unknown:
        raise ArgumentError(
            f"there is no layer {unknown[0]!r}",
            where="keep",
            remedy=f"The layers are {', '.join(graph.by_name)}.",
        )
    alone = {name for name, rule in graph.rules.items() if rule.min_density >= 1}
    return [site for site in graph.sites if site.name in alone.union(keep)]


def _too_few(
    graph: ModelGraph, groups: ChannelGroups, state: Mapping[str, Mask], least: Mapping[str, int]
) -> set[Place]:
    """Where weights are that would be left with fewer nonzeros than they must keep."""
    found: set[Place] = set()
    lost: dict[Place, list[tuple[int, Tensor]]] = {}
    for cut in cuts(groups, state):
        gone = torch.from_numpy(np.flatnonzero(~cut.keep))
        lost.setdefault((cut.path, cut.attribute), []).append((cut.dim, gone))
    for site in graph.compressible:
        wanted, planned = least.get(site.name, 0), lost.get(site.owners[0], [])
        if not wanted or not planned:
            continue
        left = graph.parameter(site).detach() != 0
        total = int(torch.count_nonzero(_part(left, site)))
        for dim, gone in planned:
            left = left.index_fill(dim, gone.to(left.device), 0)
        if int(torch.count_nonzero(_part(left, site))) < min(wanted, total):
            found |= set(site.owners)
    return found


def _part(tensor: Tensor, site: Site) -> Tensor:
    return tensor.reshape(-1)[site.start : site.start + site.size]


class _Input:
    """What is known of the channels that one node reads.

    Attributes:
        node: The node.
        weight: Path and attribute of its weight; `None` if that is no parameter as it is.
        dim: Dimension of the weight along which its inputs lie.
        zero: Of every channel whether it is zero at every position.
        known: Of every channel whether it depends on no input.
        constant: Of every channel the number that it is at every position, or NaN.
        fixed: Why a constant cannot go into its bias; empty if it can.
    """

    def __init__(self, tensors: Holders, reader: Reader, given: Mapping[str, Tensor]) -> None:
        self.node = node = tensors.nodes[reader.node]
        layer = tensors.layer(node)
        name = getattr(node.target, "__name__", str(node.target))
        turned = isinstance(layer, TRANSPOSED) or "transpose" in name or "matmul" in name
        self.dim = 0 if turned else 1
        self.weight = (str(node.target), "weight") if layer is not None else _parameter(node)
        self.fixed = _why_fixed(tensors, node)
        source = node.args[0] if node.args else node.kwargs["input"]
        value = given.get(source.name)  # type: ignore[union-attr]
        if value is None or not value.is_floating_point():  # nothing is known about it
            value = torch.full((len(reader.units),), torch.nan)
            lines = value.reshape(-1, 1)
        else:
            lines = value.movedim(reader.dim, 0).reshape(value.shape[reader.dim], -1)
        lines = lines.cpu().double()
        first = lines[:, :1]
        near = (lines - first).abs() <= ROUNDING * torch.finfo(value.dtype).eps * first.abs()
        self.zero: Mask = (lines == 0).all(1).numpy()
        self.known: Mask = (~lines.isnan()).all(1).numpy()
        self.constant = first[:, 0].masked_fill(~near.all(1), torch.nan)

    @property
    def movable(self) -> Mask:
        """Of every channel whether it can go into the bias."""
        uniform: Mask = ~self.constant.isnan().numpy()
        return uniform if not self.fixed else np.zeros_like(uniform)


def _why_fixed(tensors: Holders, node: Node) -> str:
    """Why a constant that a node reads cannot go into its bias; empty if it can."""
    layer = tensors.layer(node)
    if type(layer) not in (*CONVS, nn.Linear):
        return f"{node.target if layer is not None else node.name} takes no bias here"
    return f"{node.target} pads with zeros" if zero_padded(layer) else tensors.why_no_bias(node)


def _parameter(node: Node) -> Place | None:
    """The parameter that a function is given as its weight."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    if not isinstance(given, Node) or given.op != "get_attr":
        return None
    path, _, name = str(given.target).rpartition(".")
    return path, name


class _Analysis:
    """Finds dead units of one graph; nothing is changed."""

    def __init__(self, graph: ModelGraph, module: GraphModule, groups: ChannelGroups) -> None:
        self.groups = groups
        self.tensors = Holders(graph, module)
        readers = {reader.node: reader for group in groups.free for reader in group.readers}
        given = constant_inputs(graph, readers)
        self.inputs = {
            name: _Input(self.tensors, reader, given[name]) for name, reader in readers.items()
        }
        self.lines: dict[tuple[int, int], list[tuple[str, NDArray[np.int64]]]] = {}
        for group in groups.free:
            for m in group.members:
                key = id(self.tensors.tensor((m.path, m.attribute))), m.dim
                self.lines.setdefault(key, []).append((group.name, m.units))
        self.tables: dict[Place, Mask] = {}

    def dead(self, whole: Collection[Place]) -> dict[str, Mask]:
        """The smallest state that computes the same.

        Args:
            whole: Where weights are that lose nothing.
        """
        state = full_state(self.groups)
        free = [g for g in self.groups.free if not _places(g) & set(whole)]
        changed = True
        while changed:
            changed = False
            for group in reversed(free):
                before = state[group.name]
                left = before & ~self._idle(group, state, _zero_or_movable)
                missing = group.minimum - int(left.sum())
                if missing > 0:
                    left |= self._least_used(group, before & ~left, missing)
                changed |= bool((left != before).any())
                state[group.name] = left
        return state

    def _idle(
        self, group: ChannelGroup, state: Mapping[str, Mask], harmless: Callable[[_Input], Mask]
    ) -> Mask:
        """Of every unit whether each layer that reads it has zeros for it, or does no harm."""
        inside = any(self._in_attention(member) for member in group.members)
        result = np.full(group.units, inside or bool(group.readers), dtype=bool)
        for reader in group.readers:
            given = self.inputs[reader.node]
            result &= _units_of(reader.units, ~self._read(given, state) | harmless(given), group)
        for member in group.members if inside else ():
            # What a head computes is not seen from outside: both sides are zero.
            result &= _units_of(member.units, ~self._used(member), group)
        return result

    def _in_attention(self, member: Member) -> bool:
        parent = self.tensors.part(member.path.rpartition(".")[0])
        return member.role == "in" and LAYERS.get(type(parent)) is heads

    def _used(self, member: Member) -> Mask:
        """Of every index of a member whether there is anything but zeros."""
        tensor = self.tensors.tensor((member.path, member.attribute)).detach()
        lines = tensor.movedim(member.dim, 0).reshape(len(member.units), -1)
        used: Mask = (lines != 0).any(1).cpu().numpy()
        return used

    def _least_used(self, group: ChannelGroup, among: Mask, count: int) -> Mask:
        """Some units whose producers hold the least, so that most can go before them."""
        used = np.zeros(group.units)
        for member in group.members:
            if member.role == "out":
                inside = member.units >= 0
                amounts = self._used(member)[inside]
                used += np.bincount(member.units[inside], amounts, group.units)
        order = np.lexsort((used, ~among))
        result = np.zeros(group.units, dtype=bool)
        result[order[:count]] = True
        return result

    def _read(self, given: _Input, state: Mapping[str, Mask]) -> Mask:
        """Of every channel whether an output that stays has a weight for it."""
        if given.weight is None:
            return np.ones(len(given.zero), dtype=bool)
        weight: Tensor = self.tensors.tensor(given.weight)
        if given.weight not in self.tables:
            kernels = (weight != 0).reshape(*weight.shape[:2], -1)
            self.tables[given.weight] = kernels.any(2).cpu().numpy()
        table = self.tables[given.weight].swapaxes(0, 1 - given.dim)
        rows = table & self._staying(weight, 1 - given.dim, state)[:, None]
        parts = len(given.zero) // rows.shape[1]  # a convolution in groups reads some in each
        return rows.reshape(parts, -1, rows.shape[1]).any(1).reshape(-1)

    def _staying(self, tensor: Tensor, dim: int, state: Mapping[str, Mask]) -> Mask:
        """Of every index of a dimension whether it stays."""
        result = np.ones(tensor.shape[dim], dtype=bool)
        for name, units in self.lines.get((id(tensor), dim), ()):
            result &= kept_along(units, state[name])
        return result

    def plan(self, state: dict[str, Mask], whole: Collection[Place]) -> DeadPlan:
        """What a state of `dead` asks for, and what it leaves."""
        removed, stays = [], []
        gone = {name: np.zeros(len(given.zero), dtype=bool) for name, given in self.inputs.items()}
        for group in self.groups.free:
            left = state[group.name]
            for reader in group.readers:
                gone[reader.node] |= ~kept_along(reader.units, left)
            if not left.all():
                removed.append(self._removed(group, state))
            stays += self._stays(group, state, whole)
        carries = (self._carry(self.inputs[name], mask, state) for name, mask in gone.items())
        moved = tuple(carry for carry in carries if carry is not None)
        return DeadPlan(state, moved, tuple(removed), tuple(stays))

    def _carry(self, given: _Input, gone: Mask, state: Mapping[str, Mask]) -> Carry | None:
        """What channels that go contribute to a layer; `None` if that is nothing."""
        among = torch.from_numpy(gone & given.movable & ~given.zero)
        if not among.any() or given.weight is None:
            return None
        weight: Tensor = self.tensors.tensor(given.weight)
        table = weight.detach().double().reshape(*weight.shape[:2], -1).sum(2)
        numbers = given.constant.masked_fill(~among, 0).to(table.device)
        parts = len(numbers) // table.shape[1]
        blocks = table.view(parts, -1, table.shape[1]) @ numbers.view(parts, -1, 1)
        staying = torch.from_numpy(self._staying(weight, 0, state))
        values = blocks.reshape(-1)[staying.to(table.device)]
        return Carry(given.weight[0], values) if values.any() else None

    def _removed(self, group: ChannelGroup, state: Mapping[str, Mask]) -> Decision:
        gone = ~state[group.name]
        unread = gone & self._idle(group, state, lambda given: np.zeros_like(given.zero))
        zero = gone & ~unread & self._idle(group, state, lambda given: given.zero)
        counts = {"not read": unread, "always zero": zero, "constant": gone & ~unread & ~zero}
        why = ", ".join(f"{mask.sum()} {what}" for what, mask in counts.items() if mask.any())
        left = f"{state[group.name].sum()} units"
        return Decision(group.name, REMOVED, why, f"{group.units} units", left)

    def _stays(
        self, group: ChannelGroup, state: Mapping[str, Mask], whole: Collection[Place]
    ) -> list[Decision]:
        """Units that contribute nothing, or a constant, and yet stay."""
        idle = self._idle(group, state, _zero_or_movable)
        if _places(group) & set(whole):
            mask, why = idle, "its layers are to keep their weights"
        else:
            mask = self._idle(group, state, lambda given: given.known) & ~idle
            why = ", ".join(self._obstacles(group, state, mask))
        mask = mask & state[group.name]
        count = f"{mask.sum()} of {group.units} units"
        what = "dead channels stay"
        return [Decision(group.name, what, why, count, count)] if mask.any() else []

    def _obstacles(
        self, group: ChannelGroup, state: Mapping[str, Mask], units: Mask
    ) -> Iterable[str]:
        found: dict[str, None] = {}
        for reader in group.readers:
            given = self.inputs[reader.node]
            stuck = self._read(given, state) & ~_zero_or_movable(given)
            if (stuck & (reader.units >= 0) & units[reader.units]).any():
                target = given.node.target
                found[given.fixed or f"{target} is given another constant at each position"] = None
        return found


def _zero_or_movable(given: _Input) -> Mask:
    return given.zero | given.movable


def _units_of(units: NDArray[np.int64], fine: Mask, group: ChannelGroup) -> Mask:
    """Of every unit whether all its indices are fine."""
    result = np.ones(group.units, dtype=bool)
    result[units[(units >= 0) & ~fine]] = False
    return result


def _places(group: ChannelGroup) -> set[Place]:
    return {(member.path, member.attribute) for member in group.members}


def remove_dead_structure(graph: ModelGraph, *, keep: Collection[str] = ()) -> list[Decision]:
    """Remove dead channels and dead branches, in place, until nothing more goes.

    In evaluation mode the model computes what it computed before, as long as zero times an input is
    zero; only what goes into a bias is rounded once more. In training mode it need not: a norm over
    constants takes them for what its batch makes of them.

    Args:
        graph: A finished graph, masks baked in. Parameters that lose channels become new ones, so
            no optimizer may hold the old ones; the sites describe the smaller layers.
        keep: Names of sites that lose nothing, besides those that the graph's rules leave alone.

    Returns:
        What was removed, and which constant channels stay, and why.

    Raises:
        ArgumentError: `keep` names a site that is not there.
        PreconditionError: A layer that would lose channels has hooks or parametrizations.
    """
    if graph.graph_module is None:
        return []
    _kept_sites(graph, keep)  # raises before anything is changed
    least = least_weights(graph)
    decisions: list[Decision] = []
    while True:
        decisions += remove_dead_branches(graph, keep=keep)
        groups = channel_groups(graph)
        plan = plan_dead(graph, groups, keep=keep, least=least)
        if not plan.removed:
            return [*decisions, *plan.stays]
        told = shrink(graph, groups, plan.state)
        decisions += [*plan.removed, *(decision for decision in told if not decision.layer)]
        for carry in plan.carries:
            add_to_bias(graph.graph_module.get_submodule(carry.path), carry.values)


def _may_be_dead(graph: ModelGraph, module: GraphModule) -> bool:
    """Whether there is a row, a column, a scale or a mask of zeros that anything could begin with.

    A look at the weights takes a small part of the time of the analysis.
    """
    for path, attribute in {site.owners[0] for site in graph.compressible}:
        weight = getattr(graph.module.get_submodule(path), attribute).detach()
        if weight.dim() > 1 and not (
            weight.flatten(1).any(1).all() and weight.transpose(0, 1).flatten(1).any(1).all()
        ):
            return True
    scales = (getattr(part, "weight", None) for part in module.modules())
    if any(isinstance(s, Tensor) and s.dim() == 1 and not bool(s.all()) for s in scales):
        return True
    # What the graph reads itself may be a mask.
    return any(node.op == "get_attr" for node in module.graph.nodes)
