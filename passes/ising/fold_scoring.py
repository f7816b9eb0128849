"""Candidates as parts of one long batch."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes.inputs import Call
from passes.ising.memory_cap import MEMORY, MemoryCap
from passes.ising.scoring import Scoring, seed_alike
from passes.rewrite.gate_context import GateContext, LiveGate
from passes.rewrite.live_gates import LiveGates
from passes.tracing.symbolic import placeholder_values


class FoldScoring(Scoring):
    """One forward of `states * samples` samples; what lies before the first gate is run once.

    It serves models that treat the samples of a batch one by one, along the first dimension.

    Args:
        gates: Those of the model.
        chunk: States at a time; `None` takes as many as fit the memory.
        memory: Bytes that activations may take.
    """

    name: ClassVar[str] = "fold"

    def __init__(self, gates: LiveGates, chunk: int | None = None, memory: int = MEMORY) -> None:
        super().__init__(gates)
        self._cap = MemoryCap(gates, chunk, memory)
        self._from_start = False

    def _outputs(self, population: Tensor, call: Call, norms: str) -> list[Any]:
        rows = self.gates.rows(population)
        chunk = self._cap.states(rows[0], call)
        found: list[Any] = []
        for part in torch.split(rows, chunk):
            try:
                found += self._folded(part, call, norms)
            except _BatchSizeRead:  # before the first gate: it has to be long from the start
                self._from_start = True
                found += self._folded(part, call, norms)
        return found

    def _folded(self, rows: Tensor, call: Call, norms: str) -> list[Any]:
        batch = call.batch_size or 1
        if self._from_start:
            given = call.map(lambda t: _repeated(t, len(rows)) if call.batched(t) else t.clone())
        else:
            given = call.fresh()
        runner = _Folding(self.gates, batch, from_start=self._from_start)
        seed_alike(self.gates.device)
        with self.gates.acting(rows), self._normalising(norms):
            outputs: list[Any] = runner.run(*placeholder_values(self.gates.module, given))
        return outputs


class _BatchSizeRead(Exception):
    """What has a copy of the samples for each state meets the size of the batch without."""


class _Folding(Interpreter):
    """Runs a graph and knows which values hold a copy of the samples for each state.

    Where these meet others that depend on the inputs, copies of the others are made.
    """

    def __init__(self, gates: LiveGates, batch: int, *, from_start: bool) -> None:
        super().__init__(gates.module)
        self.extra_traceback = False  # errors keep their words
        self._context: GateContext = gates.context
        self._batch, self._from_start = batch, from_start
        self._gated = _gated_nodes(gates.module)
        self._folded: set[Node] = set()
        self._of_inputs: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        """Run one node; the last one returns a list with the output of each state."""
        inputs = n.all_input_nodes
        meets = any(node in self._folded for node in inputs)
        if n.op == "placeholder" or any(node in self._of_inputs for node in inputs):
            self._of_inputs.add(n)
        self._context.folded = meets
        if n.op == "output":
            return self._split(n)
        value = super().run_node(n)
        starts = self._from_start and n.op == "placeholder" and self._is_long(value)
        if (meets or starts or n in self._gated) and _has_tensors(value):
            self._folded.add(n)
        return value

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        """The arguments of a node: all with copies, or none."""
        if not self._context.folded:
            return super().fetch_args_kwargs_from_env(n)

        def load(node: Node) -> Any:
            value = self.env[node]
            return value if node in self._folded else self._copied(node, value)

        return map_arg(n.args, load), map_arg(n.kwargs, load)

    def _copied(self, node: Node, value: Any) -> Any:
        if self._from_start or node not in self._of_inputs:
            return value
        sizes = (x for x in pytree.tree_leaves(value) if type(x) is int)
        if any(size == self._batch for size in sizes):
            raise _BatchSizeRead
        return pytree.tree_map_only(Tensor, self._copies, value)

    def _copies(self, tensor: Tensor) -> Tensor:
        """Copies for each state, unless what is broadcast over the batch needs none."""
        if tensor.dim() == 0 or (len(tensor) == 1 and self._batch > 1):
            return tensor
        return _repeated(tensor, self._states)

    @property
    def _states(self) -> int:
        assert self._context.rows is not None
        return len(self._context.rows)

    def _is_long(self, value: Any) -> bool:
        long = self._states * self._batch
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == long

    def _split(self, n: Node) -> list[Any]:
        return [map_arg(n.args[0], partial(self._part, state)) for state in range(self._states)]

    def _part(self, state: int, node: Node) -> Any:
        """What a node returned for one state."""
        value = self.env[node]
        if node not in self._folded:
            return value
        return pytree.tree_map_only(
            Tensor, lambda t: torch.unflatten(t, 0, (self._states, -1))[state], value
        )


def _gated_nodes(module: GraphModule) -> set[Node]:
    """The nodes that are gates, or layers with a gate inside."""
    paths = {path for path, part in module.named_modules() if isinstance(part, LiveGate)}
    return {
        node
        for node in module.graph.nodes
        if node.op == "call_module"
        and any(path == node.target or path.startswith(f"{node.target}.") for path in paths)
    }


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _repeated(tensor: Tensor, states: int) -> Tensor:
    """One copy after the other: `(N, ...)` to `(states * N, ...)`."""
    return tensor.unsqueeze(0).expand(states, *tensor.shape).flatten(0, 1)
