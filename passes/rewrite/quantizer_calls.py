"""Put something else in the place of every call of an activation quantizer."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from torch.fx import GraphModule

from passes.quantize.activations import ActivationQuantizer


def quantizers(module: nn.Module) -> dict[str, ActivationQuantizer]:
    """The quantizers of a model by path, each under its first."""
    found = module.named_modules()
    return {path: part for path, part in found if isinstance(part, ActivationQuantizer)}


def replace_quantizers(
    module: nn.Module, stand_in: Callable[[int], nn.Module]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Replace every call of a quantizer by a module of its own.

    Args:
        module: A traced model; it is not changed. Quantizers are nodes of graphs: a model that is
            none has no calls.
        stand_in: Makes the module for a call, given how many came before it.

    Returns:
        A copy, and the path of the quantizer of every call, in order. Quantizers without a range
        pass everything on: their calls are taken out.
    """
    paths = {id(quantizer): path for path, quantizer in quantizers(module).items()}
    if not isinstance(module, GraphModule) or not paths:
        return module, ()
    paths_of_calls: list[str] = []
    original, module = module, copy.deepcopy(module)
    for node in list(module.graph.nodes):
        quantizer = original.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(quantizer, ActivationQuantizer):
            continue
        if not bool(quantizer.ready):
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
            continue
        node.target = f"transform_call_{len(paths_of_calls)}"
        module.add_submodule(node.target, stand_in(len(paths_of_calls)))
        paths_of_calls.append(paths[id(quantizer)])
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return module, tuple(paths_of_calls)
