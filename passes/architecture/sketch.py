"""The sketch of a network: its layers and how they are connected, without a single weight.

A weight layer is one with the norm and the activation that follow it (fused tokens; a form of the
nodes that Cao, Wang, Kitani, ICLR 2019, section 3.1, describe one by one). Sums, reshapes and
dropout are no layers: they are edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from energy_model.errors import ArgumentError
from energy_model.shapes import LayerShape
from passes.architecture.costs import owning_steps, site_steps
from passes.architecture.removals import Chain, chains, users_of
from passes.architecture.steps import SHOWN, SKIP_NODE, SKIP_SCALES, Step, read_steps
from passes.graph import ModelGraph, Site


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        name: The path or node of its first operation in the teacher.
        kind: `"conv"`, `"depthwise"`, `"grouped"`, `"linear"`, `"attention"`; `"norm"`, `"act"`,
            `"pool"`, `"cat"` and `"other"` for what has no weight layer in it.
        kernel: Size of the kernel, the largest of its dimensions; 1 where there is none.
        stride: Likewise.
        dilation: Likewise.
        groups: Groups of the convolution; 1 for all else.
        in_width: Channels or features of what it works on; 0 once it is removed.
        out_width: Of its result.
        params: Parameters.
        macs: Multiply-accumulates for one sample.
        area: Positions of its result, for one sample.
        has_norm: Whether a norm is part of it.
        has_act: Whether an activation is part of it.
        removed: Whether the student lacks it; widths, costs and area are 0 then.
        nodes: Names of its nodes in the graph, in order; none once it is removed.
    """

    name: str
    kind: str
    kernel: int
    stride: int
    dilation: int
    groups: int
    in_width: int
    out_width: int
    params: int
    macs: int
    area: int
    has_norm: bool
    has_act: bool
    removed: bool = False
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sketch:
    """A network, or a student with what it lacks.

    Attributes:
        layers: In order of execution; a student has as many as its teacher.
        edges: Which layers work on whose results, as `(source, target)` places in `layers`, sorted;
            removed layers have none.
        skips: Those of `edges` that were added, sorted.
    """

    layers: tuple[Layer, ...]
    edges: tuple[tuple[int, int], ...]
    skips: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a step's kernel looks like; see `Layer`."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1


def without(layer: Layer) -> Layer:
    """The record of a layer that was removed."""
    return replace(
        layer,
        in_width=0,
        out_width=0,
        params=0,
        macs=0,
        area=0,
        has_norm=False,
        has_act=False,
        removed=True,
        nodes=(),
    )


def sketch_of(graph: ModelGraph, like: Sketch | None = None) -> Sketch:
    """The sketch of a traced model.

    Args:
        graph: The model; one sample is run.
        like: The sketch of its teacher, if the model is a student that `build` made: layers are
            fused as there, and removed ones are put back.

    Raises:
        PreconditionError: The model as a whole could not be traced.
        ArgumentError: The model has an operation that its teacher lacks.
    """
    steps = read_steps(graph)
    members = _own(steps) if like is None else _as_in(like, steps)
    layer_of = [-1] * len(steps)
    for number, (_, chain) in enumerate(members):
        for index in chain:
            layer_of[index] = number
    costs = _costs(graph, steps, with_constants(steps, layer_of), len(members))
    sites = sites_by_step(graph, steps)
    layers = []
    for number, (name, chain) in enumerate(members):
        known = like.layers[number] if like is not None else None
        if not chain:
            assert known is not None
            layers.append(without(known))
            continue
        layer = described(steps, chain, name, geometry(steps, chain[0], sites), costs[number])
        if known is not None and layer.nodes[0] == known.nodes[0]:
            # A grouped convolution that kept one channel in each group is no other kind of layer.
            layer = replace(layer, kind=known.kind)
        layers.append(layer)
    edges, skips = _edges(steps, layer_of, len(members))
    return Sketch(tuple(layers), edges, skips)


def described(
    steps: Sequence[Step],
    chain: Sequence[int],
    name: str,
    found: Geometry,
    costs: Sequence[int],
    widths: tuple[int, int] | None = None,
) -> Layer:
    """The record of a layer that is there.

    Args:
        steps: All steps.
        chain: Places of those that are left of the layer.
        name: Its name.
        found: Geometry of the first of them.
        costs: Parameters and multiply-accumulates.
        widths: Channels of input and output, where they are not those of the steps.
    """
    first, last = steps[chain[0]], steps[chain[-1]]
    kinds = {steps[index].kind for index in chain}
    inner, outer = widths or (width(steps[first.data]), width(last))
    return Layer(
        name,
        first.kind,
        found.kernel,
        found.stride,
        found.dilation,
        inner if first.kind == "depthwise" else found.groups,
        inner,
        outer,
        costs[0],
        costs[1],
        last.area,
        "norm" in kinds,
        "act" in kinds,
        False,
        tuple(steps[index].node.name for index in chain),
    )


def width(step: Step) -> int:
    """Channels of a step's result."""
    return step.shape[step.channel] if step.shape and step.channel >= 0 else 0


def geometry(steps: Sequence[Step], index: int, sites: Mapping[int, Site]) -> Geometry:
    """Kernel, stride, dilation and groups of a step.

    Args:
        steps: All steps.
        index: Place of the step.
        sites: A weight of every step that has one.
    """
    step = steps[index]
    site = sites.get(index)
    if step.kind in ("conv", "depthwise", "grouped", "linear") and site is not None:
        shape: LayerShape = site.uses[0].shape
        sizes = (max(shape.kernel), max(shape.stride), max(shape.dilation))
        return Geometry(*sizes, shape.groups)
    if step.kind != "pool" or step.data < 0:
        return Geometry()
    # All poolings alike: by how much they reduce an image along a side.
    dims = len(steps[step.data].shape or ()) - 2
    ratio = steps[step.data].area / max(1, step.area)
    side = max(1, round(ratio ** (1 / max(1, dims))))
    return Geometry(side, side)


def with_constants(steps: Sequence[Step], layer_of: Sequence[int]) -> list[int]:
    """Layers of all steps, a constant that a layer reads being a part of it."""
    found = list(layer_of)
    users = users_of(steps)
    for step in reversed(steps):
        if step.kind == "constant" and users[step.index]:
            found[step.index] = found[users[step.index][0]]
    return found


def sites_by_step(graph: ModelGraph, steps: Sequence[Step]) -> dict[int, Site]:
    """The first site of every step that computes with a weight."""
    users = users_of(steps)
    found: dict[int, Site] = {}
    for index, site in site_steps(graph, steps):
        while steps[index].kind == "constant" and users[index]:
            index = users[index][0]
        found.setdefault(index, site)
    return found


def _own(steps: Sequence[Step]) -> list[tuple[str, tuple[int, ...]]]:
    found: tuple[Chain, ...] = chains(steps)
    return [(steps[chain.steps[0]].label, chain.steps) for chain in found]


def _as_in(like: Sketch, steps: Sequence[Step]) -> list[tuple[str, tuple[int, ...]]]:
    places = {step.node.name: step.index for step in steps if step.kind in SHOWN}
    found = []
    for layer in like.layers:
        left = tuple(places.pop(name) for name in layer.nodes if name in places)
        found.append((layer.name, left))
    if places:
        raise ArgumentError(
            f"the operation {next(iter(places))!r} is none of the teacher's",
            where="sketch",
            remedy="Pass the sketch of the teacher that the student was built from.",
        )
    return found


def _costs(
    graph: ModelGraph, steps: Sequence[Step], layer_of: Sequence[int], count: int
) -> list[list[int]]:
    """Parameters and multiply-accumulates of every layer."""
    found = [[0, 0] for _ in range(count)]
    owners = owning_steps(graph, steps)
    assert graph.graph_module is not None
    for tensor in graph.graph_module.parameters():
        layer = layer_of[owners[id(tensor)]]
        if layer >= 0:
            found[layer][0] += tensor.numel()
    for index, site in site_steps(graph, steps):
        if layer_of[index] >= 0:
            found[layer_of[index]][1] += site.macs()
    return found


Pairs = tuple[tuple[int, int], ...]


def _edges(steps: Sequence[Step], layer_of: Sequence[int], count: int) -> tuple[Pairs, Pairs]:
    plain, added = [0] * len(steps), [0] * len(steps)
    direct, skipped = [0] * count, [0] * count
    for step in steps:
        index, layer = step.index, layer_of[step.index]
        first = 0
        for source in step.inputs:
            if _is_skip(steps, step, source):
                added[index] |= plain[source]
            else:
                first |= plain[source]
                added[index] |= added[source]
        plain[index] = first
        if layer >= 0:
            direct[layer] |= first
            skipped[layer] |= added[index]
            plain[index], added[index] = 1 << layer, 0
    skips = pairs_of(skipped)
    return tuple(sorted({*pairs_of(direct), *skips})), skips


def pairs_of(sources: Sequence[int]) -> Pairs:
    """Edges, sorted, from the sets of bits of every layer's sources; none from itself."""
    found = []
    for target, bits in enumerate(sources):
        rest = bits & ~(1 << target)
        while rest:
            lowest = rest & -rest
            found.append((lowest.bit_length() - 1, target))
            rest ^= lowest
    return tuple(sorted(found))


def _is_skip(steps: Sequence[Step], step: Step, source: int) -> bool:
    """Whether a sum has an operand that was added to it."""
    if step.kind != "add" or step.inputs[-1] != source or len(step.inputs) < 2:
        return False
    constants = (steps[i].node for i in steps[source].inputs if steps[i].kind == "constant")
    scaled = steps[source].kind == "pass" and any(
        str(node.target).startswith(f"{SKIP_SCALES}.") for node in constants
    )
    return scaled or step.node.name.startswith(SKIP_NODE)
