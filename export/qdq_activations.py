"""Markers become QuantizeLinear and DequantizeLinear, and values are moved as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.markers import Grid, Mark, index_of
from export.movers import moves_values, on_codes
from export.onnx_graph import Array, Node, Rewriter


@dataclass(frozen=True, slots=True)
class Coded:
    """A value that the file holds as codes.

    Attributes:
        codes: Name of the tensor of codes.
        scale: Name of the scale.
        zero: Name of the zero point.
        grid: The grid.
    """

    codes: str
    scale: str
    zero: str
    grid: Grid


class Quantization:
    """The roundings of a graph.

    Attributes:
        coded: Every value that is decoded from codes, by its name.
        places: Names of the values that the markers of each index put on their grid; those that
            changed nothing are left out.
    """

    def __init__(self, rewriter: Rewriter, marks: Sequence[Mark]) -> None:
        self.rewriter = rewriter
        self.marks = marks
        self.coded: dict[str, Coded] = {}
        self.places: dict[int, str] = {}
        self._constants: dict[str, tuple[str, str]] = {}

    def insert(self, places: dict[int, str]) -> None:
        """Replace every marker.

        Args:
            places: Output of the marker of every index, as it was before markers were moved.
        """
        self.places = dict(places)
        for node in list(self.rewriter.nodes):
            index = index_of(node)
            if index is not None:
                self.rewriter.remove(node)
                self._round(node, self.marks[index])

    def _round(self, node: Node, mark: Mark) -> None:
        scale, zero = self._grid(mark)
        output, grid = node.output[0], mark.grid
        codes = self.rewriter.fresh(f"{output}_codes")
        rounded = self.rewriter.fresh(f"{output}_wide") if grid.narrow else codes
        self.rewriter.add("QuantizeLinear", [node.input[0], scale, zero], rounded)
        if grid.narrow:
            # Clipping codes is exact, and leaves the layer before free to end in its rounding.
            ends = [self._code(f"{zero}_{name}", value, grid) for name, value in _ends(grid)]
            self.rewriter.add("Clip", [rounded, *ends], codes)
        self._decode(Coded(codes, scale, zero, grid), output)

    def _decode(self, coded: Coded, output: str) -> None:
        self.rewriter.add("DequantizeLinear", [coded.codes, coded.scale, coded.zero], output)
        self.coded[output] = coded

    def _grid(self, mark: Mark) -> tuple[str, str]:
        if mark.path not in self._constants:
            scale, zero = scalar(mark.grid)
            names = [self.rewriter.fresh(f"{mark.path}.{n}") for n in ("scale", "zero_point")]
            self._constants[mark.path] = (
                self.rewriter.store(names[0], scale),
                self.rewriter.store(names[1], zero),
            )
        return self._constants[mark.path]

    def _code(self, name: str, value: int, grid: Grid) -> str:
        return self.rewriter.store(name, _integer(value, grid))

    def move_codes(self) -> None:
        """Let operators that only move values move codes: decode after them, not before."""
        waiting = True
        while waiting:
            waiting = False
            for node in list(self.rewriter.nodes):
                if node.output and node.output[0] not in self.coded and self._movable(node):
                    self.rewriter.remove(node)
                    self._move(node)
                    waiting = True

    def _movable(self, node: Node) -> bool:
        if node.op_type == "Concat":
            known = [self.coded.get(name) for name in node.input]
            return all(c is not None and known[0] and c.grid == known[0].grid for c in known)
        return node.input[:1] != [] and node.input[0] in self.coded and self._moves(node)

    def _moves(self, node: Node) -> bool:
        return moves_values(node, self.rewriter)

    def _move(self, node: Node) -> None:
        first, output = self.coded[node.input[0]], node.output[0]
        codes = self.rewriter.fresh(f"{output}_codes")
        moved = on_codes(node, first.codes, first.zero, codes)
        if node.op_type == "Concat":
            for place, name in enumerate(node.input):
                moved.input[place] = self.coded[name].codes
        self.rewriter.nodes.append(moved)
        self._decode(Coded(codes, first.scale, first.zero, first.grid), output)


def scalar(grid: Grid) -> tuple[Array, Array]:
    """Scale and zero point as ONNX wants them: float32, and int8 or uint8, without dimensions."""
    return np.array(grid.scale, dtype=np.float32), _integer(grid.zero, grid)


def _integer(value: int, grid: Grid) -> Array:
    return np.array(value, dtype=np.int8 if grid.signed else np.uint8)


def _ends(grid: Grid) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("low", grid.low), ("high", grid.high)
