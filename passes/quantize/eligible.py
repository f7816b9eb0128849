"""Which weights can be quantized, which layers can compute in integers, and why not the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.rewrite.head_attention import HeadAttention

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *_CONVS, *TRANSPOSED)
ATTENTION = (nn.MultiheadAttention, HeadAttention)
"""Layers that multiply with weights inside: these can be stored as codes, not run in integers."""
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, slots=True)
class Eligible:
    """The weights that are quantized.

    Attributes:
        sites: These weights.
        reasons: Of every other site, why it stays float.
    """

    sites: tuple[Site, ...]
    reasons: dict[str, str]

    @property
    def layers(self) -> frozenset[str]:
        """Paths of the layers that hold these weights."""
        return frozenset(path for site in self.sites for path, _ in site.owners)

    def without(self, names: Collection[str], why: str) -> Eligible:
        """The same with some more layers that stay float."""
        sites = tuple(site for site in self.sites if site.name not in names)
        return Eligible(sites, self.reasons | dict.fromkeys(names, why))

    def decisions(self) -> list[Decision]:
        """Why what stays float does."""
        return [Decision(name, "stays float", why) for name, why in self.reasons.items()]


def eligible(graph: ModelGraph, *, static: bool) -> Eligible:
    """Choose the weights to quantize.

    These are the weights of linear layers and convolutions, and for weights alone also those of
    attention (`nn.MultiheadAttention` and `HeadAttention`): of its output projection, and of the
    projections of queries, keys and values, packed in one parameter or not.

    Args:
        graph: The traced model; read only.
        static: Activations are quantized as well: only layers that the graph calls will do.
            Attention computes inside, where nothing can be rounded, and stays float.
    """
    direct = _read_directly(graph)
    called = _called(graph) if static else None
    reasons = {site.name: _why_not(graph, site, direct, called) for site in graph.sites}
    whole = _whole(graph, reasons)
    for site in graph.sites:
        if not reasons[site.name] and site.name not in whole:
            reasons[site.name] = "its weight is a part of a larger parameter, the rest of it float"
    sites = tuple(site for site in graph.sites if not reasons[site.name])
    return Eligible(sites, {name: why for name, why in reasons.items() if why})


def axis_of(graph: ModelGraph, site: Site) -> int:
    """The dimension of the output channels in a site's weight."""
    return int(any(issubclass(kind, TRANSPOSED) for kind in _kinds(graph, site)))


def rows_of(graph: ModelGraph, site: Site) -> slice:
    """Where a site's output channels lie in its parameter, which may hold more than this weight."""
    parameter = graph.parameter(site)
    if site.size == parameter.numel():
        return slice(0, parameter.shape[axis_of(graph, site)])
    row = parameter[0].numel()
    return slice(site.start // row, (site.start + site.size) // row)


def is_linear(graph: ModelGraph, site: Site) -> bool:
    """Whether a site is the weight of linear layers, of attention or of embeddings only."""
    return not any(issubclass(kind, (*_CONVS, *TRANSPOSED)) for kind in _kinds(graph, site))


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one that can compute in integers."""
    return parametrize.type_before_parametrizations(module) in LAYERS


def _kinds(graph: ModelGraph, site: Site) -> list[type[nn.Module]]:
    modules = (graph.module.get_submodule(path) for path, _ in site.owners)
    return [parametrize.type_before_parametrizations(module) for module in modules]


def _why_not(
    graph: ModelGraph, site: Site, direct: frozenset[int], called: frozenset[str] | None
) -> str:
    if site.computed:
        return "its weight is computed in forward"
    if graph.rules.get(site.name, LayerRule()).min_density >= 1:
        return "the layer is left alone"
    parameter = graph.parameter(site)
    if not parameter.is_floating_point():
        return f"its weight is {parameter.dtype}"
    static, kinds = called is not None, _kinds(graph, site)
    if not site.size or (site.size != parameter.numel() and (static or not _in_rows(graph, site))):
        return "its weight is a part of a larger parameter"
    if others := _other_holders(site, kinds, static=static):
        return f"it is a weight of {', '.join(others)}"
    if any(issubclass(kind, TRANSPOSED) for kind in kinds):
        if len({kind in TRANSPOSED for kind in kinds}) > 1:
            return "it is tied across layers whose outputs lie along different dimensions"
        if any(graph.module.get_submodule(path).groups != 1 for path, _ in site.owners):
            return "a transposed convolution in groups has no dimension of output channels"
        if static:
            return "runtimes have no integer kernel for transposed convolutions"
    if id(parameter) in direct:
        return "the graph reads its weight without calling the layer"
    if called is not None and not any(path in called for path, _ in site.owners):
        return "it lies inside an opaque leaf" if site.opaque else "the graph does not call it"
    return ""


def _other_holders(site: Site, kinds: Sequence[type[nn.Module]], *, static: bool) -> list[str]:
    """What keeps a weight float: names of modules that may do anything with it."""
    layers = LAYERS if static else (*LAYERS, *ATTENTION, NonDynamicallyQuantizableLinear)

    def serves(kind: type[nn.Module], attribute: str) -> bool:
        known = _PROJECTIONS if kind in ATTENTION else ("weight",)
        return kind in layers and attribute in known

    holders = {(kind, name) for kind, (_, name) in zip(kinds, site.owners, strict=True)}
    holders -= {(nn.Embedding, "weight")}  # may be tied with a layer
    others = {kind.__name__ for kind, name in holders if not serves(kind, name)}
    return sorted(others) if holders else [nn.Embedding.__name__]


def _in_rows(graph: ModelGraph, site: Site) -> bool:
    """Whether a part of a packed projection consists of whole rows, one for each output."""
    row = graph.parameter(site)[0].numel()
    packed = all(kind in ATTENTION for kind in _kinds(graph, site))
    return packed and site.start % row == site.size % row == 0


def _whole(graph: ModelGraph, reasons: Mapping[str, str]) -> frozenset[str]:
    """Sites whose parameters can be quantized, all rows of them."""
    parts: dict[int, list[Site]] = {}
    for site in graph.compressible:
        if not reasons[site.name]:
            parts.setdefault(id(graph.parameter(site)), []).append(site)
    covered = (p for p in parts.values() if sum(s.size for s in p) == graph.parameter(p[0]).numel())
    return frozenset(site.name for sites in covered for site in sites)


def _read_directly(graph: ModelGraph) -> frozenset[int]:
    """Parameters that the graph holds apart from their layers, which would not be quantized."""
    found: set[int] = set()
    module = graph.graph_module
    for node in module.graph.nodes if module is not None else ():
        if node.op != "get_attr" or module is None:
            continue
        path, _, name = str(node.target).rpartition(".")
        value = module.get_submodule(path)._parameters.get(name)
        if value is not None:
            found.add(id(value))
    return frozenset(found)


def _called(graph: ModelGraph) -> frozenset[str]:
    module = graph.graph_module
    nodes = module.graph.nodes if module is not None else ()
    return frozenset(str(node.target) for node in nodes if node.op == "call_module")


def folding_norms(graph: ModelGraph, module: GraphModule) -> frozenset[Node]:
    """The batch norms that will be folded into the layer before them.

    Args:
        graph: The traced model.
        module: Its graph.
    """
    direct = _read_directly(graph)
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    calls = [str(node.target) for node in nodes]
    sites = {path: site for site in graph.compressible for path, _ in site.owners}

    def folds(node: Node) -> bool:
        norm = module.get_submodule(str(node.target))
        source = node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            return False
        if not isinstance(source, Node) or source.op != "call_module" or len(source.users) > 1:
            return False
        path = str(source.target)
        site, layer = sites.get(path), module.get_submodule(path)
        if site is None or not is_layer(layer):
            return False
        flat = all(use.shape.positions == 1 for use in site.uses)
        alone = calls.count(path) == 1 and len(site.owners) == 1
        return alone and id(graph.parameter(site)) not in direct and (flat or not _linear(layer))

    return frozenset(node for node in nodes if folds(node))


def _linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)
