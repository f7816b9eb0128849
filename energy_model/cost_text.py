"""A cost table as aligned text."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy_model.cost import Cost, CostTable
from energy_model.units import format_count

WIDTH = 110
"""Columns of text; narrower terminals wrap."""


def render_costs(table: CostTable) -> str:
    """The table as plain text: a row per layer, the total, and what the numbers mean.

    W, C, X (and I) are a layer's relaxed energy of weights, compute, activations (and stored
    positions) in percent of the model's total; `share` is their sum.
    """
    whole = table.total.energy.relaxed
    with_positions = bool(table.hardware.index_bits)
    text = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("layer", "shape"):
        text.add_column(name, overflow="fold")
    parts = ["W %", "C %", "X %"] + (["I %"] if with_positions else [])
    for name in ("weights", "kept", "bits", *parts, "exact", "relaxed", "share"):
        text.add_column(name, justify="right", no_wrap=True)
    text.add_column("note", overflow="fold")
    for row in table.rows:
        text.add_row(*_cells(row, whole, with_positions))
    text.add_section()
    text.add_row(*_cells(table.total, whole, with_positions))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(text, soft_wrap=False)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, *_legend(table, with_positions)])


def _cells(row: Cost, whole: int, with_positions: bool) -> list[Text]:
    energy = row.energy
    parts = [energy.weights, energy.compute_relaxed, energy.activations]
    parts += [energy.positions] if with_positions else []
    notes = [row.note] if row.note else []
    cells = [
        row.name,
        row.shape,
        format_count(row.weights),
        _percent(row.nonzeros, row.weights) + "%",
        f"{row.bits:.4g}",
        *(_percent(part, whole) for part in parts),
        format_count(energy.exact),
        format_count(energy.relaxed),
        _percent(energy.relaxed, whole) + "%",
        "; ".join([*notes, "strip > cache"] if energy.fallback else notes),
    ]
    # As Text, because a layer's name may look like markup.
    return [Text(cell) for cell in cells]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _legend(table: CostTable, with_positions: bool) -> list[str]:
    energy = table.total.energy
    kinds = "W weights, C compute, X activations"
    lines = [
        f"total exact {energy.exact:,}, relaxed {energy.relaxed:,}",
        f"energy in multiples of one MAC's energy, per sample; hardware {table.hardware.name}",
        f"{kinds}{', I positions of nonzeros' if with_positions else ''}: percent of the total "
        "relaxed energy",
    ]
    if energy.fallback:
        lines.append(
            "strip > cache: the rows of one output row exceed the input cache; each output row "
            "fetches its own"
        )
    return lines
