"""How large a quantized model's file will be, before anything is quantized."""

from __future__ import annotations

from collections.abc import Mapping

from passes.graph import ModelGraph
from passes.quantize.eligible import rows_of

# What an exported file was seen to need, with a margin: the operator that decodes a weight, that of
# an integer bias, and those of one call of a quantizer, each with its names and small tensors.
WEIGHT_BYTES, BIAS_BYTES, QUANTIZER_BYTES = 160, 120, 450
# Names are made of that of the layer, and stand wherever a tensor is written or read.
_REPEATED = 4
_SCALE, _BIAS = 5, 4


def predicted_file_bytes(
    graph: ModelGraph,
    float_bytes: int,
    widths: Mapping[str, int],
    *,
    blocks: Mapping[str, int] | None = None,
    quantizers: int = 0,
) -> int:
    """An upper bound on the bytes of the ONNX file of a quantized model.

    Codes of up to four bits are packed two in a byte, wider ones take a byte each; every scale is a
    float32 and may have a zero point. With activations in integers, biases have scales of their
    own. Everything else is as in the file of the float model.

    Args:
        graph: The traced model; read only.
        float_bytes: Bytes of its file before.
        widths: Bits of the weights that are written as codes, by site.
        blocks: Columns that share a scale, by site; the others have a scale per output channel.
        quantizers: Calls of quantizers of activations.
    """
    total = float_bytes + QUANTIZER_BYTES * quantizers
    for name, bits in widths.items():
        site = graph.by_name[name]
        weight, part = graph.parameter(site), rows_of(graph, site)
        rows = part.stop - part.start
        block = (blocks or {}).get(name)
        scales = rows * (1 if block is None else -(-(site.size // rows) // block))
        codes = (site.size + 1) // 2 if bits <= 4 else site.size
        total += codes + _SCALE * scales - weight.element_size() * site.size
        total += WEIGHT_BYTES + _REPEATED * len(name)
        if quantizers:
            total += BIAS_BYTES + _REPEATED * len(name) + (_SCALE + _BIAS) * rows
    return total
