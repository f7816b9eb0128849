"""Couplings between keep-states: redundancy within a group, activity along the flow of data.

    J_g = K_g - 1   within the group g, K its kernel divergence: two alike units are best apart
    e_g = h_g - 1   from the units of g to all units of a group g' that is computed from g, h the
                    entropy of the feature maps: inactive units are best dropped

Only pairs that the graph joins are coupled, and every part is weighted by the widths, so that wide
layers do not dominate. The bias of a unit is the sum of all its couplings: the energy then is minus
a cut of the redundancy graph, and scaling it by `2 rho` favours a share `rho` of the units of every
group that is coupled within only.

The couplings are after H. Salehinejad, S. Valaee, ICASSP 2021, arXiv:2102.05437.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from energy_model.errors import ArgumentError
from passes.graph import ModelGraph
from passes.ising.activity import Activity
from passes.ising.layout import Layout
from passes.ising.redundancy import group_divergence
from passes.structure.groups import ChannelGroups


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The couplings within one group.

    Attributes:
        spins: J, float64 `(units, units)`, symmetric.
        weight: What it counts for in the energy.
    """

    spins: Tensor
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """The couplings of the units of one group to all units of another.

    Attributes:
        source: Name of the group that is read.
        target: Name of the group that is computed from it.
        spins: e, float64 `(units of the source,)`.
        weight: What it counts for in the energy.
    """

    source: str
    target: str
    spins: Tensor
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Couplings:
    """All couplings of a model, and how strong the bias of each group is.

    Attributes:
        blocks: Of every free group, by name.
        edges: Between free groups.
        bias: By name of the group, the factor lambda of the bias: 1 makes the energy minus a cut.
    """

    blocks: Mapping[str, Block]
    edges: tuple[Edge, ...]
    bias: Mapping[str, float]


def couplings(
    graph: ModelGraph,
    groups: ChannelGroups,
    layout: Layout,
    activity: Activity | None = None,
    *,
    intra: float = 1.0,
    inter: float = 1.0,
    bias: float | Mapping[str, float] = 1.0,
    shrinkage: float = 0.1,
    squash: str = "median",
) -> Couplings:
    """The couplings of a model with its present weights.

    Args:
        graph: The traced model.
        groups: Its channel groups.
        layout: Their nodes.
        activity: Entropies by group, as `unit_activity` returns them; groups that are absent, and
            all of them if it is `None`, are coupled within only.
        intra: Weight of the couplings within groups, which is divided by the units of the group.
        inter: Weight of those between groups, divided by the geometric mean of their units. They
            set whole groups against each other: near 1 some of them keep almost nothing and others
            almost all in the lowest state, whatever the bias; at 0.1 the shares stay near it.
        bias: The factor lambda, or those of some groups by name; others have 1.
        shrinkage: As for `kernel_divergence`.
        squash: As for `kernel_divergence`.

    Raises:
        ArgumentError: An argument is malformed, or the layout is not that of the groups.
        PreconditionError: A weight is not finite.
    """
    if layout != Layout.of(groups):
        raise ArgumentError("is not that of the channel groups", where="layout")
    for name, weight in (("intra", intra), ("inter", inter)):
        if not 0 <= weight < math.inf:
            raise ArgumentError(f"{weight!r} is no finite number from 0", where=name)
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    blocks = {}
    for group in groups.free:
        divergence = group_divergence(graph, group, shrinkage=shrinkage, squash=squash)
        blocks[group.name] = Block(divergence - 1, intra / group.units)
    found = {} if activity is None else _checked(activity, sizes)
    edges = tuple(
        Edge(a, b, found[a] - 1, inter / math.sqrt(sizes[a] * sizes[b]))
        for a, b in flow(groups)
        if a in found
    )
    return Couplings(blocks, edges, _biases(bias, layout))


def flow(groups: ChannelGroups) -> tuple[tuple[str, str], ...]:
    """Pairs of free groups joined by data flow: a layer reads the first and computes the second.

    Pairs are in the order of the groups. A group that is computed from itself, as by a residual
    block of one layer, makes no pair: its units are coupled already.
    """
    writes: dict[str, list[str]] = {}
    for group in groups.free:
        for name in group.producers:
            writes.setdefault(name, []).append(group.name)
    pairs = {
        (group.name, target): None
        for group in groups.free
        for member in group.members
        if member.role == "in"
        for target in writes.get(member.name, ())
        if target != group.name
    }
    order = {group.name: number for number, group in enumerate(groups.free)}
    return tuple(sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]])))


def _checked(activity: Activity, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    found = {}
    for name, values in activity.items():
        row = np.asarray(values, dtype=np.float64)
        # NaN fails both comparisons.
        if row.shape != (sizes.get(name),) or not bool(((row >= 0) & (row <= 1)).all()):
            raise ArgumentError(
                f"is no number within [0, 1] for each of {sizes.get(name, 'no')} units",
                where=f"activity of {name!r}",
                remedy="Pass what unit_activity returns for these groups.",
            )
        found[name] = torch.from_numpy(row)
    return found


def _biases(bias: float | Mapping[str, float], layout: Layout) -> dict[str, float]:
    given = bias if isinstance(bias, Mapping) else dict.fromkeys(layout.names, bias)
    unknown = [name for name in given if name not in layout.names]
    if unknown or not all(math.isfinite(value) for value in given.values()):
        raise ArgumentError(
            f"names no free group: {unknown}" if unknown else "is not finite", where="bias"
        )
    return {name: float(given.get(name, 1.0)) for name in layout.names}


def ema(previous: Couplings, new: Couplings, keep: float = 0.9) -> Couplings:
    """A running mean of couplings, for weights that change: `keep` of the old, the rest new.

    Weights and biases are those of the new ones.

    Args:
        previous: The running mean so far.
        new: Those of the present weights.
        keep: Share of the old ones, within [0, 1].

    Raises:
        ArgumentError: The two do not couple the same groups, or `keep` is out of range.
    """
    if not 0 <= keep <= 1:
        raise ArgumentError(f"{keep!r} is not within [0, 1]", where="keep")
    if _shapes(previous) != _shapes(new):
        raise ArgumentError(
            "couple other groups than the previous ones",
            where="couplings",
            remedy="Compute both for the same channel groups, with or without activity.",
        )
    blocks = {
        name: replace(block, spins=_mixed(previous.blocks[name].spins, block.spins, keep))
        for name, block in new.blocks.items()
    }
    pairs = zip(previous.edges, new.edges, strict=True)
    edges = tuple(replace(b, spins=_mixed(a.spins, b.spins, keep)) for a, b in pairs)
    return Couplings(blocks, edges, new.bias)


def _mixed(old: Tensor, new: Tensor, keep: float) -> Tensor:
    return keep * old + (1 - keep) * new


def _shapes(found: Couplings) -> tuple[object, ...]:
    blocks = tuple((name, tuple(block.spins.shape)) for name, block in found.blocks.items())
    return blocks, tuple((edge.source, edge.target, len(edge.spins)) for edge in found.edges)
