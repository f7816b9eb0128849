"""How many candidates fit into memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from passes.inputs import Call
from passes.rewrite.live_gates import LiveGates
from passes.tracing.symbolic import placeholder_values

# Bytes of activations.
MEMORY = 2**30


class _Sizes(Interpreter):
    """Notes the most bytes that any node reads and writes."""

    most = 1

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        read = sum(_bytes(self.env[node]) for node in n.all_input_nodes)
        value = super().run_node(n)
        self.most = max(self.most, read + _bytes(value))
        return value


def _bytes(value: Any) -> int:
    leaves = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


class MemoryCap:
    """How many states are run at a time.

    Taken for the activations of a state is twice what the largest node reads and writes: shortcuts
    and the workspace of the node take memory, too. It is measured once for inputs of equal shapes.

    Args:
        gates: Those of the model.
        chunk: States at a time; `None` takes as many as fit the memory.
        memory: Bytes that activations may take.
    """

    def __init__(self, gates: LiveGates, chunk: int | None, memory: int) -> None:
        self._gates, self._chunk, self._memory = gates, chunk, memory
        self._known: dict[tuple[torch.Size, ...], int] = {}

    def states(self, row: Tensor, call: Call) -> int:
        """States at a time, at least one; the model is in evaluation mode.

        Args:
            row: A state to measure, as the context of the gates takes it.
            call: The samples.
        """
        if self._chunk is not None:
            return self._chunk
        shapes = tuple(tensor.shape for tensor in call.tensors())
        if shapes not in self._known:
            sizes = _Sizes(self._gates.module)
            with self._gates.acting(row):
                sizes.run(*placeholder_values(self._gates.module, call.fresh()))
            self._known[shapes] = max(1, self._memory // (2 * sizes.most))
        return self._known[shapes]
