"""Column groups in ONNX: a gather of columns and a batched product, how it is written and read.

    linear   Transpose -> Gather (axis 0) [-> Reshape] -> MatMul(blocks, .) -> Reshape -> Transpose
    1 x 1    Gather (axis 1) -> Reshape -> MatMul(blocks, .) -> Reshape

`blocks (groups, rows, k)` are the kept weights, `columns (groups, k)` the inputs that each group
reads. The blocks stand left: ONNX Runtime packs the right operand of a batched product at every
run, and there the gathered inputs are the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.generic]
Dims = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A weight of which every group of rows keeps its own columns.

    Attributes:
        blocks: Shape `(groups, rows, k)`.
        columns: Integers of shape `(groups, k)`, distinct within a group.
    """

    blocks: Array
    columns: Array

    @classmethod
    def of(cls, matrix: Array, columns: Array) -> Grouped:
        """Cut a matrix `(groups * rows, cols)` that is zero outside of `columns`."""
        groups, kept = columns.shape
        parts = matrix.reshape(groups, -1, matrix.shape[1])
        shape = (groups, parts.shape[1], kept)
        index = np.broadcast_to(columns[:, None, :].astype(np.int64), shape)
        blocks = np.take_along_axis(parts, index, axis=2)
        return cls(np.ascontiguousarray(blocks), columns.astype(np.int32))

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.blocks.nbytes + self.columns.nbytes

    def whole(self, shape: tuple[int, ...]) -> Array | None:
        """The weight in full, zeros and all; `None` where it cannot have that shape.

        Args:
            shape: `(groups * rows, ...)`.
        """
        groups, rows, _ = self.blocks.shape
        cols, rest = divmod(math.prod(shape), groups * rows)
        ordered = np.sort(self.columns, axis=1)
        distinct = bool((np.diff(ordered, axis=1) > 0).all())
        fits = rest == 0 and ordered.min() >= 0 and ordered.max() < cols and distinct
        if not fits or shape[0] != groups * rows:
            return None
        whole = np.zeros((groups, rows, cols), self.blocks.dtype)
        index = np.broadcast_to(self.columns[:, None, :].astype(np.int64), self.blocks.shape)
        np.put_along_axis(whole, index, self.blocks, axis=2)
        return whole.reshape(shape)


def linear_nodes(
    source: str, dims: Dims, grouped: Grouped, prefix: str, weight: str, target: str
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Nodes for `source (..., cols)` times the transposed weight, without bias.

    Args:
        source: The input.
        dims: Its shape, `None` where it is not known; at most one leading dimension may be.
        grouped: The weight.
        prefix: Of the names of what is in between.
        weight: Name of the blocks; that of the columns is made from it.
        target: The output.

    Returns:
        The nodes, and the shapes that they read; blocks and columns are not among them.
    """
    rank, (groups, rows, kept) = len(dims), grouped.blocks.shape
    lead = [-1 if size is None else size for size in dims[:-1]]
    if rank == 2:
        lead = [-1]
    last, first = [rank - 1, *range(rank - 1)], [*range(1, rank), 0]
    shapes: dict[str, Array] = {f"{prefix}_shape": np.array([groups * rows, *lead])}
    gathered = f"{prefix}_gathered"
    nodes = [
        _node("Transpose", [source], f"{prefix}_turned", perm=last),
        _node("Gather", [f"{prefix}_turned", columns_name(weight)], gathered, axis=0),
    ]
    if rank > 2:
        shapes[f"{prefix}_flat"] = np.array([groups, kept, -1])
        nodes.append(_node("Reshape", [gathered, f"{prefix}_flat"], f"{gathered}_flat"))
        gathered += "_flat"
    nodes += [
        _node("MatMul", [weight, gathered], f"{prefix}_products"),
        _node("Reshape", [f"{prefix}_products", f"{prefix}_shape"], f"{prefix}_rows"),
        _node("Transpose", [f"{prefix}_rows"], target, perm=first),
    ]
    return nodes, shapes


def pointwise_nodes(
    source: str, dims: Dims, grouped: Grouped, prefix: str, weight: str, target: str
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Nodes for a 1 x 1 convolution of `source (N, cols, *sizes)`; see `linear_nodes`.

    All `sizes` must be known.
    """
    groups, rows, kept = grouped.blocks.shape
    shapes: dict[str, Array] = {
        f"{prefix}_flat": np.array([0, groups, kept, -1]),
        f"{prefix}_shape": np.array([0, groups * rows, *dims[2:]]),
    }
    nodes = [
        _node("Gather", [source, columns_name(weight)], f"{prefix}_gathered", axis=1),
        _node("Reshape", [f"{prefix}_gathered", f"{prefix}_flat"], f"{prefix}_gathered_flat"),
        _node("MatMul", [weight, f"{prefix}_gathered_flat"], f"{prefix}_products"),
        _node("Reshape", [f"{prefix}_products", f"{prefix}_shape"], target),
    ]
    return nodes, shapes


def columns_name(weight: str) -> str:
    """Name of the columns of a weight."""
    return f"{weight}_columns"


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


def grouped_weights(model: onnx.ModelProto) -> dict[str, Grouped]:
    """Every weight that a file holds as column groups, by the name of its blocks."""
    stored = {item.name: item for item in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    result: dict[str, Grouped] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[0] not in stored:
            continue
        columns = _gathered(node.input[1], stored, producers)
        if columns is not None and len(stored[node.input[0]].dims) == 3:
            blocks = numpy_helper.to_array(stored[node.input[0]])
            if columns.shape == (blocks.shape[0], blocks.shape[2]):
                result[node.input[0]] = Grouped(blocks, columns)
    return result


def _gathered(
    name: str, stored: Mapping[str, onnx.TensorProto], producers: Mapping[str, onnx.NodeProto]
) -> Array | None:
    """The constant columns that a value was gathered by."""
    node = producers.get(name)
    if node is not None and node.op_type == "Reshape":
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Gather" or node.input[1] not in stored:
        return None
    columns: Array = numpy_helper.to_array(stored[node.input[1]])
    return columns if columns.ndim == 2 else None
