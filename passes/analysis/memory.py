"""Peak of live activations: what the working memory must hold at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from energy_model.errors import UnsupportedLayer
from passes.graph import ModelGraph
from passes.inputs import one_sample
from passes.isolation import evaluating
from passes.tracing.symbolic import placeholder_values


class _Liveness(Interpreter):
    """Adds up, at every node, the storages that are alive."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.constant = {
            t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())
        }
        self.peak = 0
        self.where = ""

    def run_node(self, n: Node) -> Any:
        """Run one node, with its inputs and output alive."""
        output = super().run_node(n)
        storages: dict[int, int] = {}
        for leaf in pytree.tree_leaves((list(self.env.values()), output)):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.constant:
                    storages[storage._cdata] = storage.nbytes()
        live = sum(storages.values())
        if live > self.peak:
            self.peak, self.where = live, n.name
        return output


def peak_activation_bytes(graph: ModelGraph) -> int:
    """Bytes of the activations that are alive at once, at their peak, for one sample.

    Inputs count, parameters do not; a tensor lives from the node that makes it to the last one that
    reads it; views and in-place results share their storage. What an operator or an opaque leaf
    uses inside itself is not seen.

    Raises:
        UnsupportedLayer: The whole model is opaque.
    """
    if graph.graph_module is None:
        raise UnsupportedLayer(
            "the peak of live activations needs a traced graph, and this model could not be traced",
            where=graph.leaves[0].reason if graph.leaves else "",
            remedy="Leave the limit 'ram' out, or make the model traceable.",
        )
    sample = one_sample(graph.call)
    with evaluating(graph.module), evaluating(graph.graph_module):
        runner = _Liveness(graph.graph_module)
        runner.run(*placeholder_values(graph.graph_module, sample))
    return runner.peak
