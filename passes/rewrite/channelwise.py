"""What acts on each channel alone, and cutting channels out of a layer."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = """
    Identity ReLU ReLU6 LeakyReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh
    Sigmoid LogSigmoid Tanh Tanhshrink Softplus Softsign Softshrink Hardshrink Threshold
    Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
"""
_POOL_LAYERS = "MaxPool{n}d AvgPool{n}d LPPool{n}d AdaptiveMaxPool{n}d AdaptiveAvgPool{n}d"
_ACTIVATIONS = """
    relu relu6 leaky_relu rrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid
    logsigmoid tanh tanhshrink softplus softsign softshrink hardshrink threshold
    relu_ leaky_relu_ rrelu_ elu_ selu_ celu_ hardtanh_ threshold_
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
"""
_POOLS = "max_pool{n}d avg_pool{n}d lp_pool{n}d adaptive_max_pool{n}d adaptive_avg_pool{n}d"
# Arithmetic is meant with a number: a second tensor is the caller's to refuse.
_TORCH = """
    relu relu_ sigmoid sigmoid_ tanh tanh_ selu selu_ clamp clamp_ abs neg square exp dropout
    add sub mul div
"""
_METHODS = frozenset((_TORCH + "contiguous clone").split())


def _attributes(owner: Any, names: str) -> frozenset[Any]:
    return frozenset(getattr(owner, name) for name in names.split())


_FREE_LAYERS = _attributes(nn, _LAYERS)
_FREE_FUNCTIONS = (
    _attributes(F, _ACTIVATIONS)
    | _attributes(torch, _TORCH)
    | _attributes(operator, "add sub mul truediv neg pow")
)


@dataclass(frozen=True, slots=True)
class Channelwise:
    """What acts on each channel alone, of tensors `(N, C, *size)`.

    One that pools over two dimensions would pool over channels if the tensor had but one.

    Attributes:
        norms: Classes of layers that have values for every channel.
        layers: Classes of other layers; exact ones, as a subclass may do more.
        functions: Functions.
    """

    norms: frozenset[Any]
    layers: frozenset[Any]
    functions: frozenset[Any]

    @classmethod
    def of(cls, dims: int) -> Channelwise:
        """For tensors with so many dimensions in `size`."""
        torch_pools = "max_pool{n}d avg_pool1d adaptive_avg_pool1d" if dims == 1 else "max_pool{n}d"
        return cls(
            _attributes(nn, f"BatchNorm{dims}d InstanceNorm{dims}d"),
            _FREE_LAYERS | _attributes(nn, _POOL_LAYERS.format(n=dims)),
            _FREE_FUNCTIONS
            | _attributes(F, _POOLS.format(n=dims))
            | _attributes(torch, torch_pools.format(n=dims)),
        )

    def holds_channels(self, layer: nn.Module) -> bool:
        """Whether a layer has a value for every channel, and acts on each alone."""
        return type(layer) in self.norms or (type(layer) is nn.PReLU and layer.num_parameters > 1)

    def has_layer(self, layer: nn.Module) -> bool:
        """Whether a layer acts on each channel alone."""
        kinds = self.layers | self.norms
        return type(layer) in kinds or type(layer) is nn.PReLU

    def has_call(self, node: Node) -> bool:
        """Whether the function or method that a node calls acts on each channel alone."""
        if node.op == "call_function":
            return node.target in self.functions
        return node.op == "call_method" and node.target in _METHODS


def output_dim(layer: nn.Module) -> int:
    """Dimension of a convolution's weight that counts its output channels."""
    return 1 if isinstance(layer, TRANSPOSED) else 0


def keep_inputs(layer: Any, keep: Tensor) -> None:
    """Cut a convolution without groups to some of its input channels, `(n,)` indices."""
    _select(layer, "weight", keep, dim=1 - output_dim(layer))
    layer.in_channels = keep.numel()


def keep_outputs(layer: Any, keep: Tensor) -> None:
    """Cut a convolution without groups to some of its output channels."""
    _select(layer, "weight", keep, dim=output_dim(layer))
    _select(layer, "bias", keep)
    layer.out_channels = keep.numel()


def keep_channels(layer: Any, keep: Tensor) -> None:
    """Cut a norm or a PReLU to some of its channels."""
    if type(layer) is nn.PReLU:
        _select(layer, "weight", keep)
        layer.num_parameters = keep.numel()
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(layer, name, keep)
    layer.num_features = keep.numel()


def _select(layer: nn.Module, name: str, keep: Tensor, dim: int = 0) -> None:
    value = getattr(layer, name)
    if value is None:
        return
    smaller = value.detach().index_select(dim, keep.to(value.device))
    if isinstance(value, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=value.requires_grad)
    setattr(layer, name, smaller)
