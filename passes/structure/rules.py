"""Which rule serves which layer, function and method."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from passes.quantize.activations import ActivationQuantizer
from passes.structure import layers, movement, pointwise, products
from passes.structure.context import Rule

_ELEMENTWISE_LAYERS = """
    Identity ReLU ReLU6 LeakyReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh
    Sigmoid LogSigmoid Tanh Tanhshrink Softplus Softsign Softshrink Hardshrink Threshold
    Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
"""
_ELEMENTWISE = """
    relu relu_ relu6 leaky_relu leaky_relu_ rrelu elu elu_ selu selu_ celu gelu silu mish hardswish
    hardsigmoid hardtanh hardtanh_ sigmoid sigmoid_ logsigmoid tanh tanh_ tanhshrink softplus
    softsign softshrink hardshrink threshold dropout dropout_ dropout1d dropout2d dropout3d
    alpha_dropout feature_alpha_dropout
    add add_ sub sub_ mul mul_ div div_ true_divide floor_divide multiply subtract divide pow pow_
    square sqrt rsqrt exp log log1p expm1 abs neg reciprocal sign sin cos erf floor ceil round
    clamp clamp_ clamp_min clamp_max clip maximum minimum where masked_fill masked_fill_ lerp
    addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not nan_to_num isnan
    clone contiguous detach to float double half bfloat16 type
"""
_OPERATORS = """
    add sub mul truediv floordiv neg pow iadd isub imul itruediv abs pos mod eq ne lt le gt ge and_
    or_ invert
"""
_REDUCTIONS = """
    mean sum amax amin std var prod norm logsumexp softmax log_softmax softmin cumsum argmax argmin
    max min normalize
"""
_MOVEMENTS = """
    permute transpose swapaxes swapdims movedim moveaxis t flatten squeeze unsqueeze ravel
    roll flip repeat tile expand expand_as view_as reshape_as type_as narrow select unbind
    repeat_interleave
"""
_POOLS = "MaxPool{n}d AvgPool{n}d LPPool{n}d AdaptiveMaxPool{n}d AdaptiveAvgPool{n}d"
_PADS = "ZeroPad{n}d ConstantPad{n}d ReflectionPad{n}d ReplicationPad{n}d CircularPad{n}d"
_POOL_FUNCTIONS = (
    "max_pool{n}d avg_pool{n}d lp_pool{n}d adaptive_max_pool{n}d adaptive_avg_pool{n}d"
)


def _found(names: str, *owners: Any) -> Iterable[Any]:
    return (getattr(o, name) for name in names.split() for o in owners if hasattr(o, name))


def _layer_rules() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = dict.fromkeys(_found(_ELEMENTWISE_LAYERS, nn), pointwise.elementwise)
    for n in (1, 2, 3):
        rules |= dict.fromkeys(_found((_POOLS + " " + _PADS).format(n=n), nn), pointwise.spatial(n))
        rules |= dict.fromkeys(_found(f"BatchNorm{n}d InstanceNorm{n}d", nn), layers.batch_norm)
        rules |= dict.fromkeys(_found(f"Conv{n}d", nn), layers.convolution(n))
        rules |= dict.fromkeys(
            _found(f"ConvTranspose{n}d", nn), layers.convolution(n, transposed=True)
        )
    reshaped = "Softmax LogSoftmax Softmin"
    return rules | {
        **dict.fromkeys(_found(reshaped, nn), pointwise.reduction),
        **dict.fromkeys(_found("LayerNorm RMSNorm", nn), layers.over_channels),
        **dict.fromkeys(_found("UpsamplingNearest2d UpsamplingBilinear2d", nn), pointwise.resize),
        nn.Upsample: pointwise.resize,
        nn.Linear: layers.linear,
        nn.GroupNorm: layers.group_norm,
        nn.PReLU: layers.prelu,
        nn.Embedding: layers.embedding,
        nn.MultiheadAttention: products.heads,
        nn.GLU: pointwise.gate_pair,
        ActivationQuantizer: pointwise.elementwise,
        nn.Flatten: movement.movement(movement.nowhere),
        nn.Unflatten: movement.movement(movement.by_part_size),
        nn.PixelShuffle: movement.movement(movement.second),
    }


def _named_rules() -> dict[str, Rule]:
    """Rules of what torch offers under one name as function and as method."""
    rules: dict[str, Rule] = dict.fromkeys(_ELEMENTWISE.split(), pointwise.elementwise)
    rules |= dict.fromkeys(_REDUCTIONS.split(), pointwise.reduction)
    rules |= dict.fromkeys(_MOVEMENTS.split(), movement.movement(movement.nowhere))
    rules |= dict.fromkeys(["chunk", "split", "tensor_split"], movement.split)
    rules |= dict.fromkeys(["view", "reshape"], movement.movement(movement.by_size))
    rules |= dict.fromkeys(["matmul", "bmm"], products.product)
    return rules | {
        "unflatten": movement.movement(movement.by_part_size),
        "cat": pointwise.concatenate,
        "concat": pointwise.concatenate,
        "concatenate": pointwise.concatenate,
        "stack": movement.stack,
    }


def _function_rules() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {}
    for name, rule in _named_rules().items():
        rules |= dict.fromkeys(_found(name, torch, F), rule)
    rules |= dict.fromkeys(_found(_OPERATORS, operator), pointwise.elementwise)
    for n in (1, 2, 3):
        rules |= dict.fromkeys(_found(_POOL_FUNCTIONS.format(n=n), torch, F), pointwise.spatial(n))
        rules |= dict.fromkeys(_found(f"conv{n}d", torch, F), layers.convolution(n))
        rules |= dict.fromkeys(
            _found(f"conv_transpose{n}d", torch, F), layers.convolution(n, transposed=True)
        )
    return rules | {
        F.linear: layers.linear,
        F.batch_norm: layers.batch_norm,
        F.layer_norm: layers.over_channels,
        F.interpolate: pointwise.resize,
        F.pad: movement.movement(movement.nowhere),
        F.pixel_shuffle: movement.movement(movement.second),
        F.scaled_dot_product_attention: products.attention,
        F.glu: pointwise.gate_pair,
        operator.matmul: products.product,
        getattr: movement.movement(movement.nowhere),
    }


LAYERS = _layer_rules()
FUNCTIONS = _function_rules()
METHODS = _named_rules()
# Functions of torchvision, which is not needed to trace a model.
BY_NAME: dict[tuple[str, str], Rule] = {
    ("torchvision.ops.stochastic_depth", "stochastic_depth"): pointwise.elementwise,
}
