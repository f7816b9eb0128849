"""Which layer every node of an ONNX file works for, and a copy in which node names say so.

A runtime fuses, moves and renames nodes, but it makes new names out of old ones. In a copy where
every node and every value is named after its layer, a kernel can be traced back to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from bench.errors import BenchError

# Where a product reads its weight; others read it at 1, or at 0 when that is computed.
_WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
_PRODUCTS = frozenset(
    ("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits")
) | {"Einsum", "LSTM", "GRU", "RNN", *_WEIGHT_AT}
_MARK = re.compile(r"layer(\d{4})_")


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a graph, and the layer that each node is charged to.

    Attributes:
        names: The layers in the order in which they run.
        nodes: For each node of the graph an index into `names`.
        constant: Names of values that no input of the graph changes.
    """

    names: tuple[str, ...]
    nodes: tuple[int, ...]
    constant: frozenset[str]


def read_model(path: Path | str) -> onnx.ModelProto:
    """Read a file.

    Raises:
        BenchError: It is no readable .onnx file.
    """
    try:
        return onnx.load(path)
    except Exception as error:
        raise BenchError(
            f"cannot be read ({type(error).__name__}: {error})",
            model=str(path),
            remedy="Give the path of an existing .onnx file.",
        ) from error


def find_layers(model: onnx.ModelProto, names: Mapping[str, str] | None = None) -> Layers:
    """Assign every node to a layer.

    A layer is a product or convolution with a constant weight. What follows it, up to the next one,
    is charged to it; where branches meet, to the layer that comes last. What comes before all
    layers is charged to the first, what prepares a weight to the layer that reads it.

    Args:
        model: Any file; nodes in topological order, as ONNX demands.
        names: Layer by name of its weight: of the value that the product reads, or of an
            initialiser that it is made of. By default the first initialiser's name without
            `.weight` and what follows. Layers of one name are one layer.

    Raises:
        BenchError: No layer has a weight.
    """
    graph, found = model.graph, dict[str, int]()
    constant = _constant_values(graph)
    sources = {output: node for node in graph.node for output in node.output}
    charged: dict[str, int] = {}  # by value
    nodes: list[int | None] = []
    for node in graph.node:
        if all(name in constant for name in node.output if name):
            nodes.append(None)
            continue
        weight = _weight(node, constant)
        if weight is None:
            layer = max((charged.get(name, 0) for name in node.input), default=0)
        else:
            name = _layer_name(weight, sources, names)
            layer = found.setdefault(name, len(found))
        charged |= dict.fromkeys(node.output, layer)
        nodes.append(layer)
    if not found:
        raise BenchError("no layer has a weight", remedy="Only weighted layers can be told apart.")
    return Layers(tuple(found), _with_constants(graph, nodes), frozenset(constant))


def marked(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """A copy whose nodes and values are named after their layers; it computes the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    renamed: dict[str, str] = {}
    for number, (node, layer) in enumerate(zip(copy.graph.node, layers.nodes, strict=True)):
        node.name = f"layer{layer:04d}_{number}_{node.op_type}"
        for place, output in enumerate(node.output):
            if output:
                renamed[output] = f"{node.name}_{place}"
    _rename(copy.graph, renamed)
    for value in copy.graph.output:
        value.name = renamed.get(value.name, value.name)
    return copy


def layers_of_kernels(optimized: onnx.ModelProto) -> dict[str, int]:
    """Index of the layer of every node of the graph that a runtime made from a marked copy.

    Nodes that the runtime added under names of its own belong to the layer before them, or at the
    beginning to the one behind.
    """
    before, behind = dict[str, int](), dict[str, int]()  # by value
    result: dict[str, int] = {}
    for node in optimized.graph.node:
        marks = [int(digits) for digits in _MARK.findall(node.name)]
        known = marks or [before[name] for name in node.input if name in before]
        if known:
            result[node.name] = max(known)
            before |= dict.fromkeys(node.output, max(known))
    for node in reversed(optimized.graph.node):
        readers = [behind[name] for name in node.output if name in behind]
        layer = result.setdefault(node.name, min(readers, default=0))
        behind |= dict.fromkeys(node.input, layer)
    return result


def _constant_values(graph: onnx.GraphProto) -> set[str]:
    constant = {"", *(item.name for item in graph.initializer)}
    constant |= {item.values.name for item in graph.sparse_initializer}
    for node in graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
    return constant


def _weight(node: onnx.NodeProto, constant: set[str]) -> str | None:
    """The constant that a product multiplies by."""
    if node.op_type not in _PRODUCTS:
        return None
    if node.op_type in _WEIGHT_AT:
        return str(node.input[_WEIGHT_AT[node.op_type]])
    return next((name for name in (*node.input[1:2], node.input[0]) if name in constant), None)


def _layer_name(
    weight: str, sources: Mapping[str, onnx.NodeProto], names: Mapping[str, str] | None
) -> str:
    path = list(_path(weight, sources))
    known = next((names[name] for name in path if name in names), None) if names else None
    if known is not None:
        return known
    stored = next((name for name in path if name not in sources), weight)
    return re.sub(r"\.weight(?![^_.]).*$", "", stored)


def _path(name: str, sources: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """A constant and what it is made of, the first input's first."""
    yield name
    for each in sources[name].input if name in sources else ():
        if each:
            yield from _path(each, sources)


def _with_constants(graph: onnx.GraphProto, nodes: list[int | None]) -> tuple[int, ...]:
    """What prepares a constant belongs to the layer that reads it."""
    readers: dict[str, int] = {}
    result: list[int] = []
    for node, layer in zip(reversed(graph.node), reversed(nodes), strict=True):
        if layer is None:
            layer = next((readers[name] for name in node.output if name in readers), 0)
        readers |= dict.fromkeys(node.input, layer)
        result.append(layer)
    return tuple(reversed(result))


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Values by their new names, also where a branch or a loop body reads them."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        for place, name in enumerate(node.output):
            node.output[place] = renamed.get(name, name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, renamed)
