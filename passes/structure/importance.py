"""How much each unit of a channel group matters: norms, batch norm scales, first-order Taylor.

A unit's score is summed over every parameter that holds it: the filters that compute its channels,
the scales of their batch norms, and the columns of the layers that read them (G. Fang et al.,
"DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3). Biases and running statistics
do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import ModelGraph
from passes.structure.groups import ChannelGroup, ChannelGroups, Member

# A number for each unit of every group that can be scored, by name: float64 `(units,)`.
Scores = dict[str, NDArray[np.float64]]


def norm_scores(graph: ModelGraph, groups: ChannelGroups, power: int) -> Scores:
    """Sum of `|w|^power` of each unit.

    H. Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1, for power 1.

    Raises:
        PreconditionError: A weight is not finite.
    """
    return _summed(graph, groups, _weighs, lambda name, w: w.abs() if power == 1 else w**power)


def batch_norm_scores(graph: ModelGraph, groups: ChannelGroups) -> Scores:
    """Mean of `|gamma|` of the batch norms of each unit; groups without one are absent.

    Z. Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
    section 3.

    Raises:
        PreconditionError: A scale is not finite.
    """

    def scales(graph: ModelGraph, member: Member) -> bool:
        layer = graph.module.get_submodule(member.path)
        return isinstance(layer, _BatchNorm) and member.attribute == "weight"

    found = _summed(graph, groups, scales, lambda name, w: w.abs())
    norms = {
        group.name: sum(scales(graph, member) for member in group.members) for group in groups.free
    }
    return {name: score / norms[name] for name, score in found.items()}


def taylor_scores(
    graph: ModelGraph,
    groups: ChannelGroups,
    gradients: Mapping[str, Tensor],
    *,
    whole_units: bool = False,
) -> Scores:
    """What the loss changes by to first order if a unit goes: `sum |w g|`, or `|sum w g|`.

    P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.1:
    the elementwise form, and that of whole units. Only what multiplies activations counts, as in
    Torch-Pruning; scales of norms do not.

    Args:
        graph: The traced model.
        groups: Its groups.
        gradients: Gradient of the loss by name of the parameter.
        whole_units: Sum over the unit's weights in each parameter before the absolute value.

    Raises:
        PreconditionError: A product is not finite.
    """

    def change(name: str, weight: Tensor) -> Tensor:
        gradient = gradients.get(name)
        return weight.new_zeros(weight.shape) if gradient is None else weight * gradient

    if whole_units:
        return _summed(graph, groups, _multiplies, change, finish=np.abs)
    return _summed(graph, groups, _multiplies, lambda name, w: change(name, w).abs())


def random_scores(groups: ChannelGroups, seed: int) -> Scores:
    """Uniform random numbers: what any other score has to beat."""
    generator = np.random.default_rng(seed)
    return {group.name: generator.random(group.units) for group in groups.free}


def normalized(scores: Scores, how: str) -> Scores:
    """Make the scores of groups comparable.

    Args:
        scores: By group.
        how: `"mean"` divides by the mean of the group, `"max"` by its largest, `"none"` leaves
            them.

    Raises:
        ArgumentError: Another word.
    """
    measures: dict[str, Callable[[NDArray[np.float64]], float]] = {
        "mean": lambda s: float(s.mean()),
        "max": lambda s: float(s.max()),
        "none": lambda s: 1.0,
    }
    if how not in measures:
        raise ArgumentError(f"{how!r} is none of {tuple(measures)}", where="normalize")
    # Of a group of zeros nothing can be told: they stay zeros.
    return {name: score / (measures[how](score) or 1.0) for name, score in scores.items()}


def _weighs(graph: ModelGraph, member: Member) -> bool:
    """Whether a member is the weight of a layer, and no bias or statistic."""
    layer = graph.module.get_submodule(member.path)
    value = layer._parameters.get(member.attribute)
    if value is None:
        return False
    return value.dim() > 1 or (member.attribute == "weight" and not isinstance(layer, nn.PReLU))


def _multiplies(graph: ModelGraph, member: Member) -> bool:
    """Whether a member is the weight of a convolution, a linear layer or the like."""
    value = graph.module.get_submodule(member.path)._parameters.get(member.attribute)
    return value is not None and value.dim() > 1


def _summed(
    graph: ModelGraph,
    groups: ChannelGroups,
    counts: Callable[[ModelGraph, Member], bool],
    value: Callable[[str, Tensor], Tensor],
    finish: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda x: x,
) -> Scores:
    """Sum something over all elements that belong to each unit, over the members that count."""
    names = {id(p): name for name, p in graph.module.named_parameters()}
    found: Scores = {}
    for group in groups.free:
        parts = [
            finish(_per_unit(group, member, value(names.get(id(tensor), member.name), tensor)))
            for member, tensor in _tensors(graph, group)
            if counts(graph, member)
        ]
        if parts:
            found[group.name] = np.sum(parts, axis=0)
            if not np.isfinite(found[group.name]).all():
                raise PreconditionError(
                    "the score of a channel is not finite",
                    where=f"channel group {group.name!r}",
                    remedy="Look for NaN or infinite weights, or a loss that is not finite.",
                )
    return found


def _tensors(graph: ModelGraph, group: ChannelGroup) -> Iterator[tuple[Member, Tensor]]:
    """Every member with its tensor; a tied one counts once."""
    seen: set[tuple[int, int]] = set()
    for member in group.members:
        tensor = getattr(graph.module.get_submodule(member.path), member.attribute, None)
        if tensor is not None and (id(tensor), member.dim) not in seen:
            seen.add((id(tensor), member.dim))
            yield member, tensor.detach()


def _per_unit(group: ChannelGroup, member: Member, values: Tensor) -> NDArray[np.float64]:
    others = [dim for dim in range(values.dim()) if dim != member.dim]
    line = values.double().sum(dim=others) if others else values.double()
    held = member.units >= 0
    return np.bincount(
        member.units[held], weights=line.cpu().numpy()[held], minlength=group.units
    ).astype(np.float64)
