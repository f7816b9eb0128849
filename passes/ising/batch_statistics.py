"""Batch norms that normalise each candidate by the statistics of its own samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from energy_model.errors import PreconditionError
from passes.rewrite.gate_context import GateContext


class BatchStatistics(TorchFunctionMode):
    """While this runs, every batch norm uses the statistics of the samples, and updates none.

    Modules stay in evaluation mode and are not changed: calls of `F.batch_norm`, their own and
    those of the graph, are answered here.

    Args:
        context: Tells whether the batch now holds a copy of the samples for each state: every copy
            is then normalised by itself.
    """

    def __init__(self, context: GateContext) -> None:
        super().__init__()
        self._context = context

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        x, weight, bias, eps = _what_counts(*args, **(kwargs or {}))
        rows = self._context.rows
        try:
            if rows is None or not self._context.folded:
                return _normalised(x, weight, bias, eps)
            return _of_each(x, len(rows), weight, bias, eps)
        except ValueError as error:  # torch wants more than one value
            raise PreconditionError(
                str(error).rstrip("."),
                where="norms='batch'",
                remedy="Score with more samples, or with the running statistics.",
            ) from error


def _what_counts(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
    """What matters of the arguments of `F.batch_norm`, which this has the signature of."""
    return input, weight, bias, eps


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def _of_each(
    x: Tensor, states: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`(states * N, C, ...)` as if the channels of each state were channels of their own."""
    channels = x.shape[1]
    wide = torch.unflatten(x, 0, (states, -1)).transpose(0, 1).flatten(1, 2)
    found = _normalised(
        wide,
        None if weight is None else weight.repeat(states),
        None if bias is None else bias.repeat(states),
        eps,
    )
    return torch.unflatten(found, 1, (states, channels)).transpose(0, 1).flatten(0, 1)
