"""The layers of an ONNX file and what they cost, for `check_certificate.py`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.certificate_constants import Array, Constants, UnreadableError, Value, attributes_of
from bench.certificate_energy import (
    ENERGY,
    MACS,
    Axis,
    Bits,
    Number,
    Support,
    Use,
    energy_of,
    totals,
)
from bench.certificate_shapes import Shape, inferred_shapes
from bench.certificate_widths import Widths, widest

VIEWS = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
FLOATS = tuple(getattr(onnx.TensorProto, n) for n in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"))
WORDS = Bits()

Counts = dict[str, Number]
Weights = dict[str, "Weight"]


class UnusableInputError(Exception):
    """The certificate or the ONNX file cannot be read at all."""


class Weight(NamedTuple):
    """A weight as the file stores it: `bits` each, and if `coded` on a grid of `needed` bits."""

    elements: int
    nonzeros: int
    bits: int
    coded: bool = False
    needed: int = 0

    def holds(self, claimed: int) -> bool:
        """Whether an element may be said to have so many bits."""
        # A grid of three bits may lie in four, and one of eight bits in four if few codes occur.
        return self.needed <= claimed <= max(self.bits, 8) if self.coded else claimed == self.bits


class Claim(NamedTuple):
    """What a certificate says of a layer: bits of a stored weight, and bits that are charged."""

    bits: int
    charged: Bits = WORDS


class Unread(NamedTuple):
    """Why a node could not be counted, and the weights that it reads."""

    why: str
    weights: frozenset[str]


class Graph:
    """An ONNX graph: its constants, its shapes at batch 1, and the uses of its weights.

    After `uses`, `weights` has all weights by name, `aliases` that name by every other name on the
    way to it, and `unread`, by the node's name, why its use cannot be told and of which weights.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = Constants(model.graph)
        self.producer = self.constants.producer
        self.widths = Widths(model.graph, self.constants)
        self.shapes = inferred_shapes(model)
        self.weights: Weights = {}
        self.aliases: dict[str, str] = {}
        self.unread: dict[str, Unread] = {}

    def shape(self, name: str) -> Shape:
        """Shape of a value at batch 1."""
        if name in self.shapes:
            return self.shapes[name]
        raise UnreadableError(f"the shape of {name!r} is unknown at batch 1")

    def constant(self, name: str, through: tuple[str, ...] = VIEWS) -> Value | None:
        """What the file stores behind a value, seen through views; None for a computed one."""
        if (value := self.constants.get(name)) is not None:
            return value
        node = self.producer.get(name)
        found = self.constant(node.input[0], through) if node and node.op_type in through else None
        if found is None or node is None or node.op_type in ("Identity", "Cast", "Expand"):
            return found
        if node.op_type == "Transpose":
            turned = found.array.transpose(attributes_of(node).get("perm"))
            return found._replace(array=turned)
        return found._replace(array=found.array.reshape(self.shape(name)))

    def support(self, name: str) -> tuple[str, Support] | None:
        """Name and support of a stored weight, noted in `weights`; None for a computed value."""
        if (value := self.constant(name)) is None:
            return None
        support = np.asarray(value.array != 0)
        nonzeros = int(np.count_nonzero(support))
        return self._noted(value, Weight(support.size, nonzeros, *_width(value))), support

    def _noted(self, value: Value, weight: Weight) -> str:
        root = value.names[-1]
        self.weights.setdefault(root, weight)
        self.aliases |= dict.fromkeys(value.names, root)
        return root

    def uses(self) -> Iterator[Use]:
        """Every use of a stored weight by a convolution, matrix product or recurrent layer."""
        for node in self.nodes:
            try:
                yield from [use._replace(bits=self._bits(use, node)) for use in self._uses(node)]
            except UnreadableError as error:
                weights = {self.aliases[name] for name in node.input if name in self.aliases}
                self.unread[node.name or node.output[0]] = Unread(str(error), frozenset(weights))

    def _uses(self, node: onnx.NodeProto) -> Iterator[Use]:
        if node.op_type in ("Gemm", "MatMul"):
            yield from self._column_groups(node) or self._product(node)
        elif node.op_type == "Einsum":
            yield from self._einsum(node)
        elif node.op_type in ("Conv", "ConvTranspose"):
            yield from self._convolution(node)
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            yield from self._recurrent(node)

    def _bits(self, use: Use, node: onnx.NodeProto) -> Bits:
        """Bits of a use's operands as they lie in the file."""
        weight = self.weights[use.weight]
        wide = weight.bits if weight.coded else None
        if node.op_type in ("LSTM", "GRU", "RNN"):
            return Bits(wide)
        sources = node.input if node.op_type == "Einsum" else node.input[:2]
        others = [name for name in sources if self.constant(name) is None]
        read = widest(self.widths.read(name) for name in others)
        return Bits(wide, read, self.widths.written(node.output[0]))

    def _product(self, node: onnx.NodeProto) -> Iterator[Use]:
        left, right = (self.constant(name) is not None for name in node.input[:2])
        found = self.support(node.input[0 if left else 1]) if left != right else None
        if found is None:
            return
        name, support = found
        support = support if support.ndim > 1 else np.expand_dims(support, 0 if left else 1)
        # (out, in) stands left of the activation, (in, out) right of it.
        if bool(attributes_of(node).get("transA" if left else "transB")) == left:
            support = support.swapaxes(-1, -2)
        matrix = support.reshape(-1, *support.shape[-2:])
        outputs = math.prod(self.shape(node.output[0]))
        yield _tokens(name, matrix, outputs // math.prod(matrix.shape[:2]))

    def _einsum(self, node: onnx.NodeProto) -> Iterator[Use]:
        """A product of a stored weight and one activation, each label in at least two places."""
        stored = [self.constant(name) is not None for name in node.input]
        if not any(stored) or all(stored):
            return
        equation = attributes_of(node)["equation"].decode().replace(" ", "")
        left, _, result = equation.partition("->")
        labels = left.split(",")
        plain = sorted(stored) == [False, True] and "." not in equation and "->" in equation
        place = stored.index(True)
        found = self.support(node.input[place])
        if not plain or found is None or len(set(labels[place])) < len(labels[place]):
            raise UnreadableError(f"the equation {equation!r} is no plain product")
        (name, support), own, other = found, labels[place], labels[1 - place]
        shared = [x for x in own if x in other and x in result]
        outputs = [x for x in own if x not in other and x in result]
        inputs = [x for x in own if x in other and x not in result]
        ordered = [own.index(x) for x in (*shared, *outputs, *inputs)]
        if len(ordered) < len(own) or any(x not in result and x not in own for x in other):
            raise UnreadableError(f"the equation {equation!r} sums one operand alone")
        sizes = dict(zip(other, self.shape(node.input[1 - place]), strict=True))
        parts = [math.prod(support.shape[own.index(x)] for x in part) for part in (shared, outputs)]
        positions = math.prod(size for x, size in sizes.items() if x not in own)
        yield _tokens(name, support.transpose(ordered).reshape(*parts, -1), positions)

    def _column_groups(self, node: onnx.NodeProto) -> list[Use]:
        """Blocks (groups, rows, k) times inputs gathered by (groups, k), as the whole weight."""
        gather = self.producer.get(node.input[1], node)
        gather = self.producer.get(gather.input[0], node) if gather.op_type == "Reshape" else gather
        axis = attributes_of(gather).get("axis", 0)
        if gather.op_type != "Gather" or axis not in (0, 1):
            return []
        value, columns = self.constants.get(node.input[0]), self.constants.array(gather.input[1])
        if value is None or columns is None or (value.array.ndim, columns.ndim) != (3, 2):
            return []
        dims = self.shape(gather.input[0])  # (c, *positions), or (batch, c, *sizes) on axis 1
        full = np.zeros((*value.array.shape[:2], dims[axis]), bool)
        np.put_along_axis(full, columns[:, None].astype(np.int64), value.array != 0, axis=2)
        if (count := int(full.sum())) != np.count_nonzero(value.array):
            raise UnusableInputError(f"a group of {node.input[0]!r} has an input twice")
        name = self._noted(value, Weight(full.size, count, *_width(value)))
        rest = dims[2:] if axis else (math.prod(dims[1:]),)
        matrix = full.reshape(1, -1, dims[axis], *[1] * len(rest))
        return [_tokens(name, matrix, *rest, linear=not axis)]

    def _recurrent(self, node: onnx.NodeProto) -> Iterator[Use]:
        kernels, recurrences = (self.support(name) for name in node.input[1:3])
        if kernels is None or recurrences is None:
            return
        steps = math.prod(self.shape(node.input[0])[:2])
        for kernel, recurrence in zip(kernels[1], recurrences[1], strict=True):
            yield _tokens(kernels[0], kernel[None], steps)
            each = _tokens(recurrences[0], recurrence[None], 1)
            yield each._replace(times=steps)  # each step needs the last

    def _convolution(self, node: onnx.NodeProto) -> Iterator[Use]:
        source, found, attributes = node.input[0], self.support(node.input[1]), attributes_of(node)
        if found is None:
            return
        name, support = found
        kernel = support.shape[2:]
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
            raise UnreadableError(f"node {node.name!r} leaves its padding to the runtime")
        spacing = ones = [1] * len(kernel)
        strides, dilations = (attributes.get(key, ones) for key in ("strides", "dilations"))
        pads = np.array(attributes.get("pads", [0, 0] * len(kernel))).reshape(2, -1).T
        support = support.reshape(attributes.get("group", 1), -1, *support.shape[1:])
        if node.op_type == "Conv":
            source, extra = self._padding_before(source, len(kernel))
            pads = pads + extra
        else:
            # The equivalent gather: zeros between the inputs, the kernel mirrored, stride 1.
            support = np.flip(support.swapaxes(1, 2), axis=tuple(range(3, support.ndim)))
            pads = np.multiply(dilations, np.subtract(kernel, 1))[:, None] - pads
            pads[:, 1] += attributes.get("output_padding", 0)
            spacing, strides = strides, ones
        batch, _, *sizes = self.shape(source)
        sources = map(_gathered, sizes, spacing, pads.tolist())
        axes = tuple(map(Axis, sources, kernel, strides, dilations))
        macs = None if node.op_type == "Conv" else math.prod(sizes)
        inputs = self._inputs(source)
        yield Use(support, inputs, axes, mac_positions=macs, times=batch, weight=name)

    def _inputs(self, name: str) -> Support:
        """Inputs of a Conv that are ever nonzero: a Mul with a constant of one sample's shape."""
        sample = self.shape(name)[1:]
        node, _ = self._unrounded(name)
        if node is not None and node.op_type == "Mul":
            stored = (self.constant(factor, (*VIEWS, "Expand")) for factor in node.input)
            factors = [found.array for found in stored if found]
            if len(factors) == 1 and factors[0].shape in (sample, (1, *sample)):
                return np.asarray(factors[0] != 0).reshape(sample)
        return np.ones((1, *sample[1:]), bool)

    def _unrounded(self, name: str) -> tuple[onnx.NodeProto | None, Array | float]:
        """The node behind roundings of a value, and what stands for zero in its output."""
        node, zero = self.producer.get(name), None
        while node is not None:
            if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
                zero = np.zeros(()) if node.op_type == "DequantizeLinear" else None
                if zero is not None and len(node.input) > 2:
                    zero = self.constants.array(node.input[2])
            elif node.op_type != "Clip" or zero is None:
                break
            node = self.producer.get(node.input[0])
        return node, 0.0 if zero is None else zero

    def _padding_before(self, name: str, axes: int) -> tuple[str, NDArray[np.int64]]:
        """What a zero-valued spatial Pad before a Conv pads, and by how much, shape (axes, 2)."""
        nothing = np.zeros((axes, 2), dtype=np.int64)
        node, zero = self._unrounded(name)
        if node is None or node.op_type != "Pad":
            return name, nothing
        inputs = [self.constant(value) if value else ("", None) for value in node.input[1:]]
        if None in inputs or attributes_of(node).get("mode", b"constant") != b"constant":
            return name, nothing
        arrays = [found.array if isinstance(found, Value) else None for found in inputs]
        amounts, value, named = (*arrays, None, None)[:3]
        table = np.zeros((axes + 2, 2), dtype=np.int64)
        table[slice(None) if named is None else named] = np.array(amounts).reshape(2, -1).T
        foreign = np.any((0 if value is None else value) != zero)
        foreign = foreign or table[:2].any() or (table < 0).any()
        return (name, nothing) if foreign else (node.input[0], table[2:])


def _width(value: Value) -> tuple[int, bool, int]:
    return value.bits, value.coded, value.needed if value.coded else value.bits


def _tokens(name: str, matrix: Support, *sizes: int, linear: bool = True) -> Use:
    # Shared by many positions, a matrix is a 1 x 1 convolution with one row per position.
    axes = tuple(Axis(np.arange(size)) for size in sizes)
    return Use(matrix, np.ones((1, *sizes), bool), axes, linear, weight=name)


def _gathered(size: int, spacing: int, pads: list[int]) -> NDArray[np.int64]:
    positions = np.arange((size - 1) * spacing + 1 + sum(pads)) - pads[0]
    here = (positions % spacing == 0) & (positions >= 0) & (positions < size * spacing)
    return np.where(here, positions // spacing, -1)


class Recount(NamedTuple):
    """What a file says.

    `energy` and `counts` are totals, `bases` those of all weights in whole words without masks. By
    name of a weight: what it is, its bits as claimed, the energy of its layer, and the bits of the
    layer's operands that the file has.
    """

    energy: Counts
    counts: Counts
    bases: Counts
    weights: Weights
    bits: Mapping[str, int]
    aliases: Mapping[str, str]
    layers: Mapping[str, Counts]
    read: Mapping[str, Bits]
    unread: Mapping[str, Unread]
    digest: str


def recount(
    model: Path, hardware: Mapping[str, Any], claims: Mapping[str, Claim] | None = None
) -> Recount:
    """Count bytes, weights, MACs and modelled energy of an ONNX file, for one sample.

    `claims` say by name of a weight what is charged for it; by default what the file has.
    """
    try:
        content = model.read_bytes()
        proto = onnx.load(model)
        graph = Graph(proto)
    except Exception as error:
        # protobuf and onnx raise errors of several unrelated classes on a damaged file.
        raise UnusableInputError(f"{model}: not a readable ONNX file ({error!s:.200})") from error
    uses = list(graph.uses())
    told = {graph.aliases[name]: c for name, c in (claims or {}).items() if name in graph.aliases}
    charged = {name: claim.charged for name, claim in told.items()}
    costs = [
        (use.weight, energy_of(use._replace(bits=charged.get(use.weight, use.bits)), hardware))
        for use in uses
    ]
    whole = (use._replace(nonzero=use.nonzero | True, inputs=use.inputs | True, bits=WORDS)
             for use in uses)  # fmt: skip
    energy, kept = totals(cost for _, cost in costs), graph.weights
    bits = {name: told[name].bits if name in told else kept[name].bits for name in kept}
    floats = (tensor for tensor in proto.graph.initializer if tensor.data_type in FLOATS)
    counts: Counts = {
        **{key: energy[key] for key in MACS},
        "weights": sum(weight.elements for weight in kept.values()),
        "nonzeros": sum(weight.nonzeros for weight in kept.values()),
        "energy": energy["relaxed"],
        "weight_bits": sum(weight.nonzeros * bits[name] for name, weight in kept.items()),
        "size": len(content),
        "params": sum(math.prod(tensor.dims) for tensor in floats),
    }
    dense = totals(energy_of(use, hardware) for use in whole)["relaxed"]
    return Recount(
        {key: energy[key] for key in ENERGY},
        counts,
        {"energy": dense, "nonzeros": counts["weights"], "sparse_macs": counts["macs"]},
        kept,
        bits,
        graph.aliases,
        {name: totals(cost for weight, cost in costs if weight == name) for name in kept},
        {name: _common([use.bits for use in uses if use.weight == name]) for name in kept},
        graph.unread,
        hashlib.sha256(content).hexdigest(),
    )


def _common(bits: list[Bits]) -> Bits:
    return Bits(*(widest(each) for each in zip(*bits, strict=True))) if bits else WORDS
