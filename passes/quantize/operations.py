"""What the nodes of a graph do to values that lie on a grid."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node


class Kind(Enum):
    """What a node does."""

    NORM = auto()  # a batch norm, which may be folded into the layer before it
    RELU = auto()  # clips from below at zero: runtimes fuse it into what is before it
    ACTIVATION = auto()  # any other function of single values
    ADD = auto()
    CONCAT = auto()
    POOL = auto()  # averages
    MOVE = auto()  # only moves or selects values, or fills in zeros: they stay on their grid
    SPLIT = auto()  # the same, into several tensors
    NOTHING = auto()  # does nothing in evaluation mode
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Operation:
    """What one node does, and to what.

    Attributes:
        kind: What it does.
        sources: The tensors that it does it to; empty where that cannot be told.
    """

    kind: Kind
    sources: tuple[Node, ...] = ()


_ACTIVATIONS = """
    Hardswish Hardsigmoid Hardtanh SiLU GELU Mish Sigmoid Tanh LeakyReLU PReLU ELU SELU CELU
    Softplus Softsign LogSigmoid
"""
_MOVES = """
    Flatten Unflatten PixelShuffle PixelUnshuffle ChannelShuffle UpsamplingNearest2d
    ZeroPad{n}d ReflectionPad{n}d ReplicationPad{n}d CircularPad{n}d
"""
_ACTIVATION_NAMES = """
    hardswish hardsigmoid hardtanh hardtanh_ silu gelu mish sigmoid sigmoid_ tanh tanh_ leaky_relu
    leaky_relu_ prelu elu elu_ selu selu_ celu celu_ softplus softsign logsigmoid
    clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_
"""
_MOVE_NAMES = """
    flatten unflatten ravel reshape view permute transpose swapaxes swapdims movedim moveaxis t
    squeeze unsqueeze narrow select index_select flip roll tile repeat repeat_interleave expand
    expand_as view_as reshape_as pixel_shuffle pixel_unshuffle channel_shuffle
"""
_NOTHING_NAMES = "dropout dropout1d dropout2d dropout3d alpha_dropout clone contiguous detach"
_SPLIT_NAMES = "chunk split tensor_split unbind"


def _found(names: str, *owners: Any) -> Iterable[Any]:
    return (getattr(o, name) for name in names.split() for o in owners if hasattr(o, name))


_MAX_POOLS = tuple(_found("MaxPool1d MaxPool2d MaxPool3d", nn)) + tuple(
    _found("AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d", nn)
)
_MAX_FUNCTIONS = frozenset(_found("max_pool1d max_pool2d max_pool3d", torch, F))
_ADAPTIVE_MAX_FUNCTIONS = frozenset(
    _found("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", F)
)
_CONSTANT_PADS = tuple(_found("ConstantPad1d ConstantPad2d ConstantPad3d", nn))


def _layers() -> dict[Any, Kind]:
    kinds: dict[Any, Kind] = dict.fromkeys(_found(_ACTIVATIONS, nn), Kind.ACTIVATION)
    nothing = "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"
    kinds |= dict.fromkeys(_found(nothing, nn), Kind.NOTHING)
    kinds |= dict.fromkeys((nn.ReLU, nn.ReLU6), Kind.RELU)
    for n in (1, 2, 3):
        kinds |= dict.fromkeys(_found(_MOVES.format(n=n), nn), Kind.MOVE)
        kinds |= dict.fromkeys(_found(f"BatchNorm{n}d", nn), Kind.NORM)
        kinds |= dict.fromkeys(_found(f"AvgPool{n}d AdaptiveAvgPool{n}d", nn), Kind.POOL)
    return kinds


def _named() -> dict[str, Kind]:
    """What torch offers under one name as function and as method."""
    return {
        **dict.fromkeys(_ACTIVATION_NAMES.split(), Kind.ACTIVATION),
        **dict.fromkeys(_MOVE_NAMES.split(), Kind.MOVE),
        **dict.fromkeys(_NOTHING_NAMES.split(), Kind.NOTHING),
        **dict.fromkeys(_SPLIT_NAMES.split(), Kind.SPLIT),
        **dict.fromkeys(("relu", "relu_", "relu6"), Kind.RELU),
        **dict.fromkeys(("add", "add_"), Kind.ADD),
        "mean": Kind.POOL,
    }


def _functions() -> dict[Any, Kind]:
    kinds: dict[Any, Kind] = {}
    for name, kind in _named().items():
        kinds |= dict.fromkeys(_found(name, torch, F), kind)
    for n in (1, 2, 3):
        kinds |= dict.fromkeys(_found(f"avg_pool{n}d adaptive_avg_pool{n}d", torch, F), Kind.POOL)
    kinds |= dict.fromkeys((*_MAX_FUNCTIONS, *_ADAPTIVE_MAX_FUNCTIONS, operator.getitem), Kind.MOVE)
    kinds |= dict.fromkeys((operator.add, operator.iadd), Kind.ADD)
    return kinds | dict.fromkeys((torch.cat, torch.concat, torch.concatenate), Kind.CONCAT)


_CLAMPS = ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_", "hardtanh", "hardtanh_")
# Of torchvision, which is not needed to trace a model.
_STOCHASTIC_DEPTH = ("torchvision.ops.stochastic_depth", "stochastic_depth")
_LAYERS = _layers()
_METHODS = _named()
_FUNCTIONS = _functions()


def operation(module: GraphModule, node: Node) -> Operation:
    """What a node does; layers with weights are `OTHER`, as is everything that is not known."""
    kind = _kind(module, node)
    if kind is Kind.OTHER:
        return Operation(kind)
    if kind is Kind.ADD:
        return _addition(node)
    if kind is Kind.CONCAT:
        parts = argument(node, 0, "tensors")
        tensors = tuple(parts) if isinstance(parts, list | tuple) else ()
        whole = tensors and all(isinstance(t, Node) for t in tensors)
        return Operation(kind, tensors) if whole else Operation(Kind.OTHER)
    source = argument(node, 0, "input")
    return Operation(kind, (source,)) if isinstance(source, Node) else Operation(Kind.OTHER)


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a node by its place or name."""
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, default)


def _addition(node: Node) -> Operation:
    terms = (argument(node, 0, "input"), argument(node, 1, "other"))
    plain = argument(node, 2, "alpha", 1) == 1
    if plain and all(isinstance(term, Node) for term in terms):
        return Operation(Kind.ADD, terms)
    return Operation(Kind.OTHER)


def _kind(module: GraphModule, node: Node) -> Kind:
    if node.op == "call_module":
        return _layer_kind(module.get_submodule(str(node.target)))
    if node.op == "call_method":
        name = str(node.target)
        return _clamp(node, name) or _METHODS.get(name, Kind.OTHER)
    if node.op != "call_function":
        return Kind.OTHER
    return _function_kind(node)


def _function_kind(node: Node) -> Kind:
    target: Any = node.target
    name = str(getattr(target, "__name__", ""))
    if target is F.pad:
        fills = argument(node, 2, "mode", "constant") == "constant"
        return Kind.OTHER if fills and argument(node, 3, "value") not in (None, 0) else Kind.MOVE
    if target is F.interpolate:
        nearest = argument(node, 3, "mode", "nearest") in ("nearest", "nearest-exact")
        return Kind.MOVE if nearest else Kind.OTHER
    if (getattr(target, "__module__", ""), name) == _STOCHASTIC_DEPTH:
        return Kind.NOTHING
    found = _FUNCTIONS.get(target, Kind.OTHER)
    if target in _MAX_FUNCTIONS or target in _ADAPTIVE_MAX_FUNCTIONS:
        place = 6 if target in _MAX_FUNCTIONS else 2
        return Kind.OTHER if argument(node, place, "return_indices", False) else found
    return (_clamp(node, name) if found is Kind.ACTIVATION else None) or found


def _layer_kind(layer: nn.Module) -> Kind:
    if isinstance(layer, _MAX_POOLS):
        return Kind.OTHER if layer.return_indices else Kind.MOVE
    if isinstance(layer, _CONSTANT_PADS):
        return Kind.MOVE if layer.value == 0 else Kind.OTHER
    if type(layer) is nn.Hardtanh:
        return Kind.RELU if layer.min_val == 0 else Kind.ACTIVATION
    if type(layer) is nn.Upsample:
        return Kind.MOVE if layer.mode.startswith("nearest") else Kind.OTHER
    return _LAYERS.get(type(layer), Kind.OTHER)


def _clamp(node: Node, name: str) -> Kind | None:
    """A clamp from zero up is a ReLU with a ceiling."""
    if name not in _CLAMPS:
        return None
    low = argument(node, 1, "min_val" if "hardtanh" in name else "min", None)
    return Kind.RELU if isinstance(low, int | float) and low == 0 else Kind.ACTIVATION
