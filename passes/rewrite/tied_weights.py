"""Weights that a finished model looks up in a bank whenever it runs.

    weight = bank[index]        y = F.linear(x, weight, bias)

While a model is trained, the lookup is a parametrization of a layer. In the end the layer becomes
nodes: one that looks the weight up, whoever shares it, and one for each product. The `state_dict`
holds the bank and the bias, nothing else; the index is made again from its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize

from energy_model.errors import PreconditionError
from passes.dynamic.tied_bank import TiedBank, bank_of
from passes.graph import ModelGraph, Site
from passes.storage.modules import storable

_Call = Callable[[GraphModule, Any, Any, Node, Node | None], Node]


@storable
class TiedWeight(nn.Module):
    """Yields a weight that is looked up in a bank.

    Args:
        tie: Which entry every cell of the weight takes.
        bank: Of shape `(buckets, *entry)`.
        stored_index: Whether an exported file holds the index, rather than the nodes that compute
            it.
    """

    # The tracer keeps it as one node.
    traced_as_layer: ClassVar[bool] = True

    tie: TiedBank
    bank: nn.Parameter

    def __init__(self, tie: TiedBank, bank: nn.Parameter, *, stored_index: bool = False) -> None:
        super().__init__()
        self.stored_index = stored_index
        self.tie = tie
        self.bank = bank

    def forward(self) -> Tensor:
        """The weight, of the bank's type."""
        weight: Tensor = self.tie(self.bank)
        return weight

    def to_config(self) -> dict[str, Any]:
        """Arguments that rebuild this module, without the values of the bank."""
        return {"tie": self.tie.to_config(), "stored_index": self.stored_index}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedWeight:
        """Rebuild from `to_config`."""
        with torch.device("cpu"):  # the index is made, not loaded
            tie = TiedBank(**config["tie"])
        bank = nn.Parameter(torch.empty(tie.buckets, *tie.entry))
        return cls(tie, bank, stored_index=config["stored_index"])


def why_not_tied(graph: ModelGraph, site: Site) -> str:
    """Why a weight cannot be looked up in a bank; empty if it can."""
    if graph.graph_module is None:
        return "the model cannot be traced as a whole"
    if site.computed:
        return "it is computed in every forward pass"
    parameter = graph.parameter(site)
    if site.size != parameter.numel():
        return "it is a part of a parameter"
    shared = {id(p) for p in graph.module.parameters() if _storage(p) == _storage(parameter)}
    if len(shared) > 1:
        return "another parameter shares its storage"
    reasons = (_why_alone(graph, graph.graph_module, *owner) for owner in site.owners)
    return next((why for why in reasons if why), "")


def _why_alone(graph: ModelGraph, module: GraphModule, path: str, name: str) -> str:
    """Why one owner of a weight cannot give it away."""
    layer = graph.module.get_submodule(path)
    if parametrize.is_parametrized(layer):
        return f"{path or 'the model'} is parametrized already"
    calls, reads = _calls(module, path), _reads(module, path, name)
    if graph.rewritten and reads:
        return "a node of a rewritten graph reads it"
    if not calls and not reads:
        return f"{path or 'the model'} lies inside what the graph calls as a whole"
    if not calls:
        return ""
    if name != "weight" or type(layer) not in _CALLS:
        return f"there is no rule for {type(layer).__name__}"
    several = any(len(node.args) + len(node.kwargs) != 1 for node in calls)
    if layer._forward_hooks or layer._forward_pre_hooks or several:
        return f"{path} does more than multiply with its weight"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        return f"{path} changes its weight when it reads it, or has sparse gradients"
    return ""


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _calls(module: GraphModule, path: str) -> list[Node]:
    """The nodes that call a layer."""
    return [n for n in module.graph.nodes if n.op == "call_module" and n.target == path]


def _reads(module: GraphModule, path: str, name: str) -> list[Node]:
    """The nodes that read a parameter as it is."""
    full = f"{path}.{name}" if path else name
    return [n for n in module.graph.nodes if n.op == "get_attr" and n.target == full]


def write_banks(graph: ModelGraph, sites: Iterable[Site], *, stored_index: bool = False) -> None:
    """Turn layers with tied weights into nodes that look them up; the function stays the same.

    Args:
        graph: Its `graph_module` is changed, and is the model from now on: no weight of these sites
            is parametrized any more.
        sites: Whose parameters are banks; see `attach_bank`.
        stored_index: See `TiedWeight`.

    Raises:
        PreconditionError: The model has no graph, or a site no bank.
    """
    module = graph.graph_module
    if module is None:
        raise PreconditionError(
            "the model cannot be traced as a whole, so that no weight can be looked up in a node",
            where=type(graph.module).__name__,
            remedy="The decisions say what could not be traced.",
        )
    for site in sites:
        _write(graph, module, site, stored_index=stored_index)
    module.graph.lint()
    module.recompile()
    graph.module, graph.rewritten = module, True


def _write(graph: ModelGraph, module: GraphModule, site: Site, *, stored_index: bool) -> None:
    path, name = site.owners[0]
    tie, bank = bank_of(graph.module.get_submodule(path), name), graph.parameter(site)
    if tie is None or not isinstance(bank, nn.Parameter):
        raise PreconditionError(
            "the weight is not looked up in a bank", where=site.name, remedy="Attach one first."
        )
    reads = [node for owner in site.owners for node in _reads(module, *owner)]
    calls = [node for owner, _ in site.owners for node in _calls(module, owner)]
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    with module.graph.inserting_before(min((*reads, *calls), key=places.__getitem__)):
        weight = module.graph.create_node("call_module", f"{path}.{name}" if path else name)
    for node in reads:
        node.replace_all_uses_with(weight)
        module.graph.erase_node(node)
    for node in calls:
        _unfold(module, node, weight)
    for owner, attribute in site.owners:
        _empty(module, owner, attribute)
    made = TiedWeight(tie, bank, stored_index=stored_index)
    made.train(module.get_submodule(path).training)
    module.get_submodule(path).add_module(name, made)


def _unfold(module: GraphModule, node: Node, weight: Node) -> None:
    """Replace the call of a layer by the function that it calls."""
    layer: Any = module.get_submodule(str(node.target))
    (x,) = (*node.args, *node.kwargs.values())
    rule = next(_CALLS[kind] for kind in type(layer).__mro__ if kind in _CALLS)
    with module.graph.inserting_before(node):
        bias = None
        if getattr(layer, "bias", None) is not None:
            bias = module.graph.get_attr(f"{node.target}.bias")
        node.replace_all_uses_with(rule(module, layer, x, weight, bias))
    module.graph.erase_node(node)


def _empty(module: GraphModule, path: str, name: str) -> None:
    """Leave of a layer only what else the graph may read: a bias."""
    layer = module.get_submodule(path)
    if type(layer) is nn.Module or layer is module:  # it never was a layer of the graph
        layer._parameters.pop(name, None)
        return
    rest = nn.Module()
    rest.train(layer.training)
    if isinstance(getattr(layer, "bias", None), nn.Parameter):
        rest.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
    parent, _, last = path.rpartition(".")
    module.get_submodule(parent)._modules[last] = rest


def _linear(module: GraphModule, layer: Any, x: Any, weight: Node, bias: Node | None) -> Node:
    return module.graph.call_function(F.linear, (x, weight, bias))


def _embedding(module: GraphModule, layer: Any, x: Any, weight: Node, bias: Node | None) -> Node:
    options = {"padding_idx": layer.padding_idx, "scale_grad_by_freq": layer.scale_grad_by_freq}
    return module.graph.call_function(F.embedding, (x, weight), options)


def _convolution(function: Callable[..., Tensor]) -> _Call:
    def call(module: GraphModule, layer: Any, x: Any, weight: Node, bias: Node | None) -> Node:
        padding = layer.padding
        if layer.padding_mode != "zeros":
            pads = tuple(layer._reversed_padding_repeated_twice)
            x = module.graph.call_function(F.pad, (x, pads), {"mode": layer.padding_mode})
            padding = (0,) * len(layer.kernel_size)
        args = (x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
        return module.graph.call_function(function, args)

    return call


def _transposed(function: Callable[..., Tensor]) -> _Call:
    def call(module: GraphModule, layer: Any, x: Any, weight: Node, bias: Node | None) -> Node:
        args = (x, weight, bias, layer.stride, layer.padding, layer.output_padding)
        return module.graph.call_function(function, (*args, layer.groups, layer.dilation))

    return call


_CALLS: Mapping[type[nn.Module], _Call] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution(F.conv1d),
    nn.Conv2d: _convolution(F.conv2d),
    nn.Conv3d: _convolution(F.conv3d),
    nn.ConvTranspose1d: _transposed(F.conv_transpose1d),
    nn.ConvTranspose2d: _transposed(F.conv_transpose2d),
    nn.ConvTranspose3d: _transposed(F.conv_transpose3d),
    nn.Embedding: _embedding,
}
