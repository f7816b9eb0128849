"""Candidates by `torch.vmap` over rows of gates."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from passes.inputs import Call
from passes.ising.memory_cap import MEMORY, MemoryCap
from passes.ising.scoring import Scoring
from passes.rewrite.live_gates import LiveGates

# Stands for a tensor among the other leaves of an output.
_TENSOR = object()


class VmapScoring(Scoring):
    """One vectorised forward; what lies before the first gate is computed once.

    Args:
        gates: Those of the model.
        chunk: States at a time; `None` takes as many as fit the memory.
        memory: Bytes that activations may take.
    """

    name: ClassVar[str] = "vmap"

    def __init__(self, gates: LiveGates, chunk: int | None = None, memory: int = MEMORY) -> None:
        super().__init__(gates)
        self._cap = MemoryCap(gates, chunk, memory)

    def _outputs(self, population: Tensor, call: Call, norms: str) -> list[Any]:
        specs: list[tuple[list[Any], pytree.TreeSpec]] = []

        def run(row: Tensor) -> list[Tensor]:
            with self.gates.acting(row), self._normalising(norms):
                leaves, spec = pytree.tree_flatten(self._run(self.gates.module, call))
            specs.append(([_TENSOR if isinstance(x, Tensor) else x for x in leaves], spec))
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        rows = self.gates.rows(population)
        chunk = self._cap.states(rows[0], call)
        found = torch.func.vmap(run, randomness="same", chunk_size=chunk)(rows)
        others, spec = specs[0]
        return [
            pytree.tree_unflatten(_merged([t[i] for t in found], others), spec)
            for i in range(len(rows))
        ]


def _merged(tensors: list[Tensor], others: list[Any]) -> list[Any]:
    """The leaves of an output: the tensors where they were, among the others."""
    left = iter(tensors)
    return [next(left) if other is _TENSOR else other for other in others]
