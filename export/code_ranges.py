"""The codes that quantized activations of a file can have, and so how many bits they take."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.constant_operators import Array
from export.constants import Constants

Codes = tuple[int, int]

LAYOUTS = frozenset({"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"})
MOVING = LAYOUTS | {
    *("Flatten", "Slice", "Split", "Gather", "Expand", "DepthToSpace", "SpaceToDepth"),
    *("Relu", "MaxPool", "GlobalMaxPool", "ReduceMax"),
}
"""What only moves or selects values, so that those of a grid stay on it; zero is on every grid."""


def bits_of(codes: Codes | None) -> int | None:
    """Bits that so many codes take; `None` where they are not known."""
    return None if codes is None else max(1, (codes[1] - codes[0]).bit_length())


def codes_read(node: onnx.NodeProto, constants: Constants) -> Codes | None:
    """The smallest and the largest code that a DequantizeLinear reads."""
    codes = _codes(node.input[0], constants)
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    return _of_type(zero.values) if codes is None and zero is not None else codes


def codes_written(node: onnx.NodeProto, constants: Constants) -> Codes | None:
    """The smallest and the largest code that a QuantizeLinear writes.

    Those of its type, unless a Clip right before it keeps values within fewer.
    """
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    named = [item.i for item in node.attribute if item.name == "output_dtype" and item.i]
    kind = np.zeros((), helper.tensor_dtype_to_np_dtype([*named, TensorProto.UINT8][0]))
    codes = _of_type(kind if zero is None else zero.values)
    scale, before = constants.get(node.input[1]), constants.producers.get(node.input[0])
    if codes is None or scale is None or scale.values.size != 1:
        return codes
    if before is None or before.op_type != "Clip":
        return codes
    offset = 0 if zero is None else int(zero.values.reshape(()))
    return _clipped(codes, before, constants, float(scale.values.reshape(())), offset)


def clipped_codes(node: onnx.NodeProto, constants: Constants) -> Codes | None:
    """The codes that a Clip of codes leaves."""
    inner = _codes(node.input[0], constants)
    return None if inner is None else _clipped(inner, node, constants)


def _codes(name: str, constants: Constants) -> Codes | None:
    node = constants.producers.get(name)
    if node is None or node.op_type == "Cast":
        return None
    if node.op_type == "QuantizeLinear":
        return codes_written(node, constants)
    if node.op_type == "Clip":
        return clipped_codes(node, constants)
    if node.op_type == "Concat":
        parts = [_codes(part, constants) for part in node.input]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return min(low for low, _ in known), max(high for _, high in known)
    if node.op_type == "Pad":
        inner, value = _codes(node.input[0], constants), _padded_with(node, constants)
        if inner is None or value is None:
            return None
        return min(inner[0], value), max(inner[1], value)
    return _codes(node.input[0], constants) if node.op_type in MOVING else None


def _padded_with(node: onnx.NodeProto, constants: Constants) -> int | None:
    if len(node.input) < 3 or not node.input[2]:
        return 0
    value = constants.get(node.input[2])
    return None if value is None else int(value.values.reshape(()))


def _clipped(
    codes: Codes, clip: onnx.NodeProto, constants: Constants, scale: float = 1.0, zero: int = 0
) -> Codes:
    """Codes of a range that a Clip leaves, of values with that scale and zero point."""
    bounds = [constants.get(name) for name in (*clip.input[1:3], "", "")[:2]]
    low, high = (
        None if bound is None else round(float(bound.values.reshape(())) / scale) + zero
        for bound in bounds
    )
    return (
        codes[0] if low is None else max(codes[0], low),
        codes[1] if high is None else min(codes[1], high),
    )


def _of_type(zero: Array) -> Codes | None:
    """All codes of an integer type."""
    kind, _, bits = zero.dtype.name.partition("int")
    if kind not in ("", "u") or not bits.isdigit():
        return None
    width = int(bits)
    return (0, 2**width - 1) if kind else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
