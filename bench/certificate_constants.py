"""What an ONNX file stores, decoded, for `check_certificate.py`: dense, sparse, and as codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
PACKED = {"INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}


class Value(NamedTuple):
    """A constant of the file, and how its elements lie there.

    `bits` is the width of a stored element. Of integers that are scaled when they are decoded
    (`coded`), `needed` is the least width b with all of them within +-(2^(b-1) - 1). `names` leads
    from the value to the initialiser that its elements come from.
    """

    array: Array
    bits: int
    names: tuple[str, ...]
    coded: bool = False
    needed: int = 0


class UnreadableError(Exception):
    """A part of the file that this script does not understand."""


class Constants:
    """Values that depend on nothing but what the file stores, decoded when they are asked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producer = {name: node for node in graph.node for name in node.output}
        self._dense = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self._known: dict[str, Value] = {}
        self.names = {*self._dense, *self._sparse}
        for node in graph.node:
            if node.op_type in DECODERS and all(n in self.names for n in node.input if n):
                self.names.update(node.output)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def get(self, name: str) -> Value | None:
        """The constant of that name; None for a computed value."""
        if name not in self.names:
            return None
        if name not in self._known:
            self._known[name] = self._decoded(name, {})
        return self._known[name]

    def array(self, name: str) -> Array | None:
        """Its elements alone; None for a computed value, and for an input that is left out."""
        value = self.get(name)
        return None if value is None else value.array

    def _decoded(self, name: str, seen: dict[str, Value]) -> Value:
        if name in seen:
            return seen[name]
        if name in self._dense:
            tensor = self._dense[name]
            value = Value(numpy_helper.to_array(tensor), _stored_bits(tensor), (name,))
        elif name in self._sparse:
            item = self._sparse[name]
            value = Value(_whole(item), _stored_bits(item.values), (name,))
        else:
            value = self._computed(name, self.producer[name], seen)
        seen[name] = value
        return value

    def _computed(self, name: str, node: onnx.NodeProto, seen: dict[str, Value]) -> Value:
        inputs = [self._decoded(item, seen) if item else None for item in node.input]
        try:
            call = DECODERS[node.op_type]
            found = call([x and x.array for x in inputs], attributes_of(node))
            several = isinstance(found, tuple)
            array = np.asarray(found[list(node.output).index(name)] if several else found)
        except (ValueError, IndexError, TypeError, LookupError) as error:
            raise UnreadableError(f"{name!r} cannot be decoded ({error!s:.100})") from error
        origin = _origin(node.op_type, inputs)
        if origin is None:
            return Value(array, 8 * array.itemsize, (name,))
        value = origin._replace(array=array, names=(name, *origin.names))
        if not (_integers(origin.array) and array.dtype.kind == "f"):
            return value
        codes = origin.array.astype(np.int64)
        if node.op_type == "DequantizeLinear" and len(inputs) > 2 and inputs[2] is not None:
            codes = codes - _along(inputs[2].array.astype(np.int64), codes, attributes_of(node))
        largest = int(np.abs(codes).max(initial=0))
        needed = 1 + largest.bit_length()
        return value._replace(coded=True, needed=min(needed, value.bits))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _stored_bits(tensor: onnx.TensorProto) -> int:
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    return PACKED.get(name) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _integers(array: Array) -> bool:
    return array.dtype.kind in "iu" or array.dtype.name.lstrip("u").startswith("int")


def _origin(kind: str, inputs: Sequence[Value | None]) -> Value | None:
    """The input whose stored elements a result is made of."""
    known = [x for x in inputs if x is not None]
    if kind == "Mul":  # codes times the fewer scales
        return max(known, key=lambda x: x.array.size)
    if kind in ("ScatterElements", "ScatterND"):
        return known[2]
    if kind == "Where":
        return known[1]
    places = "Cast DequantizeLinear Gather Identity Reshape Slice Squeeze Transpose Unsqueeze"
    return known[0] if kind in places.split() else None


def _whole(item: onnx.SparseTensorProto) -> Array:
    values, places = numpy_helper.to_array(item.values), numpy_helper.to_array(item.indices)
    array = np.zeros(math.prod(item.dims), values.dtype)
    flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), tuple(item.dims))
    array[flat] = values
    return array.reshape(tuple(item.dims))


def _along(scales: Array, codes: Array, found: dict[str, Any]) -> Array:
    """Scales or zero points of every code: one for all, per index of an axis, or per block."""
    axis = found.get("axis", 1) % max(codes.ndim, 1)
    if scales.ndim == 0 or (scales.ndim == 1 and codes.ndim != 1 and scales.size == 1):
        return scales.reshape(())
    if block := found.get("block_size", 0):
        each: Array = scales.take(np.arange(codes.shape[axis]) // block, axis=axis)
        return each
    return scales.reshape([-1 if place == axis else 1 for place in range(codes.ndim)])


def _dequantized(x: Sequence[Any], found: dict[str, Any]) -> Array:
    zero = np.zeros((), np.int32) if len(x) < 3 or x[2] is None else x[2].astype(np.int32)
    codes = x[0].astype(np.int32) - _along(zero, x[0], found)
    scaled: Array = codes.astype(np.float32) * _along(x[1], x[0], found)
    return scaled


def _summed(x: Sequence[Any], found: dict[str, Any]) -> Array:
    if found.get("exclusive") or found.get("reverse"):
        raise ValueError("a sum that is exclusive or reversed")
    sums: Array = np.cumsum(x[0], axis=int(x[1].reshape(())), dtype=x[0].dtype)
    return sums


def _scattered(x: Sequence[Any], found: dict[str, Any], *, along: bool) -> Array:
    if found.get("reduction", b"none") != b"none":
        raise ValueError("a scatter that adds up")
    array = np.array(x[0])
    places: tuple[Any, ...] = tuple(np.moveaxis(x[1], -1, 0))
    if along:
        grid = np.ogrid[tuple(slice(size) for size in x[1].shape)]
        axis = found.get("axis", 0) % array.ndim
        places = tuple(x[1] if place == axis else index for place, index in enumerate(grid))
    array[places] = x[2]
    return array


def _shaped(x: Sequence[Any], found: dict[str, Any]) -> Array:
    sizes = [int(size) for size in x[1]]
    if not found.get("allowzero"):
        sizes = [size or x[0].shape[place] for place, size in enumerate(sizes)]
    shaped: Array = x[0].reshape(sizes)
    return shaped


def _part(x: Sequence[Any], found: dict[str, Any]) -> Array:
    axes = x[3] if len(x) > 3 and x[3] is not None else range(len(x[1]))
    if len(x) > 4 and np.any(x[4] != 1):
        raise ValueError("a slice with steps")
    cuts = [slice(None)] * x[0].ndim
    for axis, first, last in zip(axes, x[1], x[2], strict=True):
        cuts[axis] = slice(int(first), int(last))
    part: Array = x[0][tuple(cuts)]
    return part


def _filled(x: Sequence[Any], found: dict[str, Any]) -> Array:
    value = numpy_helper.to_array(found["value"]) if "value" in found else np.zeros(1, np.float32)
    return np.broadcast_to(value.reshape(()), [int(size) for size in x[0]])


def _counted(x: Sequence[Any], _: dict[str, Any]) -> Array:
    first, end, step = (int(each.reshape(())) for each in x)
    return np.arange(first, end, step, dtype=x[0].dtype)


def _least(x: Sequence[Any], found: dict[str, Any]) -> Any:
    if len(x) > 1 or found.get("keepdims", 1):
        raise ValueError("a minimum along single axes")
    return x[0].min()


def _smallest(x: Sequence[Any], found: dict[str, Any]) -> tuple[Array, Array]:
    if found.get("largest", 1) or x[0].ndim != 1:
        raise ValueError("the largest of several")
    order = np.argsort(x[0], kind="stable")[: int(x[1].reshape(()))]
    return x[0][order], order


def _given(x: Sequence[Any], found: dict[str, Any]) -> Array:
    [(name, value)] = found.items()
    if name == "value":
        return numpy_helper.to_array(value)
    if name == "sparse_value":
        return _whole(value)
    return np.asarray(value, np.float32 if "float" in name else np.int64)


def _cast(x: Sequence[Any], found: dict[str, Any]) -> Array:
    cast: Array = x[0].astype(helper.tensor_dtype_to_np_dtype(found["to"]))
    return cast


DECODERS: dict[str, Callable[[Sequence[Any], dict[str, Any]], Any]] = {
    "Add": lambda x, _: x[0] + x[1],
    "BitShift": lambda x, f: x[0] << x[1] if f["direction"] == b"LEFT" else x[0] >> x[1],
    "BitwiseAnd": lambda x, _: x[0] & x[1],
    "BitwiseXor": lambda x, _: x[0] ^ x[1],
    "Cast": _cast,
    "Concat": lambda x, f: np.concatenate(x, axis=f["axis"]),
    "Constant": _given,
    "ConstantOfShape": _filled,
    "CumSum": _summed,
    "DequantizeLinear": _dequantized,
    "Equal": lambda x, _: x[0] == x[1],
    "Expand": lambda x, _: np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, tuple(x[1]))),
    "Gather": lambda x, f: x[0].take(x[1], axis=f.get("axis", 0)),
    "Identity": lambda x, _: x[0],
    "Mod": lambda x, f: np.fmod(x[0], x[1]) if f.get("fmod") else x[0] % x[1],
    "Mul": lambda x, _: x[0] * x[1],
    "Neg": lambda x, _: -x[0],
    "Range": _counted,
    "ReduceMin": _least,
    "Reshape": _shaped,
    "ScatterElements": lambda x, f: _scattered(x, f, along=True),
    "ScatterND": lambda x, f: _scattered(x, f, along=False),
    "Slice": _part,
    "Squeeze": lambda x, _: np.squeeze(x[0], tuple(x[1]) if len(x) > 1 else None),
    "Sub": lambda x, _: x[0] - x[1],
    "TopK": _smallest,
    "Transpose": lambda x, f: x[0].transpose(f.get("perm")),
    "Unsqueeze": lambda x, _: np.expand_dims(x[0], tuple(x[1])),
    "Where": lambda x, _: np.where(x[0], x[1], x[2]),
}
