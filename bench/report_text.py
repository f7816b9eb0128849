"""A benchmark report as text: one column per model, one row per quantity with its unit."""

from __future__ import annotations

from io import StringIO
from pathlib import PurePath
from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.measurement import Measurement, Report

_COLUMN = 28


def format_report(report: Report) -> str:
    """The aligned table, the conditions and the verdicts of a report, without a final newline."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    several = len({item.runtime for item in report.measurements}) > 1
    for item in report.measurements:
        name = PurePath(item.path).name + (f" in {item.runtime}" if several else "")
        table.add_column(name, justify="right", overflow="fold")
    for label, cells in _rows(report):
        table.add_row(label, *cells)
    # A width of its own: the table must not depend on the terminal, nor wrap in a log.
    width = 34 + _COLUMN * len(report.measurements)
    text = StringIO()
    Console(file=text, width=width, color_system=None, highlight=False).print(table)
    lines = [line.rstrip() for line in dedent(text.getvalue()).splitlines()]
    first = report.measurements[0]
    runtimes = " and ".join(dict.fromkeys(item.runtime for item in report.measurements))
    conditions = (
        f"{runtimes}, threads {first.threads}, batch {first.batch}, "
        f"{len(first.round_ms)} interleaved rounds, {first.machine}"
    )
    return "\n".join([*(line for line in lines if line), conditions, *report.verdicts])


def _rows(report: Report) -> list[tuple[str, list[str]]]:
    items = report.measurements
    ratios = ["1"] + [f"{c.ratio:.3f} ({c.low:.3f}-{c.high:.3f})" for c in report.comparisons]
    unpacking = [("unpack, ms", [_unpacked(item) for item in items])]
    return [
        ("file, bytes", [f"{item.bytes:,}" for item in items]),
        ("file as zstd, bytes", [f"{item.bytes_zstd:,}" for item in items]),
        *(unpacking if any(item.unpack_ms is not None for item in items) else []),
        ("load, ms", [f"{item.load_ms:.2f}" for item in items]),
        ("one inference, median, ms", [f"{item.median_ms:.4g}" for item in items]),
        ("  spread of the rounds", [f"{item.spread:.1%}" for item in items]),
        ("  time / first (quartiles)", ratios),
        ("  minimum, ms", [f"{item.minimum_ms:.4g}" for item in items]),
        ("  CPU time, ms", [f"{item.cpu_ms:.4g}" for item in items]),
        ("peak memory of process, MB", [f"{item.peak_rss_bytes / 1e6:.1f}" for item in items]),
        ("modelled energy, MAC/sample", [_modelled(item) for item in items]),
        ("measured energy, J", [_measured(item) for item in items]),
    ]


def _unpacked(item: Measurement) -> str:
    return "-" if item.unpack_ms is None else f"{item.unpack_ms:.2f}"


def _modelled(item: Measurement) -> str:
    return "-" if item.energy is None else f"{item.energy:,.0f}"


def _measured(item: Measurement) -> str:
    return "unavailable" if item.joules is None else f"{item.joules:.3g}"
