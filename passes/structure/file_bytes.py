"""Which elements of a model its exported file holds, and how many stay in a keep-state.

The file is the dense one: batch norms are folded into the layer before them where the export does
so. Only what is certainly stored is counted, so that the bytes that go are never overestimated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from passes.graph import ModelGraph
from passes.rewrite.freeze import freeze
from passes.structure.cost_terms import (
    SHARED_SIZE,
    Shared,
    Term,
    elements,
    lines_of,
    one_hot,
)
from passes.structure.lines import Lines, Side, held


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """A tensor in the file: its value there, and the dimensions of what it was made from."""

    path: str
    value: Tensor
    sides: tuple[Side, ...]


def file_terms(graph: ModelGraph, lines: Lines, keys: Sequence[str]) -> list[Term]:
    """Bytes of the stored tensors that lose channels, as terms of the cost `"size"`.

    Args:
        graph: The traced model; a copy of it is frozen as for export.
        lines: Its lines.
        keys: Keys of all costs, in order.
    """
    frozen = freeze(graph)
    module = frozen.module
    if not isinstance(module, GraphModule):
        return []
    classes: dict[tuple[object, ...], list[_Stored]] = {}
    for stored in _stored(graph, module, _folded_into(graph, frozen.folded), lines):
        classes.setdefault(_content(stored.value), []).append(stored)
    terms: list[Term] = []
    for content, equal in classes.items():
        if not any(lines_of(stored.sides) for stored in equal):
            continue
        weights = one_hot(keys, {"size": equal[0].value.element_size()})
        if len(equal) > 1:
            sides = tuple(stored.sides for stored in equal)
            terms.append(Shared(equal[0].path, sides, content[0] == "constant", weights))
        else:
            terms.append(elements(equal[0].path, equal[0].sides, weights))
    return terms


def _content(value: Tensor) -> tuple[object, ...]:
    """What two tensors have in common that are equal, or stay equal once they have one shape."""
    flat = value.detach().reshape(-1)
    if flat.numel() > 1 and bool((flat == flat[0]).all()):
        return "constant", value.dtype, value.dim(), repr(flat[0].item())
    if flat.numel() > SHARED_SIZE:
        return "single", id(value)
    data = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return "equal", value.dtype, tuple(value.shape), hashlib.sha256(data).digest()


def _folded_into(graph: ModelGraph, folded: Sequence[str]) -> dict[str, str]:
    """The layer that a batch norm is folded into, and the norm."""
    if graph.graph_module is None:
        return {}
    calls = (node for node in graph.graph_module.graph.nodes if node.op == "call_module")
    return {str(n.args[0].target): str(n.target) for n in calls if str(n.target) in folded}


def _stored(
    graph: ModelGraph, module: GraphModule, folded: dict[str, str], lines: Lines
) -> Iterator[_Stored]:
    seen: set[int] = set()
    computed = _computed(module)
    for node in module.graph.nodes:
        for path, name, value in _tensors(module, node, computed):
            original = held(graph, path, name)
            if original is None and path in folded:
                # The norm has given the layer a bias: it is cut as the norm is.
                original = held(graph, folded[path], "running_mean")
            if original is None or id(original) in seen or original.dim() != value.dim():
                continue
            seen.add(id(original))
            yield _Stored(path, value, lines.sides(original))


def _computed(module: GraphModule) -> set[Node]:
    """Nodes that depend on the input; what constants alone give may be computed at export."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or found & set(node.all_input_nodes):
            found.add(node)
    return found


def _tensors(
    module: GraphModule, node: Node, computed: set[Node]
) -> Iterator[tuple[str, str, Tensor]]:
    """Path, name and value of what a node certainly brings into the file."""
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        value = getattr(module.get_submodule(path), name, None)
        if isinstance(value, Tensor) and _as_it_is(node, computed):
            yield path, name, value
    elif node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if isinstance(layer, _BatchNorm) and _is_product(module, node.args[0]):
            return  # the exporter may fold it
        for inner, part in layer.named_modules(prefix=str(node.target)):
            for name, value in (*part._parameters.items(), *part._buffers.items()):
                if value is None or not value.is_floating_point():
                    continue
                dropped = name == "bias" and isinstance(part, _ConvNd | nn.Linear)
                if not (dropped and not bool(value.any())):  # a bias of zeros is left out
                    yield inner, name, value


def _is_product(module: GraphModule, source: object) -> bool:
    """Whether a node is a layer that a norm could be folded into."""
    if not isinstance(source, Node) or source.op == "placeholder":
        return False
    if source.op != "call_module":
        return source.op == "call_function" and bool({"conv", "linear"} & _words(source))
    return isinstance(module.get_submodule(str(source.target)), _ConvNd | nn.Linear)


def _words(node: Node) -> set[str]:
    name = getattr(node.target, "__name__", "")
    return {word for word in ("conv", "linear", "batch_norm") if word in name}


def _as_it_is(node: Node, computed: set[Node]) -> bool:
    """Whether a constant is stored as it is, wherever it is read."""
    return all(user in computed and "batch_norm" not in _words(user) for user in node.users)
