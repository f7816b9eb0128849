"""Quantizers of activations on their way through the exporter: opaque nodes, one per call.

`torch.onnx.export` would turn a quantizer into a dozen float operators, and its optimizer would
rearrange them. A node of a domain of our own passes through untouched; afterwards it is replaced by
QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from passes.quantize.activations import ActivationQuantizer
from passes.rewrite.quantizer_calls import quantizers, replace_quantizers

DOMAIN = "transform"
OPERATOR = "Quantizer"


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of an activation: `(code - zero) * scale`, codes from `low` to `high`.

    Attributes:
        scale: Width of a step.
        zero: The code of 0.
        low: Smallest code.
        high: Largest code.
    """

    scale: float
    zero: int
    low: int
    high: int

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> Grid:
        """The grid of a quantizer that has its range."""
        scale, zero = float(quantizer.scale), int(quantizer.zero_point)
        return cls(scale, zero, quantizer.low, quantizer.high)

    @property
    def signed(self) -> bool:
        """Whether codes are stored as int8; otherwise as uint8."""
        return self.low < 0

    @property
    def narrow(self) -> bool:
        """Whether there are fewer codes than the eight bits that they are stored in hold."""
        return self.high - self.low < 255


@dataclass(frozen=True, slots=True)
class Mark:
    """One call of a quantizer.

    Attributes:
        path: The quantizer, as a submodule of the model.
        call: Which of its calls this is, from 0.
        grid: Its grid.
    """

    path: str
    call: int
    grid: Grid


class Marker(nn.Module):
    """Stands for one call of a quantizer.

    Args:
        index: Position of the call in the list of marks.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, values: Tensor) -> Tensor:
        """A tensor of the same shape and type; its values have no meaning."""
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}",
            (values,),
            attrs={"index": self.index},
            dtype=values.dtype,
            shape=values.shape,
            version=1,
        )
        return marked


def marked(module: nn.Module) -> tuple[nn.Module, tuple[Mark, ...]]:
    """Replace every call of a quantizer by a marker.

    Args:
        module: A frozen module; it is not changed.

    Returns:
        The module to export, and what its markers stand for, by their `index`. Quantizers without
        a range pass everything on: they are left out.
    """
    replaced, paths = replace_quantizers(module, Marker)
    found = quantizers(module)
    marks = [
        Mark(path, paths[:index].count(path), Grid.of(found[path]))
        for index, path in enumerate(paths)
    ]
    return replaced, tuple(marks)


def bypassed(module: nn.Module, paths: Iterable[str] | None = None) -> nn.Module:
    """A copy in which quantizers pass everything on unchanged.

    Args:
        module: The model; itself, not a copy, is returned where nothing changes.
        paths: Those to bypass; by default all.
    """
    chosen = set(quantizers(module) if paths is None else paths)
    if not chosen:
        return module
    module = copy.deepcopy(module)
    for path, quantizer in quantizers(module).items():
        if path in chosen:
            quantizer.ready.fill_(False)
    return module


def index_of(node: onnx.NodeProto) -> int | None:
    """The index of a marker; `None` for any other node."""
    if node.domain != DOMAIN or node.op_type != OPERATOR:
        return None
    return int(next(item.i for item in node.attribute if item.name == "index"))
