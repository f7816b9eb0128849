"""What ONNX Runtime really runs: the operators of the graph that it has optimized."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.onnx_graph import Node
from export.parity import open_session

FLOAT_LAYERS = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
INTEGER_LAYERS = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
    }
)


@dataclass(frozen=True, slots=True)
class Census:
    """The optimized graph of a file.

    Attributes:
        operators: How many nodes there are of each type, by name.
        decoded: Names of the initialisers whose codes are decoded to floats at every inference,
            and then multiplied as floats.
    """

    operators: Mapping[str, int]
    decoded: frozenset[str]


def take_census(path: Path | str, where: Path | str | None = None) -> Census:
    """Let ONNX Runtime optimize a file with its default options, and count what it runs.

    Args:
        path: The ONNX file.
        where: The file to name in an error, if it is not `path`.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    with tempfile.TemporaryDirectory(prefix="transform-census-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, where, optimized=optimized)
        model = onnx.load_model(str(optimized), load_external_data=False)
    nodes = list(model.graph.node)
    operators = Counter(str(node.op_type) for node in nodes)
    stored = {item.name for item in model.graph.initializer}
    return Census(dict(sorted(operators.items())), _decoded(nodes, stored))


def _decoded(nodes: list[Node], stored: set[str]) -> frozenset[str]:
    producers = {name: node for node in nodes for name in node.output}
    found: set[str] = set()
    for node in nodes:
        for name in node.input if node.op_type in FLOAT_LAYERS else ():
            source = producers.get(name)
            while source is not None and source.op_type in ("Reshape", "Transpose"):
                source = producers.get(source.input[0])
            if source is not None and source.op_type == "DequantizeLinear":
                found.update(n for n in source.input[:1] if n in stored)
    return frozenset(found)


def integer_layers(operators: Mapping[str, int]) -> int:
    """How many layers run on codes, in the counts of a census."""
    return sum(count for name, count in operators.items() if name in INTEGER_LAYERS)


def float_layers(operators: Mapping[str, int]) -> int:
    """How many convolutions and products run in float, in the counts of a census.

    Products of activations with each other, as in attention, count as well.
    """
    return sum(count for name, count in operators.items() if name in FLOAT_LAYERS)
