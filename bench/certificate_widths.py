"""Bits of the activations around a layer of an ONNX file, for `check_certificate.py`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from bench.certificate_constants import Constants, attributes_of

MOVERS = frozenset(
    [
        *("Cast", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity"),
        *("MaxPool", "ReduceMax", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    ]
)
"""What only selects values of its first input, or zero, which every grid has."""
FOLLOWERS = frozenset(
    [
        *("Abs", "Add", "BatchNormalization", "Cast", "Celu", "Clip", "Div", "Elu", "Erf"),
        *("Exp", "Flatten", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log"),
        *("Max", "Min", "Mish", "Mul", "Neg", "Pow", "PRelu", "Reciprocal", "Relu", "Reshape"),
        *("Selu", "Sigmoid", "Softplus", "Sqrt", "Squeeze", "Sub", "Swish", "Tanh"),
        *("Transpose", "Unsqueeze"),
    ]
)
"""What a layer's output may pass before it is rounded, if nothing else is mixed into it."""


class Widths:
    """Bits of the codes that the values of a file are made of, None where there are none."""

    def __init__(self, graph: onnx.GraphProto, constants: Constants) -> None:
        self.constants = constants
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def read(self, name: str) -> int | None:
        """Bits of a value that was dequantized and then at most moved, masked or padded."""
        node = self.constants.producer.get(name)
        if node is None or name in self.constants:
            return None
        if node.op_type == "DequantizeLinear":
            return self._bits(node.input[0], node)
        if node.op_type == "Concat":
            return widest(self.read(part) for part in node.input)
        if node.op_type == "Mul":
            parts = [part for part in node.input if not self._zeros_and_ones(part)]
            return self.read(parts[0]) if len(parts) == 1 else None
        if node.op_type == "Pad":
            value = self.constants.array(node.input[2]) if "".join(node.input[2:3]) else 0
            return None if value is None or np.any(value) else self.read(node.input[0])
        return self.read(node.input[0]) if node.op_type in MOVERS else None

    def written(self, name: str) -> int | None:
        """Bits of the only form in which a layer's output is kept."""
        own, waiting, nodes = {name}, [name], []
        bits: list[int | None] = []
        while waiting:
            value = waiting.pop()
            if value in self.outputs or value not in self.readers:
                return None
            for node in self.readers[value]:
                if node.op_type == "QuantizeLinear":
                    bits.append(self._bits(self._clipped(node.output[0]), node))
                elif node.op_type in FOLLOWERS:
                    nodes.append(node)
                    waiting += [result for result in node.output if result not in own]
                    own |= set(node.output)
                else:
                    return None
        inputs = {part for node in nodes for part in node.input if part}
        return widest(bits) if all(n in own or n in self.constants for n in inputs) else None

    def _zeros_and_ones(self, name: str) -> bool:
        array = self.constants.array(name)
        node = self.constants.producer.get(name)
        if array is None and node is not None and node.op_type == "Expand":
            array = self.constants.array(node.input[0])  # repeated over the batch
        return array is not None and bool(np.isin(array, (0, 1)).all())

    def _clipped(self, codes: str) -> str:
        nodes = self.readers.get(codes, [])
        return nodes[0].output[0] if len(nodes) == 1 and nodes[0].op_type == "Clip" else codes

    def _bits(self, codes: str, node: onnx.NodeProto) -> int | None:
        """Bits of codes with the zero point of that node; fewer where they are clipped."""
        zero = self.constants.array(node.input[2]) if len(node.input) > 2 else None
        if "output_dtype" in attributes_of(node) or (zero is None and len(node.input) > 2):
            return None
        name = "uint8" if zero is None else zero.dtype.name
        bits = int(name.lstrip("uint"))
        low = 0 if name.startswith("u") else -(2 ** (bits - 1))
        limits = self._limits(codes, low, low + 2**bits - 1)
        return max(1, (limits[1] - limits[0]).bit_length())

    def _limits(self, codes: str, low: int, high: int) -> tuple[int, int]:
        """The codes that a value can have, of those from low to high."""
        node = self.constants.producer.get(codes)
        if node is not None and node.op_type == "Clip":
            ends = [self.constants.array(name) if name else None for name in node.input[1:]]
            known = [None if end is None else int(end.reshape(())) for end in (*ends, None, None)]
            lower, upper = (low if known[0] is None else known[0], known[1])
            return max(low, lower), high if upper is None else min(high, upper)
        if node is not None and node.op_type == "Concat":
            parts = [self._limits(part, low, high) for part in node.input]
            return min(first for first, _ in parts), max(last for _, last in parts)
        if node is not None and node.op_type == "Pad":
            value = self.constants.array(node.input[2]) if "".join(node.input[2:3]) else None
            inner = self._limits(node.input[0], low, high)
            code = 0 if value is None else int(value.reshape(()))
            return min(inner[0], code), max(inner[1], code)
        moved = node is not None and node.op_type in MOVERS
        return self._limits(node.input[0], low, high) if moved and node else (low, high)


def widest(bits: Iterable[int | None]) -> int | None:
    """The most bits; None where one of them is None, or there are none."""
    found = list(bits)
    known = [each for each in found if each is not None]
    return max(known) if known and len(known) == len(found) else None
