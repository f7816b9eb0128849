"""Penalties that pull weights to zero, over the sparse tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from passes.dynamic.engine import Member
from passes.graph import ModelGraph
from passes.rewrite.optimizer_state import part_of

# Inside the root, so that its gradient at zero is finite; the authors' value.
_TINY = 1e-12


def penalty(graph: ModelGraph, members: Sequence[Member], *, group_lasso: bool) -> Tensor:
    """Sum of |w|, or for convolutions of the 2-norms of their kernels.

    Stored weights that are not active are exactly zero, and get no gradient from it.

    Args:
        graph: The model.
        members: The sparse tensors.
        group_lasso: By kernels (Mostafa and Wang, ICML 2019, option `--conv-group-lasso`).

    Returns:
        A scalar with a gradient.
    """
    total = torch.zeros(())
    for member in members:
        parameter = graph.parameter(member.site)
        weight = part_of(parameter, member.site)
        taps = math.prod(member.shape.shape[2:])
        if group_lasso and taps > 1:
            kernels = weight.reshape(-1, taps)
            term = (kernels.square().sum(dim=1) + _TINY).sqrt().sum()
        else:
            term = weight.abs().sum()
        total = total.to(term.device) + term
    return total
