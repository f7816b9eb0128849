"""Input masks: nodes that multiply the input of a convolution with a constant.

Yang, Zhu, Liu, ICLR 2019, section on layer input masking. A mask has the shape of one sample's
input and is the same for all samples, so what it zeroes is never fetched. It fixes the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from energy_model.errors import PreconditionError
from energy_model.shapes import LayerShape
from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.inputs import one_sample
from passes.isolation import evaluating, untouched
from passes.tracing.symbolic import placeholder_values
from passes.tracing.trace import observed_sites

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)
_CONTAINER = "input_masks"


@dataclass(frozen=True, slots=True)
class InputMask:
    """One mask in the graph.

    Attributes:
        path: Of its buffer in the graph module.
        site: The layer whose input it masks.
    """

    path: str
    site: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a mask can go.

    Attributes:
        node: The convolution.
        site: Its weight.
        size: Shape of one sample's input.
    """

    node: Node
    site: Site
    size: tuple[int, ...]


def maskable_inputs(graph: ModelGraph) -> tuple[tuple[Site, tuple[int, ...]], ...]:
    """What `attach_input_masks` would mask: layers, and the shape of one sample's input.

    Raises:
        PreconditionError: As `attach_input_masks`.
    """
    places, _ = _places(graph)
    return tuple((place.site, place.size) for place in places)


def attach_input_masks(graph: ModelGraph) -> tuple[InputMask, ...]:
    """Put a mask of ones before every convolution that the graph shows.

    Layers that a rule leaves alone get none, nor do layers inside opaque leaves and convolutions
    whose input is padded by a node of its own; the decisions say so.

    Args:
        graph: The graph; its `graph_module` is changed, and is the model from now on.

    Raises:
        PreconditionError: There is no graph, or no convolution in it.
    """
    places, refused = _places(graph)
    module = _module_of(graph)
    container = _fresh_container(module)
    masks = tuple(_insert(graph, module, place, container) for place in places)
    graph.decisions += refused
    module.graph.lint()
    module.recompile()
    graph.rewritten = True
    return masks


def _module_of(graph: ModelGraph) -> GraphModule:
    if graph.graph_module is None:
        raise PreconditionError(
            "the model cannot be traced as a whole, so no input can be masked",
            where=type(graph.module).__name__,
            remedy="Leave input_mask out; the decisions say what could not be traced.",
        )
    return graph.graph_module


def _places(graph: ModelGraph) -> tuple[list[_Place], list[Decision]]:
    """Where masks can go, and why not everywhere."""
    module = _module_of(graph)
    shapes, batch = _input_shapes(graph, module)
    places, refused, seen = [], [], set()
    for node in module.graph.nodes:
        site = _masked_site(graph, module, node)
        if site is None:
            continue
        seen.add(site.name)
        why = _why_not(graph, site, node, shapes, batch)
        if why:
            refused.append(Decision(site.name, "input not masked", why))
        else:
            places.append(_Place(node, site, shapes[_source(node)][1:]))
    for site in graph.sites:
        if site.name not in seen and not all(use.shape.is_linear for use in site.uses):
            why = "it lies inside an opaque leaf" if site.opaque else "no plain convolution uses it"
            refused.append(Decision(site.name, "input not masked", why))
    if not places:
        raise PreconditionError(
            "no convolution is there whose input could be masked",
            where=type(graph.module).__name__,
            remedy="Leave input_mask out: it serves convolutions alone."
            + "".join(f" Layer {d.layer!r}: {d.why}." for d in refused[:3]),
        )
    return places, refused


def mask_of(graph: ModelGraph, mask: InputMask) -> Tensor:
    """The buffer of a mask, of one sample's input shape."""
    assert graph.graph_module is not None
    value: Tensor = graph.graph_module.get_buffer(mask.path)
    return value


def update_supports(graph: ModelGraph) -> None:
    """Read the masks' supports into the uses of the sites, by running one sample."""
    found = observed_sites(graph)
    graph.sites = tuple(_with_uses(site, found) for site in graph.sites)


def _with_uses(site: Site, found: tuple[Site, ...]) -> Site:
    for other in found:
        same = set(other.owners) & set(site.owners) or (site.computed and other.name == site.name)
        if same and (other.start, other.size) == (site.start, site.size):
            return replace(site, uses=other.uses, note=other.note)
    return site


class _Shapes(Interpreter):
    """Notes the shape of what every node returns."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def _input_shapes(
    graph: ModelGraph, module: GraphModule
) -> tuple[dict[Node, tuple[int, ...]], int]:
    """What every node returns, and for a batch of how many: one sample, unless that fails."""
    with untouched(module), evaluating(module):
        for call in (one_sample(graph.call), graph.call):
            runner = _Shapes(module)
            try:
                runner.run(*placeholder_values(module, call.fresh()))
            except Exception:
                if call is graph.call:
                    raise
                continue  # a model that needs its whole batch
            break
    return runner.shapes, call.batch_size or 1


def _fresh_container(module: GraphModule) -> str:
    name, number = _CONTAINER, 1
    while hasattr(module, name):
        number += 1
        name = f"{_CONTAINER}_{number}"
    return name


def _masked_site(graph: ModelGraph, module: GraphModule, node: Node) -> Site | None:
    """The site of a convolution node; `None` for any other node."""
    if node.op == "call_module":
        if not isinstance(module.get_submodule(str(node.target)), _LAYERS):
            return None
        owner = (str(node.target), "weight")
    elif node.op == "call_function" and node.target in _FUNCTIONS:
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if not isinstance(weight, Node) or weight.op != "get_attr":
            return None
        path, _, attribute = str(weight.target).rpartition(".")
        owner = (path, attribute)
    else:
        return None
    return next((site for site in graph.sites if owner in site.owners), None)


def _source(node: Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _why_not(
    graph: ModelGraph, site: Site, node: Node, shapes: dict[Node, tuple[int, ...]], batch: int
) -> str:
    source = _source(node)
    if graph.rules.get(site.name, LayerRule()).min_density >= 1:
        return "the layer is left alone"
    if not isinstance(source, Node) or source not in shapes:
        return "its input is not a tensor of the graph"
    if source.op == "call_function" and source.target is F.pad:
        return "its input is padded by a node of its own"
    if source.op == "call_module" and "Pad" in type(_module(graph, source)).__name__:
        return "its input is padded by a node of its own"
    first, *size = shapes[source]
    if first != batch or len(size) != len(site.uses[0].shape.kernel) + 1:
        return f"the first dimension of its input {shapes[source]} is not the batch"
    if not use_shapes(site, tuple(size)):
        return "it pads its input with something else than zeros"
    return ""


def use_shapes(site: Site, size: tuple[int, ...]) -> list[LayerShape]:
    """The geometries of a site's uses that take inputs of shape `size`, of one sample."""
    shapes = (use.shape for use in site.uses)
    return [shape for shape in shapes if (shape.in_channels, *shape.input_size) == size]


def _module(graph: ModelGraph, node: Node) -> nn.Module:
    assert graph.graph_module is not None
    return graph.graph_module.get_submodule(str(node.target))


def _insert(graph: ModelGraph, module: GraphModule, place: _Place, container: str) -> InputMask:
    if not hasattr(module, container):
        module.add_submodule(container, nn.Module())
    holder = module.get_submodule(container)
    node, site = place.node, place.site
    name, number = site.name.replace(".", "_") or "layer", 1
    while hasattr(holder, name):  # a layer that is called twice has a mask for each call
        number += 1
        name = f"{site.name.replace('.', '_')}_{number}"
    weight = graph.parameter(site)
    holder.register_buffer(name, torch.ones(place.size, dtype=weight.dtype, device=weight.device))
    path = f"{container}.{name}"
    source = _source(node)
    with module.graph.inserting_before(node):
        mask = module.graph.get_attr(path)
        masked = module.graph.call_function(torch.mul, (source, mask))
    node.replace_input_with(source, masked)
    return InputMask(path, site.name)
