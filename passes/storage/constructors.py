"""The constructor arguments of a live module, read from its attributes.

Most layers of torch keep every argument under its own name. The exceptions stand here as small
recipes. Whoever uses the result checks that the rebuilt module equals the original, so a wrong
guess costs generality and never correctness.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Arguments = dict[str, Any]

_PLACEMENT = frozenset({"device", "dtype"})


def constructor_arguments(module: nn.Module) -> Arguments | None:
    """Keyword arguments that should rebuild a layer, or `None` when an argument is not kept.

    A value may be a module: the layer of which an encoder is a stack, for instance.
    """
    recipe = _RECIPES.get(type(module))
    try:
        return recipe(module) if recipe else _by_name(module)
    except (AttributeError, IndexError):  # an attribute was removed: the layer is not what it was
        return None


def _by_name(module: nn.Module) -> Arguments | None:
    arguments: Arguments = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        if name == "self" or name in _PLACEMENT or parameter.kind in _VARIADIC:
            continue
        if hasattr(module, name):
            arguments[name] = _as_argument(getattr(module, name), parameter.default)
        elif required:
            return None
    return arguments


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _as_argument(value: object, default: object) -> object:
    """An optional parameter stands for the flag that asked for it."""
    if isinstance(default, bool) and (value is None or isinstance(value, torch.Tensor)):
        return value is not None
    return value


def _attributes(*names: str) -> Callable[[Any], Arguments]:
    return lambda module: {name: getattr(module, name) for name in names}


_RECURRENT = (
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
)


def _multihead_attention(module: Any) -> Arguments:
    names = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
    return {name: getattr(module, name) for name in names} | {
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
    }


def _transformer_layer(module: Any) -> Arguments:
    return {
        "d_model": module.linear1.in_features,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": "gelu" if module.activation is nn.functional.gelu else "relu",
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }


def _encoder(module: Any) -> Arguments:
    return {
        "encoder_layer": module.layers[0],
        "num_layers": module.num_layers,
        "norm": module.norm,
        "enable_nested_tensor": module.enable_nested_tensor,
        "mask_check": module.mask_check,
    }


def _decoder(module: Any) -> Arguments:
    return {
        "decoder_layer": module.layers[0],
        "num_layers": module.num_layers,
        "norm": module.norm,
    }


_RECIPES: Mapping[type[nn.Module], Callable[[Any], Arguments]] = {
    nn.RNN: _attributes(*_RECURRENT, "nonlinearity"),
    nn.GRU: _attributes(*_RECURRENT),
    nn.LSTM: _attributes(*_RECURRENT, "proj_size"),
    nn.MultiheadAttention: _multihead_attention,
    nn.TransformerEncoderLayer: _transformer_layer,
    nn.TransformerDecoderLayer: _transformer_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
}
