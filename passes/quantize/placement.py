"""Where quantizers of activations go, so that a runtime can compute in integers.

A layer computes in integers when its input and its output are quantized; what it is fused with (a
batch norm, a ReLU) comes before the quantizer of its output. Additions, concatenations and averages
do so when everything that they read lies on a grid. What only moves values keeps them on their
grid: runtimes want the same quantizer before and after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.fx import GraphModule, Node

from energy_model.errors import PreconditionError
from passes.graph import Decision, ModelGraph
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.eligible import Eligible, folding_norms, is_layer, is_linear
from passes.quantize.operations import Kind, Operation, argument, operation
from passes.structure.record import Shape, record
from passes.tracing.symbolic import owner

CONTAINER = "activation_quantizers"
_RESERVED = frozenset(dir(nn.Module()))
_INTEGER = (Kind.ADD, Kind.CONCAT, Kind.POOL)


@dataclass(frozen=True, slots=True)
class Place:
    """One call of a quantizer.

    Attributes:
        name: Name of the quantizer; places that share one have the same.
        node: Name of the node whose value is quantized.
        readers: Names of the nodes that read the quantized value instead.
        of: What the value is, for people: a layer's path, or what is computed where.
        shared: The quantizer belongs to an earlier place, and changes no value here.
    """

    name: str
    node: str
    readers: tuple[str, ...]
    of: str
    shared: bool = False


@dataclass(slots=True)
class _Values:
    """What is known of the values of a graph.

    Attributes:
        operations: What every node does.
        layers: The nodes that call quantized layers.
        starts: Of the last node that is fused into a layer or an addition, that layer or addition.
        origin: The node whose quantizer serves a value; absent for values on no grid.
        weak: Inputs of the model and what is moved of them: on a grid only where a layer reads it.
        wanted: Whether something that computes in integers reads a value, perhaps moved.
        leads: Whether a layer with weights, something else that computes in integers, or an output
            that is to be quantized, comes anywhere after a value.
    """

    operations: dict[Node, Operation]
    layers: frozenset[Node]
    starts: dict[Node, Node] = field(default_factory=dict)
    origin: dict[Node, Node] = field(default_factory=dict)
    weak: set[Node] = field(default_factory=set)
    wanted: dict[Node, bool] = field(default_factory=dict)
    leads: dict[Node, bool] = field(default_factory=dict)

    def kind(self, node: Node) -> Kind:
        return self.operations[node].kind

    def computes(self, node: Node) -> bool:
        """Whether a node computes in integers."""
        return node in self.layers or (self.kind(node) in _INTEGER and self._joins(node))

    def _joins(self, node: Node) -> bool:
        sources = self.operations[node].sources
        return all(s in self.origin and s not in self.weak for s in sources)


def places(
    graph: ModelGraph, layers: Collection[str], *, outputs: bool = False
) -> tuple[Place, ...]:
    """Where quantizers go.

    Args:
        graph: The traced model; read only.
        layers: Paths of the layers that are to compute in integers; those of embeddings, which
            may share a weight with one, do not count.
        outputs: Also quantize what the model returns.

    Returns:
        Places in the order of the graph; the first of those that share a quantizer comes first.

    Raises:
        PreconditionError: The model could not be traced as a whole.
    """
    module = module_of(graph)
    values = _analysed(graph, module, frozenset(layers), outputs)
    found: list[Place] = []
    for node in module.graph.nodes:
        place = _place(module, values, node, outputs)
        if place is not None:
            found.append(place)
    return tuple(found)


def placed(
    graph: ModelGraph, chosen: Eligible, *, outputs: bool = False
) -> tuple[Eligible, tuple[Place, ...]]:
    """Where quantizers go, and the layers that then can compute in integers.

    A convolution whose output stays float computes in floats: no runtime has a kernel for it.

    Args:
        graph: The traced model; read only.
        chosen: The weights to quantize.
        outputs: Also quantize what the model returns.

    Raises:
        PreconditionError: The model could not be traced as a whole.
    """
    found = places(graph, chosen.layers, outputs=outputs)
    written = Counter(place.of for place in found if not place.shared)
    calls = Counter(str(n.target) for n in module_of(graph).graph.nodes if n.op == "call_module")
    ends = [
        site.name
        for site in chosen.sites
        if not is_linear(graph, site) and any(written[p] < calls[p] for p, _ in site.owners)
    ]
    if not ends:
        return chosen, found
    rest = chosen.without(ends, "the model returns what it computes; outputs=True rounds that too")
    return rest, places(graph, rest.layers, outputs=outputs)


def module_of(graph: ModelGraph) -> GraphModule:
    """The traced graph.

    Raises:
        PreconditionError: There is none.
    """
    if graph.graph_module is None:
        raise PreconditionError(
            "the model cannot be traced as a whole, so that no activation can be quantized",
            where=type(graph.module).__name__,
            remedy="Quantize weights alone: activations=None. The decisions say what could not be "
            "traced.",
        )
    return graph.graph_module


def _analysed(
    graph: ModelGraph, module: GraphModule, paths: frozenset[str], outputs: bool
) -> _Values:
    nodes = list(module.graph.nodes)
    called = (n for n in nodes if n.op == "call_module" and str(n.target) in paths)
    called = (n for n in called if is_layer(module.get_submodule(str(n.target))))
    values = _Values({n: operation(module, n) for n in nodes}, frozenset(called))
    tensors = {n for n, v in record(graph, module).items() if isinstance(v, Shape)}
    norms = folding_norms(graph, module)
    floating = _floating(graph, nodes)
    inner: set[Node] = set()
    for node in nodes:
        if node in values.layers or values.kind(node) is Kind.ADD:
            end = _end(values, node, norms)
            inner |= _between(node, end)
            values.starts[end] = node
    for node in nodes:
        _find_origin(values, node, inner, tensors, floating)
    for node in reversed(nodes):
        readers = list(node.users)
        returned = outputs and any(u.op == "output" for u in readers)
        values.leads[node] = returned or any(
            values.computes(u) or values.leads[u] or _has_weights(module, u) for u in readers
        )
        values.wanted[node] = any(_reads_integers(values, node, u) for u in readers)
    return values


def _has_weights(module: GraphModule, node: Node) -> bool:
    if node.op != "call_module":
        return False
    return any(p.dim() > 1 for p in module.get_submodule(str(node.target)).parameters())


def _floating(graph: ModelGraph, nodes: list[Node]) -> frozenset[Node]:
    """Inputs of the model that are batches of floating values."""
    names = [n for n in nodes if n.op == "placeholder"]
    given: dict[str, object] = dict(graph.call.kwargs)
    given |= {str(n.target): v for n, v in zip(names, graph.call.args, strict=False)}
    return frozenset(
        n
        for n in names
        if isinstance(v := given.get(str(n.target)), torch.Tensor)
        and v.is_floating_point()
        and graph.call.batched(v)
    )


def _end(values: _Values, node: Node, norms: frozenset[Node]) -> Node:
    """The last node that a runtime fuses into a layer or an addition."""
    end = node
    user = _only_user(node)
    if node in values.layers and user is not None and user in norms:
        end, user = user, _only_user(user)
    while user is not None and values.kind(user) is Kind.NOTHING:
        user = _only_user(user)
    return user if user is not None and values.kind(user) is Kind.RELU else end


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _between(node: Node, end: Node) -> set[Node]:
    """A node and what follows it, up to but without the end."""
    found = set()
    while node is not end:
        found.add(node)
        node = next(iter(node.users))
    return found


def _find_origin(
    values: _Values, node: Node, inner: set[Node], tensors: set[Node], floating: frozenset[Node]
) -> None:
    """Whose quantizer serves the value of a node, given that of all before it."""
    if node in floating:
        values.origin[node] = node
        values.weak.add(node)
    if node in inner:
        return
    kind, sources = values.kind(node), values.operations[node].sources
    if node in values.starts and values.computes(values.starts[node]):
        values.origin[node] = node
    elif kind in (Kind.MOVE, Kind.NOTHING, Kind.SPLIT) and sources[0] in values.origin:
        if kind is Kind.SPLIT or node in tensors:
            values.origin[node] = values.origin[sources[0]]
            if sources[0] in values.weak:
                values.weak.add(node)
    elif kind in (Kind.ACTIVATION, Kind.RELU, *_INTEGER) and values._joins(node) and sources:
        values.origin[node] = node


def _reads_integers(values: _Values, node: Node, user: Node) -> bool:
    """Whether a user, or what it hands the value on to, computes in integers with it."""
    if user in values.layers:
        return argument(user, 0, "input") is node
    if values.computes(user):
        return True
    moved = values.kind(user) in (Kind.MOVE, Kind.NOTHING, Kind.SPLIT)
    passes = moved and values.operations[user].sources == (node,)
    # A value on no grid is quantized where it is read, after it was moved.
    direct = node in values.origin or values.kind(user) is Kind.NOTHING
    return passes and direct and values.wanted[user]


def _place(module: GraphModule, values: _Values, node: Node, outputs: bool) -> Place | None:
    origin = values.origin.get(node)
    readers = [u for u in node.users if outputs or u.op != "output"]
    if values.kind(node) in (Kind.NOTHING, Kind.SPLIT):
        return None
    if origin is None or node in values.weak:
        readers = [u for u in node.users if _reads_integers(values, node, u)]
    if origin is None:
        return _made(module, values, node, readers, node) if values.wanted[node] else None
    returned = outputs and _is_returned(values, node)
    if origin is not node:
        if not values.wanted[node] and not returned:
            return None
        return _made(module, values, node, readers, origin)
    lazy = node in values.weak or values.kind(node) in (Kind.ACTIVATION, Kind.RELU)
    lazy = lazy and node not in values.starts
    needed = values.wanted[node] or returned or (values.leads[node] and not lazy)
    return _made(module, values, node, readers, node) if needed else None


def _is_returned(values: _Values, node: Node) -> bool:
    """Whether the model returns a value, perhaps moved."""
    moves = (Kind.MOVE, Kind.NOTHING, Kind.SPLIT)
    return node not in values.weak and any(
        u.op == "output" or (values.kind(u) in moves and _is_returned(values, u))
        for u in node.users
    )


def _made(
    module: GraphModule, values: _Values, node: Node, readers: list[Node], origin: Node
) -> Place | None:
    if not readers:
        return None
    names = tuple(reader.name for reader in readers)
    of = _told(values, origin)
    name = f"{origin.name}_value" if origin.name in _RESERVED else origin.name
    return Place(name, node.name, names, of, shared=origin is not node)


def _told(values: _Values, node: Node) -> str:
    start = values.starts.get(node, node)
    kind = values.kind(start)
    named = start.op in ("placeholder", "call_module") or kind is Kind.OTHER
    return describe(start) if named else f"{kind.name.lower()} in {owner(start) or 'the model'}"


def describe(node: Node) -> str:
    """What a node gives, for people: a layer's path, or a function and where it is called."""
    if node.op == "placeholder":
        return f"input {node.target!r} of the model"
    if node.op == "call_module":
        return str(node.target)
    return f"{node.name} in {owner(node) or 'the model'}"


def insert_quantizers(
    graph: ModelGraph, found: Collection[Place], bits: int, *, signed: bool = False
) -> list[Decision]:
    """Put quantizers without a range into the graph, which is the model from now on.

    Args:
        graph: The graph; its `graph_module` is changed in place.
        found: What `places` returned.
        bits: Their width, 2 to 8.
        signed: Whether their codes are signed.

    Returns:
        What was done.

    Raises:
        PreconditionError: There is no graph, or it has quantizers already.
    """
    module = module_of(graph)
    if hasattr(module, CONTAINER):
        raise PreconditionError(
            "activations are quantized already",
            where=CONTAINER,
            remedy="Quantize the original model, or weights alone: activations=None.",
        )
    container = nn.Module().train(module.training)
    module.add_submodule(CONTAINER, container)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    nodes = {node.name: node for node in module.graph.nodes}
    for place in found:
        if place.name not in container._modules:
            quantizer = ActivationQuantizer(bits, signed=signed).train(module.training)
            container.add_module(place.name, quantizer.to(device))
        _insert(module, nodes, place)
    module.graph.lint()
    module.recompile()
    graph.rewritten = True
    return [_decision(found, bits, signed)]


def _insert(module: GraphModule, nodes: dict[str, Node], place: Place) -> None:
    source = nodes[place.node]
    after = source
    while after.next.op == "placeholder":
        after = after.next  # all inputs come first
    with module.graph.inserting_after(after):
        node = module.graph.call_module(f"{CONTAINER}.{place.name}", (source,))
    for reader in place.readers:
        nodes[reader].replace_input_with(source, node)


def _decision(found: Collection[Place], bits: int, signed: bool) -> Decision:
    own = sum(not place.shared for place in found)
    what = f"activations at {bits} bits, {'signed' if signed else 'unsigned'}"
    why = f"{own} values are quantized, {len(found) - own} keep the grid of what they are moved of"
    return Decision("", what, why, "float", f"{'S' if signed else 'U'}{bits}")
