"""Layers that run in integers: scales that their biases fit, and biases of 32 bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from export.onnx_graph import Array, Node, Rewriter
from export.qdq_activations import Quantization
from export.qdq_weights import Held, as_products, write_weight
from passes.quantize.encoding import largest_code, snap

# Half of what 32 bits hold: the sum of the products needs room as well.
_LARGEST_BIAS = 2.0**30
# A bias is rounded to no more than this part of a step of the layer's output.
_BIAS_ERROR = 0.2
_BIASED = frozenset({"Conv", "Gemm"})
_CLIPPED = frozenset({"Relu", "Clip"})


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with a quantized input and a stored weight.

    Attributes:
        node: The layer.
        step: Width of the steps of its input.
        output_step: Width of the steps that its output is rounded to, `None` if it is not.
        bias: Name of its bias; empty without one.
        values: The bias in float64; zeros without one.
    """

    node: Node
    step: float
    output_step: float | None
    bias: str
    values: Array


def integer_layers_of(
    rewriter: Rewriter, quantization: Quantization, held: Mapping[str, Held]
) -> dict[str, list[Layer]]:
    """The layers whose input is quantized, by the name of their weight.

    Weights of which that is true for some readers only are left out, and so are those with blocks
    of scales: no product of integers takes them.
    """
    readers = rewriter.readers()
    steps = _rounded_steps(rewriter)
    found: dict[str, list[Layer]] = {}
    for name, item in held.items():
        nodes = readers.get(name, [])
        if item.block is not None or not all(n.input[0] in quantization.coded for n in nodes):
            continue
        found[name] = [
            _layer(node, item, rewriter, quantization, _output_step(node, readers, steps))
            for node in nodes
        ]
    return found


def with_float_biases(
    rewriter: Rewriter, quantization: Quantization, held: Mapping[str, Held]
) -> dict[str, Held]:
    """Write Gemm nodes as MatMul and Add where a bias of 32 bits would be visibly rounded.

    That is where the input has fewer than 8 bits, so that its steps are wide, and no rounding of
    the output hides what becomes of the bias. Call it before `integer_layers_of`.

    Returns:
        The weights, in the layouts that are read now.
    """
    readers = rewriter.readers()

    def rounds(node: Node) -> bool:
        coded = quantization.coded.get(node.input[0])
        narrow = coded is not None and coded.grid.narrow
        return narrow and _seen(node.output[0], readers, rewriter.outputs)

    return {
        name: as_products(rewriter, item, integer=True)
        if any(map(rounds, readers.get(name, [])))
        else item
        for name, item in held.items()
    }


def _seen(name: str, readers: Mapping[str, Sequence[Node]], returned: Collection[str]) -> bool:
    """Whether anything but roundings reads a value, or what is left of it after a ReLU."""
    after = readers.get(name, [])
    if name in returned or not after:
        return True
    if len(after) == 1 and after[0].op_type in _CLIPPED:
        return _seen(after[0].output[0], readers, returned)
    return any(node.op_type != "QuantizeLinear" for node in after)


def _rounded_steps(rewriter: Rewriter) -> dict[str, float]:
    """Width of the steps that a value is rounded to, by the name of the value."""
    found = {}
    for node in rewriter.nodes:
        if node.op_type == "QuantizeLinear":
            found[node.input[0]] = float(rewriter.array(node.input[1]))  # type: ignore[arg-type]
    return found


def _output_step(
    node: Node, readers: Mapping[str, Sequence[Node]], steps: Mapping[str, float]
) -> float | None:
    name = node.output[0]
    while name not in steps:
        after = readers.get(name, [])
        if len(after) != 1 or after[0].op_type not in _CLIPPED:
            return None
        name = after[0].output[0]
    return steps[name]


def _layer(
    node: Node, held: Held, rewriter: Rewriter, quantization: Quantization, output: float | None
) -> Layer:
    step = quantization.coded[node.input[0]].grid.scale
    bias = node.input[2] if node.op_type in _BIASED and len(node.input) > 2 else ""
    values = rewriter.array(bias) if bias else None
    rows = len(held.scale)
    if values is None or values.shape != (rows,):
        return Layer(node, step, output, "", np.zeros(rows))
    return Layer(node, step, output, bias, values.astype(np.float64))


def fitted(held: Held, layers: Sequence[Layer]) -> Held:
    """The weight with scales at which the biases of its layers fit into 32 bits.

    The scale of a bias is that of the input times that of the weight. Where a row's scale is so
    small that its bias would overflow (a channel that a norm has all but silenced) it is raised:
    the row's weights change by less than 2^-30 of the bias.
    """
    least = np.zeros(len(held.scale))
    for layer in layers:
        least = np.maximum(least, np.abs(layer.values) / (layer.step * _LARGEST_BIAS))
    return _raised(held, least) if np.any(held.rows < least) else held


def _raised(held: Held, least: Array) -> Held:
    needed = snap(torch.from_numpy(least * (1 + 2.0**-14)).to(torch.float32)).numpy()
    rows = np.where(held.rows < least, needed, held.rows).astype(np.float32)
    ratio = held.rows.astype(np.float64) / rows
    codes = np.rint(held.codes * held.along_rows(ratio)).astype(np.int8)
    limit = largest_code(held.bits)
    return replace(held, codes=np.clip(codes, -limit, limit), scale=rows[:, None])


def _coarse(held: Held, layer: Layer) -> bool:
    """Whether a bias in steps of its sums would be visibly off in the layer's output.

    Such a bias stays float: runtimes that add it as an integer round it themselves.
    """
    if layer.output_step is None:
        return False
    errors = (layer.step * held.rows / 2)[layer.values != 0]
    return bool(np.any(errors > layer.output_step * _BIAS_ERROR))


def write_integer_layers(
    rewriter: Rewriter, held: Held, layers: Sequence[Layer], opset: int
) -> list[str]:
    """Write a weight as codes, and the biases of its layers as 32-bit integers.

    Returns:
        Names of the codes: as they are stored, and widened.
    """
    readers = rewriter.readers()
    names = write_weight(rewriter, held, opset, integer=True)
    for layer in layers:
        # Another layer may add it to sums of another scale.
        if not layer.bias or len(readers[layer.bias]) > 1 or _coarse(held, layer):
            continue
        scale = (np.float32(layer.step) * held.rows).astype(np.float32)
        codes = np.rint(layer.values / scale.astype(np.float64)).astype(np.int32)
        inputs = [rewriter.fresh(f"{layer.bias}_{part}") for part in ("codes", "scale")]
        del rewriter.stored[layer.bias]
        rewriter.store(inputs[0], codes)
        rewriter.store(inputs[1], scale)
        rewriter.add("DequantizeLinear", inputs, layer.bias, axis=0)
    return names
