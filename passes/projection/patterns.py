"""Patterns of sparsity that runtimes can use, as users name them and as they fit a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from passes.projection.pattern_units import GroupedColumns, Layout, Runs, SingleWeights, Tiles


@dataclass(frozen=True, slots=True)
class Pattern(ABC):
    """A pattern that was asked for, before it meets a weight."""

    @abstractmethod
    def fit(self, rows: int, cols: int) -> Layout:
        """The layout of a weight `(rows, cols)`; `SingleWeights`, left dense, if it has none."""


@dataclass(frozen=True, slots=True)
class Blocks(Pattern):
    """Tiles of `height` x `width` weights."""

    height: int
    width: int

    def fit(self, rows: int, cols: int) -> Layout:
        """Tiles, if they divide both sides."""
        if rows % self.height or cols % self.width:
            why = f"blocks of {self.height} x {self.width} do not divide {rows} x {cols}"
            return SingleWeights(rows, cols, why)
        return Tiles(rows, cols, self.height, self.width)


@dataclass(frozen=True, slots=True)
class ColumnGroups(Pattern):
    """Columns kept per group of rows; 0 rows means: as many as serve the layer."""

    height: int = 0

    def fit(self, rows: int, cols: int) -> Layout:
        """Grouped columns, if the groups divide the rows."""
        height = self.height or rows_per_group(rows)
        if height == 1 < rows and not self.height:
            return SingleWeights(rows, cols, f"{rows} rows cannot be divided into groups")
        if rows % height:
            return SingleWeights(rows, cols, f"groups of {height} rows do not divide {rows} rows")
        return GroupedColumns(rows, cols, height)


@dataclass(frozen=True, slots=True)
class KeptOfRun(Pattern):
    """`n` of every `m` consecutive weights."""

    n: int
    m: int

    def fit(self, rows: int, cols: int) -> Layout:
        """Runs, if they divide the columns."""
        if cols % self.m:
            why = f"runs of {self.m} weights do not divide rows of {cols}"
            return SingleWeights(rows, cols, why)
        return Runs(rows, cols, self.n, self.m)


def rows_per_group(rows: int) -> int:
    """Rows of a group for a weight of so many rows.

    The largest divisor up to 512, and two groups at least from 128 rows on: what ONNX Runtime's
    batched product needs to be fast is large groups, what accuracy needs is several of them.
    """
    most = min(512, rows // 2) if rows >= 128 else rows
    return max(d for d in range(1, most + 1) if rows % d == 0)


ALLOWED = (
    "None, 'column_groups' or 'column_groups:ROWS', 'N:M' with N below M such as '2:4', or a pair "
    "(rows, cols) of whole numbers from 1"
)


def parse_pattern(value: object) -> Pattern | None:
    """The pattern that a configuration names, `None` if it names none.

    Args:
        value: A text, or a pair of whole numbers (a list in JSON).

    Returns:
        `None` for what is no pattern; `ALLOWED` says what is.
    """
    if isinstance(value, list | tuple):
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in value)
        return Blocks(*value) if whole and len(value) == 2 else None
    if value == "column_groups":
        return ColumnGroups()
    head, colon, tail = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not _decimal(tail):
        return None
    last = int(tail)
    if head == "column_groups":
        return ColumnGroups(last) if last else None
    if not _decimal(head) or not 0 < int(head) < last:
        return None
    return KeptOfRun(int(head), last)


def _decimal(text: str) -> bool:
    return text.isascii() and text.isdigit()


def describe(layout: Layout) -> str:
    """A layout in a few words; empty for single weights."""
    if isinstance(layout, Tiles):
        return f"{layout.units:,} blocks of {layout.height} x {layout.width}"
    if isinstance(layout, GroupedColumns):
        groups = layout.rows // layout.height
        return f"{groups:,} groups of {layout.height} rows choose among {layout.cols:,} columns"
    if isinstance(layout, Runs):
        return f"{layout.n} of every {layout.m} weights, or all"
    return ""
