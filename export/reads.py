"""What the products of a file read and write beside their weight: input masks, quantized values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from export.code_ranges import (
    LAYOUTS,
    MOVING,
    bits_of,
    clipped_codes,
    codes_read,
    codes_written,
)
from export.constant_operators import Array
from export.constants import Constants

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# What a runtime computes together with the layer before it, where all of it depends on that layer.
_FUSED = LAYOUTS | {
    *("Flatten", "Add", "Sub", "Mul", "Div", "Min", "Max", "Neg", "Abs", "Pow", "Exp", "Log"),
    *("Sqrt", "Reciprocal", "Erf", "BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu"),
    *("Elu", "Selu", "Celu", "Gelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Softplus"),
    *("Mish", "Swish"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """The activations of one product.

    Attributes:
        factor: The constant that multiplies the input of a convolution, `None` where there is
            none. An input mask is one.
        inputs: Bits of the codes that the input is made of; `None` where it is not quantized.
        outputs: Bits of the codes that are all that is kept of the output, after a bias and an
            activation function at most; `None` where anything else reads it.
    """

    factor: Array | None = None
    inputs: int | None = None
    outputs: int | None = None


class Reads:
    """Looks around the products of one file.

    Args:
        model: The file.
        constants: Its constants.
    """

    def __init__(self, model: onnx.ModelProto, constants: Constants) -> None:
        self._constants = constants
        self._producers = constants.producers
        self._nodes = list(model.graph.node)
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._known: dict[str, int | None] = {}

    def by_weight(self) -> dict[str, tuple[Read, ...]]:
        """One entry per product that reads a constant, under every name on the way to it."""
        found: dict[str, tuple[Read, ...]] = {}
        for node in self._nodes:
            if node.op_type not in PRODUCTS:
                continue
            operands = _operands(node)
            weights = [name for name in operands if name in self._constants]
            if not weights:
                continue
            read = self._read(node, [name for name in operands if name not in weights])
            for name in {name for weight in weights for name in self._views(weight)}:
                found[name] = (*found.get(name, ()), read)
        return found

    def factor(self, node: onnx.NodeProto) -> Array | None:
        """The constant that multiplies the input of a convolution, `None` where there is none."""
        source = self._producers.get(self._unrounded(node.input[0]))
        if node.op_type not in _CONVOLUTIONS or source is None or source.op_type != "Mul":
            return None
        factors = [self._repeated(name) for name in source.input]
        known = [array for array in factors if array is not None]
        return known[0] if len(known) == 1 else None

    def input_bits(self, name: str) -> int | None:
        """Bits of a value that comes from DequantizeLinear through what only moves values."""
        if name not in self._known:
            node = self._producers.get(name)
            self._known[name] = None if node is None else self._from(node)
        return self._known[name]

    def output_bits(self, output: str) -> int | None:
        """Bits of the quantizers that alone read a value, or what is fused into it."""
        inside, pending, fused = {output, ""}, [output], []
        found: list[int | None] = []
        while pending:
            name = pending.pop()
            readers = self._readers.get(name, [])
            if name in self._outputs or not readers:
                return None
            for node in readers:
                if node.op_type == "QuantizeLinear":
                    found.append(self._kept_bits(node))
                elif node.op_type not in _FUSED:
                    return None
                elif node.output[0] not in inside:
                    fused.append(node)
                    inside.add(node.output[0])
                    pending.append(node.output[0])
        own = all(n in inside or n in self._constants for node in fused for n in node.input)
        return _widest(found) if own else None

    def _read(self, node: onnx.NodeProto, sources: list[str]) -> Read:
        if node.op_type in _RECURRENT:
            return Read()
        inputs = _widest(self.input_bits(name) for name in sources)
        return Read(self.factor(node), inputs, self.output_bits(node.output[0]))

    def _views(self, weight: str) -> list[str]:
        """A constant, and what it is a view of."""
        names = [weight]
        while (node := self._producers.get(names[-1])) is not None and node.op_type in LAYOUTS:
            names.append(node.input[0])
        return names

    def _from(self, node: onnx.NodeProto) -> int | None:
        if node.op_type == "DequantizeLinear":
            return bits_of(codes_read(node, self._constants))
        if node.op_type == "Concat":
            return _widest(self.input_bits(name) for name in node.input)
        if node.op_type == "Mul":
            others = [name for name in node.input if not self._is_mask(name)]
            return self.input_bits(others[0]) if len(others) == 1 else None
        zeros = node.op_type == "Pad" and self._pads_zeros(node)
        return self.input_bits(node.input[0]) if zeros or node.op_type in MOVING else None

    def _is_mask(self, name: str) -> bool:
        array = self._repeated(name)
        return array is not None and bool(((array == 0) | (array == 1)).all())

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        if len(node.input) < 3 or not node.input[2]:
            return True
        value = self._constants.get(node.input[2])
        return value is not None and not value.values.any()

    def _kept_bits(self, node: onnx.NodeProto) -> int | None:
        """Bits of what QuantizeLinear writes, or of what a Clip of its codes leaves of that."""
        readers = self._readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Clip":
            return bits_of(clipped_codes(readers[0], self._constants))
        return bits_of(codes_written(node, self._constants))

    def _unrounded(self, name: str) -> str:
        """The value before it was quantized: zeros that a mask makes are codes of zero."""
        node = self._producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return name
        while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear", "Clip"):
            name = node.input[0]
            node = self._producers.get(name)
        return name

    def _repeated(self, name: str) -> Array | None:
        """A constant, or the value for one sample of one that is repeated over the batch."""
        constant = self._constants.get(name)
        if constant is not None:
            return constant.values
        node = self._producers.get(name)
        if node is None or node.op_type not in ("Identity", "Cast", "Expand", "Reshape"):
            return None
        value = self._repeated(node.input[0])
        if node.op_type != "Reshape" or value is None:
            return value
        shape = self._constants.get(node.input[1])
        if shape is None or 0 in shape.values:
            return None
        return value.reshape(tuple(shape.values.tolist()))


def _operands(node: onnx.NodeProto) -> list[str]:
    """What a product multiplies, without its bias."""
    if node.op_type == "Einsum":
        return list(node.input)
    return list(node.input[1:3] if node.op_type in _RECURRENT else node.input[:2])


def _widest(bits: Iterable[int | None]) -> int | None:
    """The most bits; `None`, a whole word, where one is that or there is nothing."""
    found = list(bits)
    return None if None in found else max((b for b in found if b is not None), default=None)
