"""Values of an ONNX file that depend on its initialisers alone, computed when they are asked for.

Quantized weights are codes behind a `DequantizeLinear`, sparse ones gaps and values behind a few
plain operators. What is evaluated here is what those forms are written with, in NumPy: the
reference evaluator of ONNX takes minutes to scatter the weights of a ResNet-50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper, numpy_helper

from export.constant_operators import (
    OPERATORS,
    Array,
    constant_value,
    densified,
    grid_bits,
    is_integer,
)

_NARROW = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}
_PLACING = frozenset({"Gather", "ScatterElements", "ScatterND"})
_CARRIED = {
    **dict.fromkeys(("Cast", "DequantizeLinear", "Expand", "Identity", "Neg", "Reshape"), 0),
    **dict.fromkeys(("Gather", "Slice", "Squeeze", "Transpose", "Unsqueeze"), 0),
    **dict.fromkeys(("ScatterElements", "ScatterND"), 2),
    "Where": 1,
}


@dataclass(frozen=True, slots=True)
class Constant:
    """A value, and how its elements are stored.

    Attributes:
        values: The elements.
        bits: Width of one in the file: 4 for INT4 codes, 32 for float32.
        needed: Width of the narrowest symmetric grid `-K ... K`, K = 2^(needed - 1) - 1, that holds
            all its codes; at most `bits`. Elements that are not stored as codes need `bits`.
        form: `"codes"`: integers, multiplied by scales; `"sparse"`: nonzeros and their positions.
    """

    values: Array
    bits: int
    needed: int
    form: frozenset[str] = frozenset()

    @classmethod
    def plain(cls, values: Array, bits: int | None = None) -> Constant:
        """Elements that are stored as they are, in so many bits; by default those of their type."""
        width = values.dtype.itemsize * 8 if bits is None else bits
        return cls(values, width, width)


def type_bits(data_type: int) -> int:
    """Bits that one element of an ONNX type takes in a file; packed types less than a byte."""
    width = _NARROW.get(data_type)
    return width or helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8


class Constants:
    """The constants of a file.

    Attributes:
        stored: Its initialisers by name.
        producers: The node that computes each other value.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self._names = {*self.stored, *self._sparse}
        self._known: dict[str, Constant] = {}
        for node in graph.node:
            known = all(name in self._names for name in node.input if name)
            if node.op_type == "Constant" or (node.op_type in OPERATORS and known):
                self._names.update(node.output)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def is_stored(self, name: str) -> bool:
        """Whether a value lies in the file as it is, dense or sparse."""
        return name in self.stored or name in self._sparse

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the dense and then of the sparse initialisers, in the file's order."""
        return (*self.stored, *self._sparse)

    def dims(self, name: str) -> tuple[int, ...]:
        """Shape of a constant; read off without its values where it is stored."""
        tensor = self.stored.get(name) or self._sparse.get(name)
        return self[name].values.shape if tensor is None else tuple(tensor.dims)

    def __getitem__(self, name: str) -> Constant:
        """The constant of that name.

        Raises:
            KeyError: The value is none.
        """
        if name not in self._names:
            raise KeyError(name)
        if name not in self._known:
            # What it is made from is forgotten: positions take more memory than weights.
            self._known[name] = self._evaluate(name, {})
        return self._known[name]

    def get(self, name: str) -> Constant | None:
        """The constant of that name; `None` for a computed value."""
        return self[name] if name in self._names else None

    def _evaluate(self, name: str, seen: dict[str, Constant]) -> Constant:
        if name not in seen:
            seen[name] = self._stored(name) or self._computed(name, self.producers[name], seen)
        return seen[name]

    def _stored(self, name: str) -> Constant | None:
        if name in self._sparse:
            tensor = self._sparse[name]
            sparse = Constant.plain(densified(tensor), type_bits(tensor.values.data_type))
            return replace(sparse, form=frozenset(("sparse",)))
        if name not in self.stored:
            return None
        bits = type_bits(self.stored[name].data_type)
        return Constant.plain(numpy_helper.to_array(self.stored[name]), bits)

    def _computed(self, name: str, node: onnx.NodeProto, seen: dict[str, Constant]) -> Constant:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Constant":
            return Constant.plain(constant_value(attributes))
        inputs = [self._evaluate(item, seen) if item else None for item in node.input]
        arrays = [None if item is None else item.values for item in inputs]
        values = OPERATORS[node.op_type](arrays, attributes)
        if isinstance(values, tuple):
            values = values[list(node.output).index(name)]
        carrier = _carrier(node.op_type, inputs)
        if carrier is None:
            return Constant.plain(values)
        form = carrier.form | ({"sparse"} if node.op_type in _PLACING else set())
        if not is_integer(carrier.values) or is_integer(values):
            return replace(carrier, values=values, form=form)
        zero = arrays[2] if node.op_type == "DequantizeLinear" and len(arrays) > 2 else None
        needed = min(carrier.bits, grid_bits(carrier.values, zero, attributes))
        return Constant(values, carrier.bits, needed, form | {"codes"})


def _carrier(kind: str, inputs: Sequence[Constant | None]) -> Constant | None:
    """The operand whose elements, as they are stored, a result consists of."""
    if kind == "Mul":  # codes times scales: the scales are fewer
        known = [item for item in inputs if item is not None]
        return max(known, key=lambda item: (item.values.size, -item.bits))
    place = _CARRIED.get(kind)
    return None if place is None else inputs[place]
