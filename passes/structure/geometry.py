"""What the widths of channel groups do to the shapes of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import GraphModule, Node

from energy_model.shapes import LayerShape
from passes.graph import ModelGraph, Site, Use
from passes.structure.groups import ChannelGroups
from passes.structure.lines import Lines


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the first two dimensions of a weight are the channels of its layer.

    Attributes:
        outputs_first: Whether dimension 0 counts output channels; else it counts inputs.
        depthwise: Whether every input channel has outputs of its own, all in dimension 0, so that
            the number of groups follows the width. Other grouped layers keep their groups.
    """

    outputs_first: bool
    depthwise: bool = False

    def cut(self, shape: LayerShape, rows: int, columns: int) -> LayerShape:
        """The shape of the layer with `rows` and `columns` left of the first two dimensions."""
        if self.depthwise:
            inputs = rows * shape.in_channels // shape.out_channels
            return replace(shape, in_channels=inputs, out_channels=rows, groups=inputs)
        if self.outputs_first:
            return replace(shape, in_channels=columns * shape.groups, out_channels=rows)
        return replace(shape, in_channels=rows, out_channels=columns * shape.groups)


def arrange(
    shape: LayerShape, sizes: Sequence[int], roles: Mapping[int, str]
) -> Arrangement | None:
    """How the dimensions of a weight are the channels of one use; `None` if that is not plain.

    Args:
        shape: The use.
        sizes: Sizes of the weight's dimensions.
        roles: Roles of the dimensions, as members of channel groups have them: they tell the inputs
            of a square matrix from its outputs.
    """
    if shape.is_linear:
        return _arrange_linear(shape, sizes, roles)
    if len(sizes) != len(shape.kernel) + 2 or tuple(sizes[2:]) != shape.kernel:
        return None
    first, second, groups = sizes[0], sizes[1], shape.groups
    channels = shape.in_channels, shape.out_channels
    if groups > 1 and groups == shape.in_channels and second == 1:
        return Arrangement(True, depthwise=True) if first == shape.out_channels else None
    if shape.transposed:
        return Arrangement(False) if (first, second * groups) == channels else None
    return Arrangement(True) if (second * groups, first) == channels else None


def _arrange_linear(
    shape: LayerShape, sizes: Sequence[int], roles: Mapping[int, str]
) -> Arrangement | None:
    if len(sizes) != 2 or shape.groups != 1:
        return None
    swapped = roles.get(0) == "in" or (roles.get(1) == "out" and roles.get(0) != "out")
    for outputs_first in (not swapped, swapped):
        expected = (shape.out_channels, shape.in_channels)
        if tuple(sizes) == (expected if outputs_first else expected[::-1]):
            return Arrangement(outputs_first)
    return None


def arrangement_of(graph: ModelGraph, lines: Lines, site: Site, use: Use) -> Arrangement | None:
    """How the dimensions of a site's weight are the channels of one of its uses."""
    sides = lines.of_site(site)
    if sides is None or use.shape.weights != site.size:
        return None
    sizes = [side.size for side in sides]
    return arrange(use.shape, sizes, lines.roles(graph.parameter(site)))


def uncounted(graph: ModelGraph, groups: ChannelGroups, lines: Lines) -> dict[str, str]:
    """Free groups whose width changes layers in a way that is not counted, by name, and why."""
    found: dict[str, str] = {}
    for site in graph.compressible:
        parameter = graph.parameter(site)
        cutting = lines.cutting(parameter)
        if cutting and any(arrangement_of(graph, lines, site, u) is None for u in site.uses):
            why = f"how {site.name!r} uses its weight has no rule for costs"
            found |= dict.fromkeys(sorted(cutting), why)
        if not lines.roles(parameter):
            # A layer without channels of its own is applied along another dimension: to every
            # channel, whose number then is one of its positions.
            why = f"the number of positions of {site.name!r} may follow its width"
            found |= dict.fromkeys(_passing(graph, groups, site), why)
    return found


def _passing(graph: ModelGraph, groups: ChannelGroups, site: Site) -> list[str]:
    """Free groups whose channels may pass through a layer, found backwards from it."""
    module = graph.graph_module
    if module is None:
        return []
    producers: dict[str, list[str]] = {}
    for group in groups:
        for member in group.members:
            if member.role == "out":
                for name in (member.path, member.name):
                    producers.setdefault(name, []).append(group.name)
    free = {group.name for group in groups.free}
    found: dict[str, None] = {}
    todo, seen = list(_readers_of(module, graph.parameter(site))), set()
    todo = [source for node in todo for source in node.all_input_nodes]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        made = [n for target in _held_by(node) for n in producers.get(target, ())]
        found |= dict.fromkeys(name for name in made if name in free)
        if not made:
            todo += node.all_input_nodes
    return list(found)


def _held_by(node: Node) -> Iterator[str]:
    """Paths of the layer that a node calls, or of the parameters that it is given."""
    if node.op == "call_module":
        yield str(node.target)
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield str(source.target)


def _readers_of(module: GraphModule, parameter: Tensor) -> Iterator[Node]:
    """Nodes that compute with a parameter, and not with constants alone."""
    constant = {node for node in module.graph.nodes if node.op == "get_attr"}
    holds: set[Node] = set()
    for node in module.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            if getattr(module.get_submodule(owner), name, None) is parameter:
                holds.add(node)
        elif node.op == "call_module":
            if any(p is parameter for p in module.get_submodule(target).parameters()):
                yield node
        elif holds & set(node.all_input_nodes):
            if set(node.all_input_nodes) <= constant:
                constant.add(node)
                holds.add(node)
            else:
                yield node
