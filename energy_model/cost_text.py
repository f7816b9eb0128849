"""A cost table as aligned text."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy_model.cost import Cost, CostTable
from energy_model.hardware import Hardware
from energy_model.units import format_count, format_joules

WIDTH = 110
"""Columns of text; narrower terminals wrap."""


def render_costs(table: CostTable) -> str:
    """The table as plain text: a row per layer, the total, and what the numbers mean.

    W, C, X (and I) are a layer's relaxed energy of weights, compute, activations (and stored
    positions) in percent of the model's total; `share` is their sum. Energies are in joules where
    the hardware knows them. Bits are those that are stored, and those that energy charges.
    """
    whole = table.total.energy.relaxed
    hardware = table.hardware
    with_positions = bool(hardware.index_bits)
    text = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("layer", "shape"):
        text.add_column(name, overflow="fold")
    parts = ["W %", "C %", "X %"] + (["I %"] if with_positions else [])
    for name in ("weights", "kept", "bits", *parts, "exact", "relaxed", "share"):
        text.add_column(name, justify="right", no_wrap=True)
    text.add_column("note", overflow="fold")
    for row in table.rows:
        text.add_row(*_cells(row, whole, hardware))
    text.add_section()
    text.add_row(*_cells(table.total, whole, hardware))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(text, soft_wrap=False)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, *_legend(table, with_positions)])


def _cells(row: Cost, whole: float, hardware: Hardware) -> list[Text]:
    energy = row.energy
    parts = [energy.weights, energy.compute_relaxed, energy.activations]
    parts += [energy.positions] if hardware.index_bits else []
    charged = min(row.bits, hardware.word_bits) if row.charged is None else row.charged
    notes = [row.note] if row.note else []
    cells = [
        row.name,
        row.shape,
        format_count(row.weights),
        _percent(row.nonzeros, row.weights) + "%",
        f"{row.bits:.4g}/{charged:.4g}",
        *(_percent(part, whole) for part in parts),
        _amount(energy.exact, hardware),
        _amount(energy.relaxed, hardware),
        _percent(energy.relaxed, whole) + "%",
        "; ".join([*notes, "strip > cache"] if energy.fallback else notes),
    ]
    # As Text, because a layer's name may look like markup.
    return [Text(cell) for cell in cells]


def _amount(energy: float, hardware: Hardware) -> str:
    joules = hardware.joules(energy)
    return format_count(energy) if joules is None else format_joules(joules)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _legend(table: CostTable, with_positions: bool) -> list[str]:
    energy, hardware = table.total.energy, table.hardware
    kinds = "W weights, C compute, X activations"
    lines = [
        f"total exact {energy.exact:,}, relaxed {energy.relaxed:,}",
        f"energy in {hardware.unit}, per sample; hardware {hardware.name}",
        f"{kinds}{', I positions of nonzeros' if with_positions else ''}: percent of the total "
        "relaxed energy",
        "bits of a weight: stored/charged",
    ]
    if hardware.joules_per_mac is not None:
        joules = (_amount(value, hardware) for value in (energy.exact, energy.relaxed))
        lines[0] += " ({}, {})".format(*joules)
    if energy.fallback:
        lines.append(
            "strip > cache: the rows of one output row exceed the input cache; each output row "
            "fetches its own"
        )
    return lines
