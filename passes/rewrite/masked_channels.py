"""Cut input channels that are masked entirely, and what computes them.

A channel of which an input mask keeps nothing needs neither its weights nor its values. The
convolution loses the channel, and so does the layer before it, as long as all that stands between
the two acts on each channel alone. Any other mask stays one multiplication.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.rewrite.channelwise import (
    CONVS,
    TRANSPOSED,
    Channelwise,
    keep_channels,
    keep_inputs,
    keep_outputs,
    output_dim,
)
from passes.tracing.mode import Mode
from passes.tracing.trace import observed_sites


@dataclass(frozen=True, slots=True)
class _Masked:
    """A convolution whose input is multiplied with a mask of ours.

    Attributes:
        site: Of the convolution.
        node: Its node.
        product: The multiplication.
        mask: The node that reads the mask.
        values: The mask, `(in_channels, *input_size)`.
    """

    site: Site
    node: Node
    product: Node
    mask: Node
    values: Tensor

    @property
    def keep(self) -> Tensor:
        """Indices of the channels that stay; at least one does."""
        kept = (self.values != 0).flatten(1).any(dim=1).nonzero().flatten()
        return kept if kept.numel() else kept.new_zeros(1)


@dataclass(frozen=True, slots=True)
class _Producer:
    """The convolution, transposed or not, that computes a masked input.

    Attributes:
        site: Of the convolution.
        layer: The convolution.
        between: Layers after it that hold a value for every channel.
    """

    site: Site
    layer: Any
    between: tuple[nn.Module, ...]


class _Fixed(Exception):
    """Why channels cannot be removed."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Channels that can go, from a convolution and from the layer that computes them.

    Attributes:
        mask: Path of the input mask's buffer.
        reader: The convolution that reads the channels.
        producer: The layer that computes them.
        keep: Indices of the channels of which the mask keeps something; at least one.
    """

    mask: str
    reader: Site
    producer: Site
    keep: Tensor


def plan_cuts(graph: ModelGraph, least: Mapping[str, int] | None = None) -> list[Cut]:
    """The cuts that `remove_masked_channels` would make, and those of nothing so far.

    Args:
        graph: A graph with input masks; read only.
        least: As for `remove_masked_channels`.
    """
    module = graph.graph_module
    if module is None:
        return []
    surgery = _Surgery(graph, module, least or {})
    found = (surgery.masked(node) for node in module.graph.nodes)
    cuts = (surgery.cut_of(masked) for masked in found if masked is not None)
    return [cut for cut in cuts if cut is not None]


def remove_masked_channels(
    graph: ModelGraph, least: Mapping[str, int] | None = None
) -> list[Decision]:
    """Remove the channels that input masks mask entirely, in place.

    The function stays the same, as long as zero times an input is zero. A convolution loses its
    channels together with the layer that computes them, or not at all: a selection of channels in
    place of the mask would cost as much as the mask. Masks of ones are removed.

    Args:
        graph: A finished graph; its sites describe the smaller layers afterwards. What is cut has
            new parameters, so no optimizer may hold the old ones.
        least: Nonzero weights that layers keep at least, by name, besides the rules of the graph.

    Returns:
        What was removed from which layer, and why other masked channels stay.
    """
    module = graph.graph_module
    if module is None:
        return []
    surgery = _Surgery(graph, module, least or {})
    decisions: list[Decision] = []
    for node in list(module.graph.nodes):
        masked = surgery.masked(node)
        if masked is not None:
            decisions += surgery.reduce(masked)
    module.graph.lint()
    module.recompile()
    surgery.update_sites()
    return decisions


class _Surgery:
    """Decides on and makes the cuts in one graph."""

    def __init__(self, graph: ModelGraph, module: GraphModule, least: Mapping[str, int]) -> None:
        self.graph = graph
        self.module = module
        self.least = least
        self.users_own = {
            id(value)
            for part in graph.module.modules()
            for value in (*part._buffers.values(), *vars(part).values())
        }
        nodes = module.graph.nodes
        called = [module.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
        self.calls = Counter(id(part) for layer in called for part in layer.modules())
        self.cut: set[str] = set()

    def masked(self, node: Node) -> _Masked | None:
        """The masked convolution at a node; `None` for any other node."""
        site = self._site(node)
        product = node.args[0] if node.args else node.kwargs.get("input")
        if site is None or not isinstance(product, Node) or product.target is not torch.mul:
            return None
        mask = product.args[1] if len(product.args) == 2 else None
        # A path without a dot is a tensor that the user's forward makes.
        if not isinstance(mask, Node) or mask.op != "get_attr" or "." not in str(mask.target):
            return None
        reads = [n for n in self._reads() if n.target == mask.target]
        values = self._held(mask)
        if any(len(n.users) > 1 for n in (product, mask)) or len(reads) > 1 or values is None:
            return None
        sizes = {(use.shape.in_channels, *use.shape.input_size) for use in site.uses}
        if id(values) in self.users_own or tuple(values.shape) not in sizes:
            return None
        return _Masked(site, node, product, mask, values)

    def reduce(self, masked: _Masked) -> list[Decision]:
        """Cut what can be cut, and remove the mask if it keeps every input."""
        name, total = masked.site.name, len(masked.values)
        kept, values, decisions = masked.keep, masked.values, []
        if kept.numel() < total:
            stay = f"{total - kept.numel()} of {total} channels"
            try:
                decisions = self._cut(masked, kept)
            except _Fixed as why:
                return [Decision(name, "masked channels stay", str(why), before=stay, after=stay)]
            values = values[kept]
            owner, attribute = self._place(masked.mask)
            setattr(owner, attribute, values)
        if bool((values == 1).all()):
            self._unmask(masked)
            decisions.append(Decision(name, "input mask removed", "it keeps every input"))
        return decisions

    def cut_of(self, masked: _Masked) -> Cut | None:
        """What would be cut at a masked convolution; `None` if nothing can be."""
        reader = masked.site
        try:
            layer = self._layer(masked.node)
            self._check(layer, reader, CONVS)
            alone = Channelwise.of(masked.values.dim() - 1)
            producer = self._producer(masked.product.args[0], alone)
            self._check_least(reader, layer, masked.keep, 1)
            self._check_least(
                producer.site, producer.layer, masked.keep, output_dim(producer.layer)
            )
        except _Fixed:
            return None
        return Cut(str(masked.mask.target), reader, producer.site, masked.keep)

    def update_sites(self) -> None:
        """Read the geometry of the smaller layers, by running one sample."""
        if not self.cut:
            return
        found = {owner: site for site in observed_sites(self.graph) for owner in site.owners}
        self.graph.sites = tuple(
            replace(found[site.owners[0]], name=site.name) if site.name in self.cut else site
            for site in self.graph.sites
        )

    def _cut(self, masked: _Masked, keep: Tensor) -> list[Decision]:
        """Cut the convolution, the layer before it, and what stands between them."""
        reader, layer = masked.site, self._layer(masked.node)
        self._check(layer, reader, CONVS)
        alone = Channelwise.of(masked.values.dim() - 1)
        producer = self._producer(masked.product.args[0], alone)
        self._check_least(reader, layer, keep, 1)
        self._check_least(producer.site, producer.layer, keep, output_dim(producer.layer))
        keep_inputs(layer, keep)
        keep_outputs(producer.layer, keep)
        for part in producer.between:
            keep_channels(part, keep)
        self.cut |= {reader.name, producer.site.name}
        total, left = len(masked.values), keep.numel()
        change = f"{total} channels", f"{left} channels"
        what, why = f"{total - left} {{}} channels removed", "masked entirely"
        return [
            Decision(reader.name, what.format("input"), why, *change),
            Decision(
                producer.site.name, what.format("output"), f"{why} before {reader.name}", *change
            ),
        ]

    def _producer(self, node: Any, alone: Channelwise) -> _Producer:
        """Walk back from a masked input to the layer that computes it."""
        between: list[nn.Module] = []
        while True:
            if not isinstance(node, Node) or node.op == "placeholder":
                raise _Fixed("they are an input of the model")
            if len(node.users) > 1:
                raise _Fixed(f"{len(node.users)} nodes read {node.name}")
            site = self._site(node)
            if site is not None:
                layer = self._layer(node)
                self._check(layer, site, (*CONVS, *TRANSPOSED))
                return _Producer(site, layer, tuple(between))
            if node.op == "call_module":
                layer = self._layer(node)
                _check_plain(layer, str(node.target))
                if not alone.has_layer(layer):
                    raise _Fixed(f"{node.target}, a {type(layer).__name__}, may mix channels")
                if alone.holds_channels(layer):
                    self._check_alone(layer, str(node.target))
                    between.append(layer)
            elif not alone.has_call(node):
                raise _Fixed(f"{node.name} may mix channels")
            node = self._source(node)

    def _source(self, node: Node) -> Node:
        """The one tensor that a node acts on."""
        given = [n for n in node.all_input_nodes if not self._is_mode(n)]
        if len(given) != 1:
            raise _Fixed(f"{node.name} joins {len(given)} tensors")
        return given[0]

    def _is_mode(self, node: Node) -> bool:
        return node.op == "call_module" and isinstance(self._layer(node), Mode)

    def _check(self, layer: Any, site: Site, classes: Sequence[type[nn.Module]]) -> None:
        """Refuse a convolution that cannot be cut."""
        if type(layer) not in classes:
            raise _Fixed(f"{site.name} is a {type(layer).__name__}")
        if layer.groups != 1:
            raise _Fixed(f"{site.name} has {layer.groups} groups")
        if self.graph.rules.get(site.name, LayerRule()).min_density >= 1:
            raise _Fixed(f"{site.name} is left alone")
        if sum(use.count for use in site.uses) != 1:
            raise _Fixed(f"{site.name} is used more than once")
        self._check_alone(layer, site.name)

    def _check_alone(self, layer: nn.Module, name: str) -> None:
        """Refuse a layer if anything but its one call in the graph depends on its shape."""
        if self.calls[id(layer)] != 1:
            raise _Fixed(f"{name} is used more than once")
        _check_plain(layer, name)
        held = _holders(self.graph.module)
        read = [value for value in map(self._held, self._reads()) if value is not None]
        held.update(map(_storage, read))
        for tensor in (*layer.parameters(), *layer.buffers()):
            if held[_storage(tensor)] != 1:
                raise _Fixed(f"{name} shares its tensors")

    def _check_least(self, site: Site, layer: Any, keep: Tensor, dim: int) -> None:
        weight = layer.weight.detach()
        rule = self.graph.rules.get(site.name, LayerRule())
        least = max(rule.least(site.size), self.least.get(site.name, 0))
        left = int(torch.count_nonzero(weight.index_select(dim, keep.to(weight.device))))
        if left < min(least, int(torch.count_nonzero(weight))):
            raise _Fixed(f"{site.name} would keep {left:,} weights, {least:,} is the least")

    def _unmask(self, masked: _Masked) -> None:
        masked.product.replace_all_uses_with(masked.product.all_input_nodes[0])
        for node in (masked.product, masked.mask):
            self.module.graph.erase_node(node)
        holder, name = self._place(masked.mask)
        delattr(holder, name)
        if not holder._buffers:
            self.module.delete_submodule(str(masked.mask.target).rpartition(".")[0])

    def _layer(self, node: Node) -> Any:
        if node.op != "call_module":
            raise _Fixed(f"{node.name} calls a function, not a layer")
        return self.module.get_submodule(str(node.target))

    def _place(self, node: Node) -> tuple[nn.Module, str]:
        owner, _, name = str(node.target).rpartition(".")
        return self.module.get_submodule(owner), name

    def _reads(self) -> list[Node]:
        return [node for node in self.module.graph.nodes if node.op == "get_attr"]

    def _held(self, node: Node) -> Tensor | None:
        holder, name = self._place(node)
        value = getattr(holder, name)
        return value if isinstance(value, Tensor) else None

    def _site(self, node: Node) -> Site | None:
        """The site of a convolution, given as a layer or as a function."""
        if node.op == "call_module":
            if not isinstance(self._layer(node), (*CONVS, *TRANSPOSED)):
                return None
            owner = (str(node.target), "weight")
        else:
            weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
            if not isinstance(weight, Node) or weight.op != "get_attr":
                return None
            path, _, name = str(weight.target).rpartition(".")
            owner = (path, name)
        return next((site for site in self.graph.sites if owner in site.owners), None)


def _check_plain(layer: nn.Module, name: str) -> None:
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        raise _Fixed(f"{name} has hooks")


def _holders(model: nn.Module) -> Counter[int]:
    """How many attributes of modules hold each storage."""
    tables: list[dict[str, Any]] = []
    for part in model.modules():
        tables += [part._parameters, part._buffers]
    return Counter(_storage(t) for table in tables for t in table.values() if t is not None)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
