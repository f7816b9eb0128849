"""Weights of dropped channels, held where they are while the others are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passes.graph import ModelGraph
from passes.structure.groups import ChannelGroups
from passes.structure.state import State, as_indices, checked_state, cuts


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """What stays of one parameter, and what it was where it does not.

    Attributes:
        parameter: The parameter.
        kept: Whether each element is trained; broadcasts to the parameter's shape.
        values: The values that the others keep, of the parameter's shape.
    """

    parameter: nn.Parameter
    kept: Tensor
    values: Tensor


class HeldSlices:
    """Puts the weights of dropped channels back after every step of an optimizer.

    Their gradients are zero, but weight decay, momentum and running averages of the optimizer would
    still move them, so that a channel that returns would not be the one that went.

    Args:
        graph: The traced model, which keeps its shapes while slices are held.
        groups: Its channel groups.
    """

    def __init__(self, graph: ModelGraph, groups: ChannelGroups) -> None:
        self._graph = graph
        self._groups = groups
        self._slices: tuple[_Slice, ...] = ()

    def hold(self, state: State) -> None:
        """Hold what a state drops at the values that it has now; what it keeps is free.

        Raises:
            ArgumentError: The state does not fit the groups.
        """
        kept: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for cut in cuts(self._groups, checked_state(self._groups, state)):
            owner = self._graph.module.get_submodule(cut.path)
            parameter = owner._parameters.get(cut.attribute)
            if parameter is None:
                continue  # a statistic: it follows its inputs, kept or not
            line = torch.zeros(parameter.shape[cut.dim], dtype=torch.bool)
            line[as_indices(cut.keep)] = True
            shape = [1] * parameter.dim()
            shape[cut.dim] = -1
            mask = line.to(parameter.device).view(shape)
            before = kept.get(id(parameter))
            kept[id(parameter)] = parameter, mask if before is None else before[1] & mask
        self._slices = tuple(
            _Slice(parameter, mask, parameter.detach().clone()) for parameter, mask in kept.values()
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what an optimizer has moved of the weights that are held."""
        for part in self._slices:
            torch.where(part.kept, part.parameter, part.values, out=part.parameter)

    def release(self) -> None:
        """Hold nothing any more."""
        self._slices = ()
