"""A model with the values that it may come to: no weight is zero, and no two tensors are alike."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from passes.graph import ModelGraph


def as_trained(graph: ModelGraph, *, weights: bool = True) -> ModelGraph:
    """A copy in which all that will move has other values, to count costs with.

    What is zero now will not be for long: weights, and the biases that fresh batch norms fold to,
    which no file would hold. Frozen parameters stay as they are.

    Args:
        graph: The traced model; not changed.
        weights: Whether parameters are trained, or only statistics are estimated anew.
    """
    own = copy.deepcopy(graph)
    generator = torch.Generator().manual_seed(0)
    moved: set[int] = set()
    for root in (own.module, own.graph_module):
        for part in () if root is None else root.modules():
            for tensor in _moving(part, weights):
                if id(tensor) not in moved:
                    moved.add(id(tensor))
                    _fill(tensor, generator)
    return own


def _moving(part: nn.Module, weights: bool) -> list[Tensor]:
    """The tensors of a layer that move."""
    found: list[Tensor | None] = []
    if weights:
        found += [p for p in part._parameters.values() if p is not None and p.requires_grad]
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        found += [part.running_mean, part.running_var]
    return [tensor for tensor in found if tensor is not None and tensor.is_floating_point()]


@torch.no_grad()
def _fill(tensor: Tensor, generator: torch.Generator) -> None:
    if tensor.device.type != "meta":
        # Away from 0, as variances have to be.
        values = torch.rand(tensor.shape, generator=generator) + 0.5
        tensor.copy_(values.to(tensor.device))
