"""What every node of a graph returns: shapes of tensors, and numbers as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from passes.graph import ModelGraph
from passes.sample_run import run_sample


@dataclass(frozen=True, slots=True)
class Shape:
    """Stands for a tensor of that shape."""

    sizes: tuple[int, ...]


class _Recorder(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        self.found[n] = pytree.tree_map_only(Tensor, lambda t: Shape(tuple(t.shape)), value)
        return value


def record(graph: ModelGraph, module: GraphModule) -> dict[Node, Any]:
    """Run one sample, or the whole batch if the model needs it, in evaluation mode."""
    return run_sample(graph, module, lambda: _Recorder(module)).found
