"""How much the feature maps of every unit say: the entropy of their histograms.

The maps are those that the readers of a group are given: behind norm and activation, behind the
additions of a residual stream, which is all that the network ever sees of a channel, and where a
gate would stand. Entropy as the sign of activity is that of H. Salehinejad and S. Valaee (ICASSP
2021, arXiv:2102.05437).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import ModelGraph
from passes.inputs import Call
from passes.ising.activity_maps import GroupMaps
from passes.reconstruct.walk import at_rest
from passes.structure.groups import ChannelGroups
from passes.tracing.symbolic import placeholder_values

# Of every group with maps, by name, the normalised entropy of each unit: float64 `(units,)`.
Activity = Mapping[str, NDArray[np.float64]]

_Wanted = Mapping[Node, list[GroupMaps]]


class _Readings(Interpreter):
    """Runs a graph and notes what some nodes are given first, when they are given it."""

    def __init__(self, module: GraphModule, wanted: _Wanted, batch_size: int | None) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.batch_size = batch_size

    def run_node(self, n: Node) -> Any:
        """Note and run."""
        for maps in self.wanted.get(n, ()):
            value = self.env[_source(n)]
            if isinstance(value, Tensor):
                maps.add(value, self.batch_size)
        return super().run_node(n)


def unit_activity(
    graph: ModelGraph, groups: ChannelGroups, calls: Iterable[Call], *, bins: int = 256
) -> dict[str, NDArray[np.float64]]:
    """Entropy of the feature maps of every unit, as a share of the largest in its group.

    The map of a channel is its mean over all samples; its values are counted in equal bins between
    the least and the largest value of the group. Maps of at most four positions have too few values
    for that: there the values of every sample count. A group that is read at several places, such
    as a residual stream, gets the mean over those.

    The model is run as it is, in evaluation mode, and nothing of it is changed.

    Args:
        graph: The traced model.
        groups: Its channel groups.
        calls: Batches of inputs, at least one.
        bins: Bins of the histograms.

    Returns:
        By name of every free group whose maps are found, float64 `(units,)` within [0, 1]. Heads
        inside of attention layers have none.

    Raises:
        ArgumentError: There are fewer than two bins.
        PreconditionError: There is no batch, the model fails on one, or a map is not finite.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise ArgumentError(f"{bins!r} is no whole number from 2", where="bins")
    module = graph.graph_module
    if module is None:
        return {}
    wanted = _places(module, groups)
    _run(module, wanted, calls)
    found: dict[str, list[GroupMaps]] = {}
    for maps in (maps for here in wanted.values() for maps in here):
        if maps.read:
            found.setdefault(maps.group.name, []).append(maps)
    names = [group.name for group in groups.free if group.name in found]
    return {name: _normalized(found[name], bins) for name in names}


def _places(module: GraphModule, groups: ChannelGroups) -> dict[Node, list[GroupMaps]]:
    """Where the maps of free groups are read; a tensor that several nodes read counts once."""
    nodes = {node.name: node for node in module.graph.nodes}
    found: dict[Node, list[GroupMaps]] = {}
    seen = set()
    for group in groups.free:
        for reader in group.readers:
            node = nodes[reader.node]
            place = group.name, _source(node), reader.dim, reader.units.tobytes()
            if place not in seen:
                seen.add(place)
                found.setdefault(node, []).append(GroupMaps(group, reader))
    return found


def _source(node: Node) -> Any:
    """The first argument of a node."""
    if node.args:
        return node.args[0]
    return next(node.kwargs[name] for name in ("input", "self") if name in node.kwargs)


def _run(module: GraphModule, wanted: _Wanted, calls: Iterable[Call]) -> None:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    number = 0
    for number, call in enumerate(calls, start=1):  # noqa: B007 - counts them
        runner = _Readings(module, wanted, call.batch_size)
        # Of each batch alone, so that drawing the next one finds the random state as it was.
        with at_rest(module):
            torch.manual_seed(0)  # inside a fork of the random state
            try:
                runner.run(*placeholder_values(module, call.to(device).fresh()))
            except Exception as error:
                raise PreconditionError(
                    f"the model fails on a batch of data: {type(error).__name__}: {error}",
                    where="activity of the feature maps",
                    remedy="Every batch must be one that the model accepts, as the example inputs "
                    "are.",
                ) from error
    if not number:
        raise PreconditionError(
            "there is no batch of inputs to measure feature maps with",
            where="data",
            remedy="Pass data that yields at least one batch.",
        )


def _normalized(places: list[GroupMaps], bins: int) -> NDArray[np.float64]:
    units = places[0].group.units
    total = torch.zeros(units, dtype=torch.float64)
    seen = torch.zeros(units, dtype=torch.float64)
    for maps in places:
        total += maps.entropies(bins)
        seen += maps.seen
    mean = total / seen.clamp(min=1)
    return (mean / (float(mean.max()) or 1.0)).numpy()
