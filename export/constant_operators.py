"""The ONNX operators that weights and other constants of a file are decoded with, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Attributes = Mapping[str, Any]
Operator = Callable[[Sequence[Any], Attributes], Array | tuple[Array, ...]]


def is_integer(array: Array) -> bool:
    """Whether an array holds integers, also of a packed type."""
    return "int" in array.dtype.name


def grid_bits(codes: Array, zero: Array | None, attributes: Attributes) -> int:
    """Width of the narrowest grid `-K ... K` that holds codes less their zero point."""
    if codes.size == 0:
        return 1
    if zero is None or not zero.astype(np.int32).any():
        # NumPy finds the extremes of its own types alone, not of packed ones.
        centred = codes.astype(np.int16) if codes.dtype.itemsize == 1 else codes
    else:
        centred = codes.astype(np.int32) - _spread(zero.astype(np.int32), codes, attributes)
    low, high = int(centred.min()), int(centred.max())
    return max(-low, high).bit_length() + 1


def densified(tensor: onnx.SparseTensorProto) -> Array:
    """A sparse tensor with all its zeros."""
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    whole = np.zeros(tuple(tensor.dims), values.dtype)
    if indices.ndim == 2:
        whole[tuple(indices.T)] = values
    else:
        whole.reshape(-1)[indices] = values
    return whole


def constant_value(attributes: Attributes) -> Array:
    """The value of a node `Constant`."""
    [(name, value)] = attributes.items()
    if name == "value":
        return np.asarray(numpy_helper.to_array(value))
    if name == "sparse_value":
        return densified(value)
    return np.array(value, np.float32 if "float" in name else np.int64)


def _spread(scales: Array, codes: Array, attributes: Attributes) -> Array:
    """Scales or zero points, shaped so that they broadcast against the codes."""
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if scales.ndim == 0 or (scales.size == 1 and not block):
        return scales.reshape(())
    if block:
        each = np.repeat(scales, block, axis=axis)
        cut: Array = each[(slice(None),) * (axis % codes.ndim) + (slice(codes.shape[axis]),)]
        return cut
    shape = [1] * codes.ndim
    shape[axis] = -1
    return scales.reshape(shape)


def _dequantize(inputs: Sequence[Any], attributes: Attributes) -> Array:
    codes, scales, zero = (*inputs, None)[:3]
    # Codes of eight bits and fewer are exact in float32, and so is their distance from zero.
    values: Array = codes.astype(np.float32)
    if zero is not None:
        values -= _spread(zero.astype(np.float32), codes, attributes)
    values *= _spread(scales.astype(np.float32), codes, attributes)
    result: Array = values.astype(scales.dtype, copy=False)
    return result


def _scatter_elements(inputs: Sequence[Any], attributes: Attributes) -> Array:
    data, indices, updates = inputs
    axis = attributes.get("axis", 0) % data.ndim
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return _scattered(data, tuple(places), updates, attributes)


def _scatter_nd(inputs: Sequence[Any], attributes: Attributes) -> Array:
    data, indices, updates = inputs
    return _scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, attributes)


def _scattered(data: Array, places: Any, updates: Array, attributes: Attributes) -> Array:
    result = data.copy()
    if attributes.get("reduction", b"none") == b"add":
        np.add.at(result, places, updates)
    else:
        result[places] = updates
    return result


def _cumulative(inputs: Sequence[Any], attributes: Attributes) -> Array:
    axis = int(inputs[1].reshape(()))
    values = np.flip(inputs[0], axis) if attributes.get("reverse") else inputs[0]
    sums: Array = np.cumsum(values, axis=axis, dtype=values.dtype)
    sums = sums - values if attributes.get("exclusive") else sums
    return np.flip(sums, axis) if attributes.get("reverse") else sums


def _shifted(inputs: Sequence[Any], attributes: Attributes) -> Array:
    shift = np.left_shift if attributes["direction"] == b"LEFT" else np.right_shift
    return np.asarray(shift(*inputs))


def _reshape(inputs: Sequence[Any], attributes: Attributes) -> Array:
    data, shape = inputs[0], inputs[1].tolist()
    kept = [data.shape[i] if size == 0 and not attributes.get("allowzero") else size
            for i, size in enumerate(shape)]  # fmt: skip
    return np.asarray(data.reshape(kept))


def _squeeze(inputs: Sequence[Any], _: Attributes) -> Array:
    axes = tuple(inputs[1].tolist()) if len(inputs) > 1 else None
    return np.asarray(np.squeeze(inputs[0], axes))


def _filled(inputs: Sequence[Any], attributes: Attributes) -> Array:
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.float32(0)
    return np.full(tuple(inputs[0].tolist()), np.asarray(value).reshape(()), value.dtype)


def _slice(inputs: Sequence[Any], _: Attributes) -> Array:
    data, starts, ends, axes, steps = (*inputs, None, None)[:5]
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -data.shape[axis] else int(end)
        cut[axis] = slice(int(start), stop, int(step))
    return np.asarray(data[tuple(cut)])


def _cast(inputs: Sequence[Any], attributes: Attributes) -> Array:
    target = helper.tensor_dtype_to_np_dtype(attributes["to"])
    return np.asarray(inputs[0].astype(target))


def _range(inputs: Sequence[Any], _: Attributes) -> Array:
    start, stop, step = (item.reshape(()) for item in inputs)
    return np.arange(start, stop, step, dtype=start.dtype)


def _least(inputs: Sequence[Any], attributes: Attributes) -> Array:
    axes = tuple(inputs[1].tolist()) if len(inputs) > 1 else None
    return np.asarray(inputs[0].min(axis=axes, keepdims=bool(attributes.get("keepdims", 1))))


def _top_k(inputs: Sequence[Any], attributes: Attributes) -> tuple[Array, Array]:
    """Both outputs: the values and their places, equal ones in the order of their places."""
    data, axis, largest = inputs[0], attributes.get("axis", -1), attributes.get("largest", 1)
    back = np.flip(data, axis) if largest else data
    order = np.argsort(back, axis=axis, kind="stable")
    if largest:
        order = data.shape[axis] - 1 - np.flip(order, axis)
    order = order.take(np.arange(int(inputs[1].reshape(()))), axis=axis)
    return np.take_along_axis(data, order, axis), order.astype(np.int64)


def _divide(inputs: Sequence[Any], _: Attributes) -> Array:
    left, right = inputs
    if is_integer(left):  # ONNX rounds towards zero
        return np.asarray(np.trunc(left / right).astype(left.dtype))
    return np.asarray(left / right)


OPERATORS: dict[str, Operator] = {
    "Add": lambda x, a: np.add(*x),
    "BitShift": _shifted,
    "BitwiseAnd": lambda x, a: np.bitwise_and(*x),
    "BitwiseXor": lambda x, a: np.bitwise_xor(*x),
    "Cast": _cast,
    "Concat": lambda x, a: np.concatenate(x, axis=a["axis"]),
    "ConstantOfShape": _filled,
    "CumSum": _cumulative,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Equal": lambda x, a: np.equal(*x),
    "Expand": lambda x, a: np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, x[1].tolist())),
    "Gather": lambda x, a: np.take(x[0], x[1], axis=a.get("axis", 0)),
    "Identity": lambda x, a: x[0],
    "Mod": lambda x, a: (np.fmod if a.get("fmod") else np.mod)(*x),
    "Mul": lambda x, a: np.multiply(*x),
    "Neg": lambda x, a: np.negative(x[0]),
    "Range": _range,
    "ReduceMin": _least,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda x, a: np.subtract(*x),
    "TopK": _top_k,
    "Transpose": lambda x, a: x[0].transpose(a.get("perm")),
    "Unsqueeze": lambda x, a: np.expand_dims(x[0], tuple(x[1].tolist())),
    "Where": lambda x, a: np.where(*x),
}
"""By type: from the inputs, `None` where left out, and the attributes to the output, or to all."""
