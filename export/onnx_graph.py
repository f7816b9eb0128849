"""An ONNX graph while it is rewritten: nodes and constants by name, sorted again at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from energy_model.errors import PostconditionError

Array = NDArray[Any]
Node = onnx.NodeProto


class Rewriter:
    """The nodes and initialisers of a model, to be changed freely and then written back.

    Attributes:
        model: The model; it changes in `finish` alone.
        nodes: Its nodes, in no particular order once the rewriting has begun.
        stored: Its initialisers by name.
        outputs: Names of its outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.nodes: list[Node] = list(graph.node)
        self.stored = {item.name: item for item in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        taken = {name for node in self.nodes for name in (*node.input, *node.output)}
        self._taken = taken | set(self.stored) | self.outputs | {v.name for v in graph.input}

    def producers(self) -> dict[str, Node]:
        """The node behind every computed value."""
        return {name: node for node in self.nodes for name in node.output if name}

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read a value, once for every time that they do."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.input:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> Array | None:
        """The values of an initialiser; `None` for anything else."""
        tensor = self.stored.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def store(self, name: str, values: Array | onnx.TensorProto) -> str:
        """Add or replace an initialiser; its name."""
        if not isinstance(values, onnx.TensorProto):
            values = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.stored[name] = values
        self._taken.add(name)
        return name

    def fresh(self, name: str) -> str:
        """That name, or one like it that is not in use yet."""
        free, count = name, 1
        while free in self._taken:
            free, count = f"{name}_{count}", count + 1
        self._taken.add(free)
        return free

    def add(
        self, kind: str, inputs: Sequence[str], output: str, **attributes: Any
    ) -> onnx.NodeProto:
        """Add a node with one output."""
        node = helper.make_node(kind, list(inputs), [output], **attributes)
        self.nodes.append(node)
        return node

    def remove(self, node: Node) -> None:
        """Take out a node, which is told by identity."""
        self.nodes = [other for other in self.nodes if other is not node]

    def redirect(self, old: str, new: str) -> None:
        """Let everything that reads one value read another."""
        for node in self.nodes:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def prune(self) -> None:
        """Sort the nodes, and drop those that no output depends on.

        Raises:
            PostconditionError: The nodes form a cycle, or read what nothing computes.
        """
        self.nodes = self._sorted()

    def finish(self) -> None:
        """Write the graph back: sorted, and without what no output depends on.

        Raises:
            PostconditionError: As `prune` does.
        """
        graph = self.model.graph
        self.prune()
        nodes = self.nodes
        read = {name for node in nodes for name in read_by(node)} | self.outputs
        kept = [item for name, item in self.stored.items() if name in read]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)

    def _sorted(self) -> list[Node]:
        """Needed nodes in topological order, as near to the present order as that allows."""
        producers = self.producers()
        inputs = {value.name for value in self.model.graph.input} | set(self.stored)
        done, order, entered = set(inputs), [], set()
        stack = sorted(self.outputs - inputs, reverse=True)
        while stack:
            name = stack[-1]
            if name in done:
                stack.pop()
                continue
            node = producers.get(name)
            waiting = [] if node is None else [n for n in read_by(node) if n not in done]
            if node is None or (name in entered and waiting):
                raise PostconditionError(
                    f"the rewritten graph has no order in which {name!r} can be computed",
                    remedy="This is an error of the exporter; please report it with the model.",
                )
            if waiting:
                entered.add(name)
                stack.extend(reversed(waiting))
                continue
            order.append(node)
            done.update(output for output in node.output if output)
            stack.pop()
        return order


def read_by(node: Node) -> list[str]:
    """Names that a node reads, those inside its branches included."""
    names = [name for name in node.input if name]
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            own = {name for inner in item.g.node for name in inner.output}
            own |= {tensor.name for tensor in item.g.initializer}
            inner = [n for node in item.g.node for n in read_by(node)]
            inner += [value.name for value in item.g.output]
            names += [name for name in inner if name not in own]
    return names


def attributes(node: Node) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


Shapes = dict[str, list[int | None]]
_SMALL = 1024


def value_shapes(model: onnx.ModelProto) -> Shapes:
    """Shapes of all values whose rank is known; unknown operators are taken to keep a shape.

    Args:
        model: It is not changed. Larger constants take part with their shapes alone.
    """
    graph, source = onnx.GraphProto(), model.graph
    graph.name = "shapes"
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    for tensor in source.initializer:
        if int(np.prod(tensor.dims)) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    for node in source.node:
        known = node.domain in ("", "ai.onnx")
        same = helper.make_node("Identity", node.input[:1], node.output[:1])
        graph.node.append(node if known else same)
    light = helper.make_model(graph, opset_imports=model.opset_import)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    result: Shapes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            result[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    return result
