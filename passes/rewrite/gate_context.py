"""A gate that follows a context: what all gates of a model compute now."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from energy_model.errors import PreconditionError
from passes.rewrite.gates import Gate


@dataclass(slots=True, eq=False)
class GateContext:
    """What the gates of a model compute now; all of them hold the same context.

    Attributes:
        rows: `None`: the state that is set. A bool row `(nodes + 1,)`, or one that `torch.vmap`
            maps over: another state. A floating row: factors of the channels. Bool rows
            `(states, nodes + 1)`: a state each for the parts of a batch that holds one copy of the
            samples after the other. The last column is for what always stays.
        folded: Whether the tensors that are read now hold a copy of the samples for each state;
            with several rows a gate makes these copies otherwise.
    """

    rows: Tensor | None = None
    folded: bool = False


class LiveGate(Gate):
    """A gate whose state can change.

    Args:
        nodes: Of every channel its node, `context.rows`' last column if it always stays: int64
            `(n,)`.
        dim: The dimension of the input that holds the channels.
        context: What the gates compute now.
    """

    nodes: Tensor

    def __init__(self, nodes: Tensor, dim: int, context: GateContext) -> None:
        super().__init__(torch.ones_like(nodes, dtype=torch.bool), dim)
        self.register_buffer("nodes", nodes, persistent=False)
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        """The input with zeros, or times the factors; several states make the batch longer."""
        rows = self.context.rows
        if rows is None:
            return super().forward(x)
        rows = rows.index_select(-1, self.nodes)
        if rows.dim() == 2:
            return self._folded(x, rows)
        shape = [1] * x.dim()
        shape[self.dim] = -1
        if rows.is_floating_point():
            return x * rows.view(shape).to(x.dtype)
        return torch.where(rows.view(shape), x, torch.zeros((), dtype=x.dtype))

    def _folded(self, x: Tensor, rows: Tensor) -> Tensor:
        dim = self.dim % x.dim()
        if dim == 0:
            raise PreconditionError(
                "the channels lie in the first dimension, where the states would be",
                where="fold",
                remedy="Score with another back end.",
            )
        x = torch.unflatten(x, 0, (len(rows), -1)) if self.context.folded else x.unsqueeze(0)
        shape = [len(rows)] + [1] * (x.dim() - 1)
        shape[dim + 1] = -1
        found = torch.where(rows.view(shape), x, torch.zeros((), dtype=x.dtype))
        return found.flatten(0, 1)
