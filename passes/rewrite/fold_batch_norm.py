"""Fold batch normalisation into the convolution or linear layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.quantize.encoding import Encoding

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (*_CONVS, *_TRANSPOSED, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# A row whose largest weight would be below this is zero: its scale would be a subnormal number.
_TINIEST = 1e-30


def fold_batch_norms(
    module: GraphModule,
    flat: frozenset[str] = frozenset(),
    encodings: dict[str, Encoding] | None = None,
    alone: frozenset[str] = frozenset(),
) -> list[str]:
    """Fold every batch norm whose input is a layer that nothing else reads.

    The graph computes the same function in evaluation mode. Zeros stay zeros: a whole output
    channel is scaled at a time. Weights are changed in place, so the module must be a copy.

    Args:
        module: A traced model in evaluation mode.
        flat: Paths of the linear layers whose output has two dimensions; a norm over the tokens of
            any other is not one over its features.
        encodings: How the weights of layers are written, by path. Entries of layers that take up a
            norm are replaced; the new weight is exactly what the new entry writes.
        alone: Paths of layers that take up no norm.

    Returns:
        Paths of the norms that were folded.
    """
    calls: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    folded = []
    encodings = {} if encodings is None else encodings
    read = _read_directly(module)
    for node in list(module.graph.nodes):
        layer_node = _foldable_input(module, node, calls)
        if layer_node is None or str(layer_node.target) in alone:
            continue
        weight = _submodule(module, layer_node).weight
        if weight.dim() == 2 and str(layer_node.target) not in flat:
            continue
        if weight.untyped_storage().data_ptr() in read:
            continue
        layer, norm = _submodule(module, layer_node), _submodule(module, node)
        path = str(layer_node.target)
        encoding = encodings.get(path)
        if encoding is not None and not _rows_are_channels(layer, encoding):
            continue
        if (written := _fold(layer, norm, encoding)) is not None:
            encodings[path] = written
        node.replace_all_uses_with(layer_node)
        module.graph.erase_node(node)
        folded.append(str(node.target))
    module.graph.lint()
    module.recompile()
    return folded


def _read_directly(module: GraphModule) -> set[int]:
    """Storages that the graph reads without calling the layer that holds them."""
    found = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for name in str(node.target).split("."):
                value = getattr(value, name)
            if isinstance(value, Tensor):
                found.add(value.untyped_storage().data_ptr())
    return found


def _submodule(module: GraphModule, node: Node) -> Any:
    return module.get_submodule(str(node.target))


def _foldable_input(module: GraphModule, node: Node, calls: dict[str, int]) -> Node | None:
    if node.op != "call_module" or not isinstance(_submodule(module, node), _NORMS):
        return None
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.op != "call_module" or len(source.users) > 1:
        return None
    layer, norm = _submodule(module, source), _submodule(module, node)
    once = calls[str(source.target)] == 1
    fits = type(layer) in _FOLDABLE and norm.running_mean is not None
    tied = fits and any(
        p is layer.weight
        for path, other in module.named_modules()
        if other is not layer
        for p in other._parameters.values()
    )
    return source if once and fits and not tied else None


def _rows_are_channels(layer: Any, encoding: Encoding) -> bool:
    """Whether every output channel has scales of its own."""
    transposed = isinstance(layer, _TRANSPOSED)
    return encoding.axis == int(transposed) and (not transposed or layer.groups == 1)


def _fold(layer: Any, norm: Any, encoding: Encoding | None) -> Encoding | None:
    """Multiply and shift the layer's outputs as the norm does; the new encoding of its weight."""
    with torch.no_grad():
        variance: Tensor = norm.running_var + norm.eps
        scale = torch.rsqrt(variance.double())
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if layer.bias is not None:
            shift = shift + layer.bias.double() * scale
        if encoding is not None:
            encoding = _scale_codes(layer, scale, encoding)
        elif isinstance(layer, _TRANSPOSED):
            _scale_transposed(layer, scale)
        else:
            rows = scale.view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.copy_(layer.weight.double() * rows)
        layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=False)
    return encoding


def _scale_codes(layer: Any, scale: Tensor, encoding: Encoding) -> Encoding:
    """Scale the rows of a weight on a grid: the codes stay, but for their signs."""
    codes = encoding.codes(layer.weight)
    largest = encoding.scale.double().amax(1).to(scale.device) * encoding.largest
    factors = torch.where(largest * scale.abs() < _TINIEST, 0.0, scale)
    scaled, signs = encoding.scaled(factors)
    shape = [-1 if axis == encoding.axis else 1 for axis in range(codes.dim())]
    layer.weight.copy_(scaled.weight(codes * signs.view(shape).to(codes.dtype)))
    return scaled


def _scale_transposed(layer: Any, scale: Tensor) -> None:
    """Weight `(C_in, C_out / groups, *kernel)`: the output channels lie in dimension 1."""
    weight = layer.weight
    groups = layer.groups
    rows = weight.double().view(groups, weight.shape[0] // groups, *weight.shape[1:])
    factors = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    weight.copy_((rows * factors).view(weight.shape))
