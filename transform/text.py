"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 118) -> str:
    """An aligned table without colour; the first column is left-aligned, figures right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(header):
        left = index == 0 or title in ("note", "shape", "why", "source", "method")
        grid.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*[cell.replace("[", "\\[") for cell in row])
    console = Console(file=StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(grid)
    stream = console.file
    assert isinstance(stream, StringIO)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())
