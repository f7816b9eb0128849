"""Widths of layers' operands: found in a quantized graph, or announced before it is quantized."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from energy_model.errors import ArgumentError
from energy_model.widths import Widths
from passes.graph import ModelGraph, Site, common_widths
from passes.quantize.activations import ActivationQuantizer

_LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_LAYER_FUNCTIONS = (
    F.linear,
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)


def _named(owners: Sequence[Any], names: str) -> frozenset[Any]:
    return frozenset(getattr(o, n) for o in owners for n in names.split() if hasattr(o, n))


# What only moves or selects values, so that those of a grid stay on it. Zero is on every grid.
_MOVING_LAYERS = _named(
    [nn],
    "Identity Dropout Dropout1d Dropout2d Dropout3d Flatten Unflatten ReLU "
    "MaxPool1d MaxPool2d MaxPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "PixelShuffle PixelUnshuffle ChannelShuffle ZeroPad1d ZeroPad2d ZeroPad3d",
)
_MOVING_NAMES = """
    relu relu_ dropout dropout1d dropout2d dropout3d flatten unflatten reshape view permute
    transpose squeeze unsqueeze contiguous clone detach chunk split unbind select narrow expand
    flip roll t swapaxes movedim getitem pixel_shuffle pixel_unshuffle channel_shuffle
    max_pool1d max_pool2d max_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
"""
_MOVING_FUNCTIONS = _named([F, torch, operator], _MOVING_NAMES)
_MOVING_METHODS = frozenset(_MOVING_NAMES.split())
_JOINING = frozenset({torch.cat, torch.concat, torch.concatenate, torch.stack})
_PRODUCTS = frozenset({torch.mul, operator.mul})

# What a runtime computes together with the layer before it.
_FUSED_LAYERS = _named(
    [nn],
    "Identity Dropout Dropout1d Dropout2d Dropout3d BatchNorm1d BatchNorm2d BatchNorm3d "
    "ReLU ReLU6 LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh "
    "Sigmoid Tanh Softplus",
)
_FUSED_NAMES = """
    relu relu_ relu6 leaky_relu leaky_relu_ prelu elu elu_ selu selu_ celu celu_ gelu silu mish
    hardswish hardsigmoid hardtanh hardtanh_ sigmoid sigmoid_ tanh tanh_ softplus clamp clamp_
    dropout dropout1d dropout2d dropout3d
"""
_FUSED_FUNCTIONS = _named([F, torch], _FUSED_NAMES)
_FUSED_METHODS = frozenset(_FUSED_NAMES.split())


def observed_widths(graph: ModelGraph) -> dict[str, Widths]:
    """What a quantized graph multiplies and writes in how many bits, for every site.

    A weight has the width of its encoding. Inputs have that of the quantizer that feeds the layer,
    with nothing between that computes; outputs that of the quantizer which alone reads what the
    layer writes, after a batch norm or an activation function at most. Quantizers without a range
    do not count. A layer that is called several times has the most that any call has.

    Args:
        graph: The traced model; read only.

    Returns:
        Widths by name of the site; `None` for operands that are not quantized.
    """
    weights = {name: encoding.bits for name, encoding in graph.encodings.items()}
    calls: dict[str, list[Widths]] = {site.name: [] for site in graph.sites}
    if graph.graph_module is not None:
        reader = _Reader(graph.graph_module)
        for node in graph.graph_module.graph.nodes:
            site = _site_of(graph, node)
            if site is not None:
                bits = weights.get(site.name)
                found = Widths(bits, reader.before(_argument(node, 0, "input")), reader.after(node))
                calls[site.name].append(found)
    return {
        name: common_widths(found) if found else Widths(weights.get(name))
        for name, found in calls.items()
    }


def apply_widths(graph: ModelGraph) -> None:
    """Let the graph's sites be charged for the widths that `observed_widths` finds, in place."""
    graph.sites = with_widths(graph.sites, observed_widths(graph))


def with_widths(sites: Sequence[Site], widths: Mapping[str, Widths]) -> tuple[Site, ...]:
    """Sites whose uses have given widths: what is announced before anything is quantized.

    Args:
        sites: The sites; not changed.
        widths: By name of the site; the others stay as they are.

    Raises:
        ArgumentError: A name is not that of a site.
    """
    unknown = widths.keys() - {site.name for site in sites}
    if unknown:
        raise ArgumentError(
            f"no layer is named {', '.join(sorted(unknown))}",
            where="widths",
            remedy="Give names of the graph's sites.",
        )
    return tuple(_with(site, widths[site.name]) if site.name in widths else site for site in sites)


def weight_bits(graph: ModelGraph, site: Site) -> int:
    """Bits that a weight is stored in, or will be: its encoding's, the announced, or its type's."""
    written = graph.encodings.get(site.name) or graph.codebooks.get(site.name)
    if written is not None:
        return written.bits
    return site.widths.weights or graph.weight(site).element_size() * 8


def carried(before: Sequence[Site], after: Sequence[Site]) -> tuple[Site, ...]:
    """Sites that were found anew, with the widths that those of the same parameters had.

    Parts of one parameter stay in their order when channels are cut. Where they are not equally
    many any more, all have the most that any had.

    Args:
        before: The sites with widths.
        after: Those without; not changed.
    """
    known: dict[object, list[Widths]] = {}
    for site in before:
        known.setdefault(site.owners or site.name, []).append(site.widths)
    total = Counter(site.owners or site.name for site in after)
    seen: Counter[object] = Counter()
    result = []
    for site in after:
        key = site.owners or site.name
        widths = known.get(key, [Widths()])
        place, seen[key] = seen[key], seen[key] + 1
        own = widths[place] if len(widths) == total[key] else common_widths(widths)
        result.append(_with(site, own))
    return tuple(result)


def _with(site: Site, widths: Widths) -> Site:
    return replace(site, uses=tuple(replace(use, widths=widths) for use in site.uses))


def _argument(node: Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _site_of(graph: ModelGraph, node: Node) -> Site | None:
    """The site whose weight a node multiplies its first argument with."""
    if node.op == "call_module":
        assert graph.graph_module is not None
        if not isinstance(graph.graph_module.get_submodule(str(node.target)), _LAYERS):
            return None
        owner = (str(node.target), "weight")
    elif node.op == "call_function" and node.target in _LAYER_FUNCTIONS:
        weight = _argument(node, 1, "weight")
        if not isinstance(weight, Node) or weight.op != "get_attr":
            return None
        path, _, attribute = str(weight.target).rpartition(".")
        owner = (path, attribute)
    else:
        return None
    return next((site for site in graph.sites if owner in site.owners), None)


class _Reader:
    """Looks for quantizers around the nodes of one graph."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._before: dict[Node, int | None] = {}

    def before(self, value: object) -> int | None:
        """Bits of a value that comes from quantizers through what only moves values."""
        if isinstance(value, list | tuple):
            found = [self.before(part) for part in value]
            known = [bits for bits in found if bits is not None]
            return max(known) if known and len(known) == len(found) else None
        if not isinstance(value, Node):
            return None
        if value not in self._before:
            self._before[value] = self._from(value)
        return self._before[value]

    def after(self, node: Node) -> int | None:
        """Bits of the quantizers that are all that reads a layer's outputs."""
        found: list[int | None] = []
        for user in node.users:
            layer = self._layer(user)
            if isinstance(layer, ActivationQuantizer):
                found.append(_bits(layer))
            elif self._is(user, layer, _FUSED_LAYERS, _FUSED_FUNCTIONS, _FUSED_METHODS):
                found.append(self.after(user))
            else:
                return None
        known = [bits for bits in found if bits is not None]
        return max(known) if known and len(known) == len(found) else None

    def _from(self, node: Node) -> int | None:
        layer = self._layer(node)
        if isinstance(layer, ActivationQuantizer):
            return _bits(layer)
        source = _argument(node, 0, "input")
        if node.op == "call_function" and node.target in _JOINING:
            return self.before(source if source is not None else node.kwargs.get("tensors"))
        if node.op == "call_function" and node.target is F.pad:
            zeros = _argument(node, 3, "value") in (None, 0)
            return self.before(source) if zeros else None
        if node.op == "call_function" and node.target in _PRODUCTS:
            return self._masked(node.args)
        if self._is(node, layer, _MOVING_LAYERS, _MOVING_FUNCTIONS, _MOVING_METHODS):
            return self.before(source)
        return None

    def _masked(self, factors: tuple[Any, ...]) -> int | None:
        """Bits of a product with a constant of zeros and ones, such as an input mask."""
        masks = [factor for factor in factors if self._is_mask(factor)]
        others = [factor for factor in factors if factor not in masks]
        return self.before(others[0]) if masks and len(others) == 1 else None

    def _is_mask(self, value: object) -> bool:
        if not isinstance(value, Node) or value.op != "get_attr":
            return False
        path, _, name = str(value.target).rpartition(".")
        mask = getattr(self._module.get_submodule(path), name)
        return isinstance(mask, Tensor) and bool(((mask == 0) | (mask == 1)).all())

    def _layer(self, node: Node) -> nn.Module | None:
        return self._module.get_submodule(str(node.target)) if node.op == "call_module" else None

    @staticmethod
    def _is(
        node: Node,
        layer: nn.Module | None,
        layers: frozenset[Any],
        functions: frozenset[Any],
        methods: frozenset[str],
    ) -> bool:
        if layer is not None:
            return type(layer) in layers
        if node.op == "call_function":
            return node.target in functions
        return node.op == "call_method" and node.target in methods


def _bits(quantizer: ActivationQuantizer) -> int | None:
    return quantizer.bits if bool(quantizer.ready) else None
