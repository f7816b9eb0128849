"""Weights as codes: `N` becomes `N_codes`, `N_scale` and a DequantizeLinear that computes `N`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from energy_model.errors import ExportError
from export.onnx_graph import Array, Node, Rewriter, attributes
from export.qdq_markers import weight_of
from passes.graph import Site
from passes.quantize.encoding import Encoding
from passes.rewrite.freeze import in_rows

PACKED_BITS = 4
"""Codes of so many bits or fewer are stored two in a byte."""
_FUSED_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "HardSigmoid", "Softplus", "Softsign"}
    | {"ThresholdedRelu"}
)
_INT4_OPSET, _INT2_OPSET = 21, 25


@dataclass(frozen=True, slots=True)
class Held:
    """The weight of a site in a float file, and its codes.

    Attributes:
        name: The initialiser.
        sites: The sites; the exporter merges weights that are equal, as those of copied layers are.
        codes: int8 in the layout of the initialiser.
        scale: float32 `(rows, blocks)`: a row per output channel.
        axis: Dimension of the output channels in that layout.
        block: Elements of a row that share a scale; `None`: all.
        bits: Width of a code as the method chose it.
    """

    name: str
    sites: tuple[str, ...]
    codes: Array
    scale: Array
    axis: int
    block: int | None
    bits: int

    @property
    def packed(self) -> bool:
        """Whether its codes are stored in less than a byte each."""
        return bool(self.bits <= PACKED_BITS)

    @property
    def rows(self) -> Array:
        """The scale of every output channel; only for weights without blocks."""
        return self.scale[:, 0]

    def along_rows(self, values: Array) -> Array:
        """Values of the output channels in a shape that broadcasts against the codes."""
        shape = [-1 if axis == self.axis else 1 for axis in range(self.codes.ndim)]
        return values.reshape(shape)

    def turned(self) -> Held:
        """The transposed matrix."""
        return replace(self, codes=self.codes.T, axis=1 - self.axis)


def held_weights(
    rewriter: Rewriter,
    sites: Iterable[Site],
    weights: Mapping[str, Tensor],
    encodings: Mapping[str, Encoding],
) -> dict[str, Held]:
    """Find the encoded weights of layers in a float file, by name or else by their elements.

    Args:
        rewriter: The float file.
        sites: Sites to look for.
        weights: Their frozen weights.
        encodings: How these are written.

    Returns:
        By name of the initialiser. A weight can be found twice, as it is and transposed. Of sites
        with equal weights the grid with the fewest bits holds the codes of all.
    """
    names = dict.fromkeys(n for node in rewriter.nodes if (n := weight_of(node, rewriter)))
    encoded = [site for site in sites if site.name in encodings]
    found: dict[str, Held] = {}
    for name in names:
        array = rewriter.array(name)
        if array is None or array.dtype != np.float32:
            continue
        same_size = [site for site in encoded if weights[site.name].numel() == array.size]
        matching: list[Held] = []
        for site in sorted(same_size, key=lambda s: name not in _paths(s)):
            held = _held(name, site, array, weights[site.name], encodings[site.name])
            matching += [] if held is None else [held]
        if matching:
            equal = tuple(held.sites[0] for held in matching)
            found[name] = replace(min(matching, key=lambda held: held.bits), sites=equal)
    return found


def _paths(site: Site) -> set[str]:
    return {f"{module}.{name}" if module else name for module, name in site.owners}


def _held(name: str, site: Site, array: Array, weight: Tensor, encoding: Encoding) -> Held | None:
    """The weight as it lies in an array that holds it, straight or transposed."""
    weight = in_rows(weight, encoding).cpu()
    values = weight.contiguous().numpy()
    rows = weight.shape[encoding.axis]
    scale = encoding.scale.cpu().numpy()
    scale = np.broadcast_to(scale, (rows, scale.shape[1]))
    straight = values.shape == array.shape and np.array_equal(values, array)
    if not straight and not (values.ndim == 2 and np.array_equal(values.T, array)):
        return None
    codes = encoding.codes(weight).numpy()
    held = Held(name, (site.name,), codes, scale, encoding.axis, encoding.block, encoding.bits)
    return held if straight else held.turned()


def separated(rewriter: Rewriter, held: Mapping[str, Held]) -> dict[str, Held]:
    """Give sites with equal weights, merged by the exporter, a weight each again.

    ONNX Runtime multiplies codes (MatMulNBits) only where one layer alone reads them. A weight that
    is tied stays one: it is one site.

    Args:
        rewriter: The float file.
        held: What `held_weights` found in it.

    Returns:
        The same with the new initialisers, by name.
    """
    found = dict(held)
    for name, item in held.items():
        readers = [node for node in rewriter.nodes if weight_of(node, rewriter) == name]
        values = numpy_helper.to_array(rewriter.stored[name])
        for node, site in zip(readers[1:], item.sites[1:], strict=False):
            copied = rewriter.store(rewriter.fresh(f"{site}.weight"), values)
            node.input[1] = copied
            found[copied] = replace(item, name=copied)
    return found


def as_products(rewriter: Rewriter, held: Held, *, integer: bool = False) -> Held:
    """Write the Gemm nodes that read a weight as MatMul and Add.

    ONNX Runtime multiplies codes of weights (MatMulNBits) in a MatMul, never in a Gemm.

    Args:
        rewriter: The file.
        held: The weight.
        integer: The inputs are rounded too.

    Returns:
        The weight in the layout that they read now.
    """
    readers = [node for node in rewriter.nodes if held.name in node.input]
    if not all(_is_plain_gemm(node, held) for node in readers):
        return held
    turned = bool(attributes(readers[0]).get("transB", 0))
    if any(bool(attributes(node).get("transB", 0)) != turned for node in readers):
        return held
    for node in readers:
        rewriter.remove(node)
        output, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
        product = rewriter.fresh(f"{output}_product") if bias else output
        rewriter.add("MatMul", [node.input[0], held.name], product)
        if bias:
            _add_bias(rewriter, product, bias, output, integer)
    return held.turned() if turned else held


def _add_bias(rewriter: Rewriter, product: str, bias: str, output: str, integer: bool) -> None:
    """Add a bias to a product of codes.

    ONNX Runtime makes a float Gemm of MatMul, Add and an activation before it looks for codes, and
    of MatMul and Add alone before it looks for products of integers. It does not see through a
    subtraction of the negative, which is the same number bit for bit.
    """
    values, after = rewriter.array(bias), rewriter.readers().get(output, [])
    fused = integer or any(node.op_type in _FUSED_ACTIVATIONS for node in after)
    if values is None or not fused:
        rewriter.add("Add", [product, bias], output)
        return
    negative = f"{bias}_negative"
    rewriter.add("Sub", [product, rewriter.store(negative, -values)], output)


def _is_plain_gemm(node: Node, held: Held) -> bool:
    found = attributes(node)
    plain = (found.get("transA", 0), found.get("alpha", 1.0), found.get("beta", 1.0)) == (0, 1, 1)
    return node.op_type == "Gemm" and plain and list(node.input).index(held.name) == 1


def require_opset(encodings: Mapping[str, Encoding], opset: int, where: str) -> None:
    """Raise where an opset cannot express how a weight is written.

    Args:
        encodings: By site.
        opset: Version of the ONNX operators.
        where: The file, for the error.

    Raises:
        ExportError: Blocks of scales, or codes of four bits, below opset 21.
    """
    for site, item in encodings.items() if opset < _INT4_OPSET else ():
        packed = item.bits <= PACKED_BITS
        if not packed and item.block is None:
            continue
        what = f"codes of {item.bits} bits" if packed else f"blocks of {item.block} weights"
        raise ExportError(
            f"{site} has {what}, which opset {opset} cannot express",
            where=where,
            remedy=f"Export with opset={_INT4_OPSET} or later, or quantize to more than "
            f"{PACKED_BITS} bits and without blocks.",
        )


def write_weight(rewriter: Rewriter, held: Held, opset: int, *, integer: bool) -> list[str]:
    """Replace a float initialiser by its codes and scales.

    Args:
        rewriter: The file.
        held: The weight.
        opset: Decides on the packed types.
        integer: A layer that runs in integers reads it: packed codes are widened to int8, which a
            runtime does once, when it loads the file.

    Returns:
        Names of the codes: as they are stored, and widened.
    """
    name = held.name
    matrix = held.block is not None and held.codes.ndim > 2
    codes = _matrix(held.codes, held.axis) if matrix else held.codes
    axis = 0 if matrix else held.axis
    source = rewriter.fresh(f"{name}_codes")
    names = [source]
    del rewriter.stored[name]
    rewriter.store(source, _tensor(codes, source, held.bits, opset))
    if integer and held.packed:
        wide = rewriter.fresh(f"{name}_int8")
        rewriter.add("Cast", [source], wide, to=TensorProto.INT8)
        source = wide
        names.append(wide)
    output = rewriter.fresh(f"{name}_matrix") if matrix else name
    scale = rewriter.fresh(f"{name}_scale")
    if held.block is None:
        rewriter.store(scale, held.rows)
        # ONNX Runtime takes a layer for one of integers only where its zero points are written.
        # Layers cannot share them: with x64quantprecision it shifts every layer's own.
        zeros = [rewriter.fresh(f"{name}_zero_point")] if integer else []
        for zero in zeros:
            rewriter.store(zero, np.zeros(len(held.scale), dtype=np.int8))
        rewriter.add("DequantizeLinear", [source, scale, *zeros], output, axis=axis)
    else:
        rewriter.store(scale, held.scale if axis == 0 else held.scale.T)
        inputs = [source, scale]
        rewriter.add("DequantizeLinear", inputs, output, axis=1 - axis, block_size=held.block)
    if matrix:
        _from_matrix(rewriter, held, output)
    return names


def _matrix(codes: Array, axis: int) -> Array:
    return np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)


def _from_matrix(rewriter: Rewriter, held: Held, matrix: str) -> None:
    """Blocks of a convolution's rows cross its kernel: only as a matrix have they an axis."""
    rest = [size for axis, size in enumerate(held.codes.shape) if axis != held.axis]
    shape = rewriter.fresh(f"{held.name}_shape")
    rewriter.store(shape, np.array([held.codes.shape[held.axis], *rest], dtype=np.int64))
    moved = rewriter.fresh(f"{held.name}_moved") if held.axis else held.name
    rewriter.add("Reshape", [matrix, shape], moved)
    if held.axis:
        order = [*range(1, held.axis + 1), 0, *range(held.axis + 1, held.codes.ndim)]
        rewriter.add("Transpose", [moved], held.name, perm=order)


def _tensor(codes: Array, name: str, bits: int, opset: int) -> onnx.TensorProto:
    """The codes as int8, or packed into four or two bits."""
    kind = TensorProto.INT8
    if bits <= PACKED_BITS:
        kind = TensorProto.INT2 if bits == 2 and opset >= _INT2_OPSET else TensorProto.INT4
    narrow = helper.tensor_dtype_to_np_dtype(kind)
    return numpy_helper.from_array(np.ascontiguousarray(codes).astype(narrow), name)
