"""A layer and the gate before it in one node, so that the state that is set costs next to nothing.

A convolution of inputs of which some are zero is one of the inputs as they are by weights of which
as many are zero, and weights are mostly far fewer than activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Node

from passes.rewrite.gate_context import GateContext, LiveGate

# Their weights hold the input channels in dimension 1.
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class GatedLayer(LiveGate):
    """A gate, and the layer that reads what it lets through.

    For the state that is set the gate is on the layer's weight where that is the smaller one: the
    outputs are the same as long as dropped channels are finite, and so are all gradients, with
    zeros where the gate has them. Otherwise, and for rows of a context, it is on the input.

    Args:
        nodes: As in `LiveGate`.
        dim: As in `LiveGate`.
        context: What the gates compute now.
        path: Where the layer is in the model. It stays there; the gate only refers to it.
        layer: The layer.
    """

    def __init__(
        self, nodes: Tensor, dim: int, context: GateContext, path: str, layer: nn.Module
    ) -> None:
        super().__init__(nodes, dim, context)
        self.path = path
        self._layer = (layer,)  # in a tuple, so that its parameters have one owner

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of the gated input."""
        (layer,) = self._layer
        weight: Any = layer.weight
        if self.context.rows is not None or not self._is_for_weight(weight, x):
            return layer(super().forward(x))  # type: ignore[no-any-return]
        keep = self.keep.view(-1, *[1] * (weight.dim() - 2))
        masked = torch.where(keep, weight, torch.zeros((), dtype=weight.dtype))
        return functional_call(layer, {"weight": masked}, (x,))  # type: ignore[no-any-return]

    def _is_for_weight(self, weight: Tensor, x: Tensor) -> bool:
        """Whether the layer sums over the gate's dimension, and has no more weights than inputs."""
        summed = x.dim() - (weight.dim() - 1)
        return self.dim % x.dim() == summed and weight.numel() <= x.numel()


def takes_gate(module: GraphModule, node: Node) -> bool:
    """Whether a node is a layer that `GatedLayer` can stand for.

    Layers with hooks cannot: these would see what a gate is to hide.
    """
    if node.op != "call_module" or node.kwargs or len(node.args) != 1:
        return False
    layer = module.get_submodule(str(node.target))
    hooked = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    return type(layer) in _LAYERS and getattr(layer, "groups", 1) == 1 and not any(hooked)
