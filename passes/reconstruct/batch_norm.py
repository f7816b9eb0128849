"""Running statistics of batch norms, estimated anew from unlabelled batches.

What stands before a norm gives other means and variances once it is compressed. The statistics are
set layer by layer, each from what the network before it, with its new statistics, gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from energy_model.errors import PreconditionError
from passes.graph import Decision, ModelGraph
from passes.reconstruct.walk import Batches, Walk, at_rest, read_batches

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Share of a running variance below which the ratio of two variances means nothing.
_FLOOR = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Mean and variance (divided by n, not n - 1) of every channel, float64 `(C,)`.

    Attributes:
        mean: The means.
        variance: The variances.
        count: Values of each channel n: samples times positions.
    """

    mean: Tensor
    variance: Tensor
    count: int

    def part(self, channels: Tensor | None) -> Statistics:
        """Those of some channels; `None` is all."""
        if channels is None:
            return self
        return Statistics(self.mean[channels], self.variance[channels], self.count)


def statistics(inputs: Iterable[Tensor], where: str) -> Statistics:
    """Exact statistics over several batches `(N, C, ...)`.

    Args:
        inputs: The batches.
        where: Names the layer in errors.

    Raises:
        PreconditionError: A value is not finite.
    """
    count, shift, total, squares = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for x in inputs:
        rows = x.double().transpose(0, 1).flatten(1)
        if count == 0:  # about a point near the mean, so that little is lost by subtracting it
            shift = rows.mean(1)
            total, squares = torch.zeros_like(shift), torch.zeros_like(shift)
        rows = rows - shift[:, None]
        count += rows.shape[1]
        total += rows.sum(1)
        squares += rows.square().sum(1)
    if not bool(torch.isfinite(squares).all()):
        raise PreconditionError(
            "its inputs are not finite on the batches of data",
            where=where,
            remedy="Look for NaN or infinite values in the data and the weights.",
        )
    mean = total / count
    return Statistics(shift + mean, (squares / count - mean.square()).clamp_min(0), count)


def running_norms(walk: Walk) -> list[Node]:
    """The calls of batch norms whose statistics are used and may change, in order.

    Left out are norms without statistics, frozen ones (momentum 0), and those called repeatedly.
    """
    return [
        node
        for node in walk.nodes
        if node.op == "call_module"
        and isinstance(walk.layer(node), NORMS)
        and walk.layer(node).running_mean is not None
        and walk.layer(node).momentum != 0
        and len(walk.calls_of(str(node.target))) == len(node.all_input_nodes) == 1
    ]


def matched(
    given: Statistics, original: Any, wanted: Statistics, kept: Tensor | None
) -> Statistics:
    """Statistics with which a norm gives the means and variances that the original's gives.

    The variance follows the ratio of the two on the same batches, so that what is special about a
    small sample cancels; channels that hardly vary keep theirs.

    Args:
        given: What the norm is given.
        original: The original's norm.
        wanted: What that is given, in the channels that are left.
        kept: The original's channels that are left; `None` is all.
    """
    mean, variance = original.running_mean.double(), original.running_var.double()
    if kept is not None:
        mean, variance = mean[kept], variance[kept]
    spread = variance + original.eps
    ratio = (given.variance + _FLOOR * spread) / (wanted.variance + _FLOOR * spread)
    # The norm adds its eps again.
    new = (spread * ratio - original.eps).clamp_min(0)
    return Statistics(given.mean - ratio.sqrt() * (wanted.mean - mean), new, given.count)


def set_statistics(norm: nn.Module, found: Statistics) -> None:
    """Write statistics into a norm; nothing else of it changes."""
    with torch.no_grad():
        norm.running_mean.copy_(found.mean)  # type: ignore[union-attr,operator]
        norm.running_var.copy_(found.variance)  # type: ignore[union-attr,operator]


def estimated(norm: Any, given: Statistics) -> Statistics:
    """The statistics that training would run to: the mean, and the variance divided by n - 1."""
    if given.count < 2:
        return Statistics(given.mean, norm.running_var.double(), given.count)
    unbiased = given.variance * (given.count / (given.count - 1))
    return Statistics(given.mean, unbiased, given.count)


def reestimate_batch_norms(graph: ModelGraph, batches: Batches, count: int = 16) -> list[Decision]:
    """Set the running statistics of all batch norms to the averages over some batches, in place.

    Args:
        graph: The traced model.
        batches: Gives its inputs.
        count: How many batches are used.

    Returns:
        What was done.

    Raises:
        PreconditionError: There is no batch, or a norm is given what is not finite.
    """
    calls = read_batches(batches, count)
    if graph.graph_module is None:
        return [Decision("", "batch norms stay", "the model could not be traced")]
    found: dict[nn.Module, Statistics] = {}
    with at_rest(graph.module, graph.graph_module):
        walk = Walk(graph.graph_module, calls)
        for node in running_norms(walk):
            norm = walk.layer(node)
            given = statistics(walk.inputs(node), str(node.target))
            found[norm] = estimated(norm, given)
            set_statistics(norm, found[norm])
    for norm, values in found.items():  # for good, now that the buffers are put back
        set_statistics(norm, values)
    return told(len(found), len(calls))


def told(norms: int, batches: int) -> list[Decision]:
    """What was done, if anything."""
    why = f"{norms} of them, from {batches} batches"
    return [Decision("", "batch norms estimated anew", why)] if norms else []
