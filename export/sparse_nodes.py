"""The nodes and constants that decode a stored weight, and their exact size in the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from export.gaps import Array
from export.sparse_layout import BITMAP, LINEAR, Layout, empty_tensor

_GAP_TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}
_SHARED: dict[str, Array] = {
    "axis": np.array(0, np.int64),
    "start": np.array([0], np.int64),
    "flat": np.array([-1], np.int64),
    "masks": (1 << np.arange(8)).astype(np.uint8).reshape(1, 8),
}


def encoded(message_bytes: int) -> int:
    """Bytes of a field that holds so many: its tag, its length, itself."""
    return 1 + max(1, math.ceil(message_bytes.bit_length() / 7)) + message_bytes


def _with_payload(tensor: TensorProto, payload: int) -> int:
    size: int = tensor.ByteSize()
    return size + (encoded(payload) if payload else 0)


@dataclass(slots=True)
class Chain:
    """The nodes that decode one weight; plain operators of opset 18, types of 21.

    Attributes:
        layout: How it is stored.
        name: The weight: output of the last node.
        data_type: Its ONNX type.
        dims: Its shape.
        root: Prefix of the constants that all chains of a file share.
        number: What makes the chain's own names different from those of others.
        nodes: The nodes, in order.
        constants: Small constants of its own.
        shared: Names of the shared constants that it reads.
        coded: Positions and values, still without their elements; none for a tensor of zeros.
    """

    layout: Layout
    name: str
    data_type: int
    dims: tuple[int, ...]
    root: str
    number: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    coded: tuple[TensorProto, ...] = ()

    def __post_init__(self) -> None:
        four = self.data_type == TensorProto.INT4
        scattered = TensorProto.INT8 if four else self.data_type
        if self.layout.positions == 0:
            self._zeros(self._own("shape", np.array(self.dims, np.int64)), scattered)
        else:
            decode = self._from_bits if self.layout.positions == BITMAP else self._from_gaps
            flat = decode(scattered)
            if len(self.dims) != 1:
                self._node("Reshape", flat, self._own("shape", np.array(self.dims, np.int64)))
        if four:
            self._node("Cast", self.nodes[-1].output[0], to=self.data_type)
        self.nodes[-1].output[0] = self.name

    @property
    def bytes(self) -> int:
        """Exact size in the file, without the shared constants."""
        parts = [node.ByteSize() for node in self.nodes]
        parts += [tensor.ByteSize() for tensor in self.constants]
        sizes = self.layout.position_bytes, self.layout.value_bytes
        coded = [_with_payload(t, s) for t, s in zip(self.coded, sizes, strict=False)]
        return sum(encoded(size) for size in (*parts, *coded))

    def _name(self, suffix: str) -> str:
        return f"{self.root}{self.number}.{suffix}"

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self._name("abcdefghijkl"[len(self.nodes)])
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _own(self, suffix: str, values: Array) -> str:
        self.constants.append(numpy_helper.from_array(values, self._name(suffix)))
        return self.constants[-1].name

    def _use(self, suffix: str) -> str:
        self.shared.append(suffix)
        return f"{self.root}.{suffix}"

    def _zeros(self, shape: str, data_type: int) -> None:
        zero = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(data_type)))
        attributes = {} if data_type == TensorProto.FLOAT else {"value": zero}
        self._node("ConstantOfShape", shape, **attributes)

    def _coded(self, data_type: int, dims: tuple[int, ...], scattered: int) -> tuple[str, str]:
        """Names of the positions and of the values, these in the type that is scattered."""
        layout = self.layout
        positions = empty_tensor(self._name("positions"), data_type, dims)
        values = empty_tensor(self._name("values"), layout.values, (layout.entries,))
        self.coded = positions, values
        if layout.values == scattered:
            return positions.name, values.name
        return positions.name, self._node("Cast", values.name, to=scattered)

    def _from_gaps(self, scattered: int) -> str:
        kind, entries = _GAP_TYPES[self.layout.positions], self.layout.entries
        gaps, values = self._coded(kind, (entries,), scattered)
        index = TensorProto.INT32 if self.layout.size < 2**31 else TensorProto.INT64
        steps = self._node("Cast", gaps, to=index)
        positions = self._node("CumSum", steps, self._use("axis"))
        self._zeros(self._own("size", np.array([self.layout.size], np.int64)), scattered)
        return self._node("ScatterElements", self.nodes[-1].output[0], positions, values)

    def _from_bits(self, scattered: int) -> str:
        size = self.layout.size
        columns, values = self._coded(TensorProto.UINT8, (math.ceil(size / 8), 1), scattered)
        # No BitShift: OpenVINO 2026.4 rounds instead of cutting off.
        masked = self._node("BitwiseAnd", columns, self._use("masks"))
        bits = self._node("Cast", masked, to=TensorProto.BOOL)
        bits = self._node("Reshape", bits, self._use("flat"))
        if size % 8:
            end = self._own("size", np.array([size], np.int64))
            bits = self._node("Slice", bits, self._use("start"), end)
        index = TensorProto.INT32 if size < 2**31 else TensorProto.INT64
        kept = self._node("Cast", bits, to=index)
        rank = self._node("CumSum", kept, self._use("axis"))
        # The values begin with the zero that every element without a bit reads.
        return self._node("Gather", values, self._node("Mul", kept, rank))


def shared_constants(root: str, names: Sequence[str]) -> list[TensorProto]:
    """The constants that several chains read."""
    return [numpy_helper.from_array(_SHARED[n], f"{root}.{n}") for n in dict.fromkeys(names)]


def shared_bytes(root: str, names: Sequence[str]) -> int:
    """Exact size of `shared_constants` in the file."""
    return sum(encoded(tensor.ByteSize()) for tensor in shared_constants(root, names))


@dataclass(slots=True)
class SparseInitializer:
    """A weight as `sparse_initializer` of the file: values and linear INT64 indices.

    Attributes:
        layout: Its layout, `positions` 64.
        name: The weight.
        data_type: Its ONNX type.
        dims: Its shape.
    """

    layout: Layout
    name: str
    data_type: int
    dims: tuple[int, ...]

    @property
    def coded(self) -> tuple[TensorProto, TensorProto]:
        """Indices and values, still without their elements."""
        entries = (self.layout.entries,)
        return (
            empty_tensor("", TensorProto.INT64, entries),
            empty_tensor(self.name, self.data_type, entries),
        )

    @property
    def bytes(self) -> int:
        """Exact size in the file."""
        sizes = self.layout.position_bytes, self.layout.value_bytes
        parts = [_with_payload(t, s) for t, s in zip(self.coded, sizes, strict=True)]
        return encoded(SparseTensorProto(dims=self.dims).ByteSize() + sum(map(encoded, parts)))


Stored = Chain | SparseInitializer


def filled(item: Stored, array: Array) -> list[TensorProto]:
    """The positions and the values of a weight, with their elements; none for zeros."""
    tensors = []
    for empty, payload in zip(item.coded, item.layout.payloads(array), strict=False):
        tensor = TensorProto()
        tensor.CopyFrom(empty)
        if payload:
            tensor.raw_data = payload
        tensors.append(tensor)
    return tensors


def stored_as(
    layout: Layout, name: str, data_type: int, dims: tuple[int, ...], root: str, number: int
) -> Stored:
    """What stands in the file for a weight in that layout."""
    if layout.positions == LINEAR:
        return SparseInitializer(layout, name, data_type, dims)
    return Chain(layout, name, data_type, dims, root, number)
