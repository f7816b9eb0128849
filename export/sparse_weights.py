"""Store weights with zeros as positions and values, in a model in memory, to the exact byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import SparseTensorProto, TensorProto, helper

from energy_model.errors import ExportError, PostconditionError
from export.gaps import Array
from export.sparse_layout import CODES, FLOATS, Layout, array_of, layouts_of
from export.sparse_nodes import (
    Chain,
    Stored,
    encoded,
    filled,
    shared_bytes,
    shared_constants,
    stored_as,
)

_OLDEST_OPSET = 18


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """Which weights are stored sparsely, and what the file will weigh.

    Attributes:
        weights: What stands in the file for each weight that gets smaller, by name.
        bytes_before: Size of the model as it is.
        bytes: Exact size after `apply`.
    """

    weights: Mapping[str, Stored]
    bytes_before: int
    bytes: int

    def apply(self, model: onnx.ModelProto) -> None:
        """Rewrite the model that was planned for, in place.

        Raises:
            PostconditionError: Its size is not what was planned.
        """
        _apply(model, self.weights)
        if model.ByteSize() != self.bytes:
            raise PostconditionError(
                f"the file has {model.ByteSize()} bytes, planned were {self.bytes}",
                where="form sparse",
                remedy="This is an error of the exporter; please report it with the model.",
            )


def sparsify_weights(model: onnx.ModelProto, *, initializers: bool = False) -> list[str]:
    """Store every weight with zeros sparsely where that makes the file smaller, in place.

    A weight becomes 4-, 8- or 16-bit gaps or a bitmap, whichever is smallest, and the nodes that
    decode it; the last of them has the weight's old name. Codes of a quantized weight, int8 or int4
    read by `DequantizeLinear`, stay codes. Decoding is exact; only -0.0 comes back as 0.0.

    It is a storage form: a runtime unpacks the weights at load, runs no faster than from the dense
    file, and needs as much memory.

    Args:
        model: A model of opset 18 or later, with its weights inside the file; types of four bits
            are used from opset 21 on.
        initializers: Use ONNX's `sparse_initializer` with linear indices instead, which pays above
            67 % zeros for float32 and above 89 % for int8. ONNX Runtime reads it; OpenVINO,
            `onnx.checker.check_model(full_check=True)` and `onnx.reference` do not (gaps of theirs,
            not in the file), and onnx-ir drops it: make it the last step. INT4 stays dense.

    Returns:
        Names of the weights that were rewritten.

    Raises:
        ExportError: The opset is older than 18.
    """
    plan = plan_sparse(model, initializers=initializers)
    plan.apply(model)
    return list(plan.weights)


def plan_sparse(model: onnx.ModelProto, *, initializers: bool = False) -> SparsePlan:
    """Choose, for every weight, the layout that takes the fewest bytes.

    Args:
        model: As for `sparsify_weights`; it is not changed.
        initializers: As for `sparsify_weights`.

    Raises:
        ExportError: The opset is older than 18.
    """
    opset = next((item.version for item in model.opset_import if not item.domain), 0)
    if opset < _OLDEST_OPSET:
        raise ExportError(
            f"opset {opset} lacks the operators that decode sparse weights",
            where="form sparse",
            remedy=f"Export at opset {_OLDEST_OPSET} or later.",
        )
    root, graph = _free_root(model), model.graph
    codes = {n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    inputs = {value.name for value in graph.input}
    weights: dict[str, Stored] = {}
    change = 0
    for number, tensor in enumerate(graph.initializer):
        wanted = tensor.data_type in FLOATS or (tensor.data_type in CODES and tensor.name in codes)
        external = tensor.data_location == TensorProto.EXTERNAL
        if not wanted or external or tensor.name in inputs or not tensor.dims:
            continue
        layouts = layouts_of(
            array_of(tensor), tensor.data_type, initializers=initializers, packed=opset >= 21
        )
        dims = tuple(tensor.dims)
        found = _smallest(layouts, tensor.name, tensor.data_type, dims, root, number)
        before = encoded(tensor.ByteSize())
        if found is not None and found.bytes + _shared_bytes(found) < before:
            weights[tensor.name] = found
            change += found.bytes - before
    change += shared_bytes(root, _shared(weights))
    size, whole = graph.ByteSize(), model.ByteSize()
    return SparsePlan(weights, whole, whole - encoded(size) + encoded(size + change))


def sparse_bytes(
    weight: Array, name: str, data_type: int | None = None, *, initializers: bool = False
) -> int:
    """Exact bytes of one weight in the file, stored sparsely: its constants, nodes and names.

    Constants that all weights share, at most 100 bytes a file, come on top; and from the tenth
    weight on its number has more digits.

    Args:
        weight: Any shape; codes of four bits as int8.
        name: Its name in the file.
        data_type: Its ONNX type; by default that of the array.
        initializers: As a sparse initialiser.

    Raises:
        ExportError: It has no zeros, or its type has no sparse form.
    """
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype) if data_type is None else data_type
    layouts = layouts_of(weight, kind, initializers=initializers)
    found = _smallest(layouts, name, kind, weight.shape, "z", 0)
    if found is None:
        raise ExportError(
            f"a tensor of {weight.size} {TensorProto.DataType.Name(kind)} has no sparse form",
            where=name,
        )
    return found.bytes


def _smallest(
    layouts: list[Layout], name: str, data_type: int, dims: tuple[int, ...], root: str, number: int
) -> Stored | None:
    candidates = (stored_as(layout, name, data_type, dims, root, number) for layout in layouts)
    return min(candidates, key=lambda item: item.bytes + _shared_bytes(item), default=None)


def _shared_bytes(item: Stored) -> int:
    return shared_bytes(item.root, item.shared) if isinstance(item, Chain) else 0


def _shared(weights: Mapping[str, Stored]) -> list[str]:
    return [name for item in weights.values() if isinstance(item, Chain) for name in item.shared]


def _free_root(model: onnx.ModelProto) -> str:
    """A prefix that no name in the model has."""
    names, root = set(_names(model.graph)), "z"
    while any(name.startswith(root) for name in names):
        root += "z"
    return root


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of all values, also of those inside of branches and loops."""
    for value in (*graph.initializer, *graph.input, *graph.output):
        yield value.name
    for item in graph.sparse_initializer:
        yield item.values.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _names(attribute.g)


def _apply(model: onnx.ModelProto, weights: Mapping[str, Stored]) -> None:
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    for tensor in graph.initializer:
        item = weights.get(tensor.name)
        if item is None:
            tensors.append(tensor)
            continue
        coded = filled(item, array_of(tensor))
        if isinstance(item, Chain):
            nodes += item.nodes
            tensors += [*item.constants, *coded]
        else:
            indices, values = coded
            graph.sparse_initializer.append(
                SparseTensorProto(values=values, indices=indices, dims=item.dims)
            )
    root = next((item.root for item in weights.values() if isinstance(item, Chain)), "")
    tensors += shared_constants(root, _shared(weights))
    nodes += graph.node
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
