"""What dynamic sparse training costs: `python -m bench.dynamic_speed`.

Every number is a ratio of what took turns in one run: rewiring against a training step and a sort,
rules against each other and against dense training, and bytes against those of the parameters.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.dynamic_events import measure_rewiring, measure_selection
from bench.dynamic_memory import measure_memory
from bench.dynamic_report import DynamicReport, Part
from bench.dynamic_sizes import Sizes
from bench.dynamic_steps import measure_deepr, measure_masked, measure_rules
from bench.measure import machine_name
from bench.speed.ratio import Outcome
from bench.speed.rounds import Settings
from bench.speed_page import exit_codes, publish
from energy_model.errors import ArgumentError

Row = Callable[[Sizes, Settings], Outcome]
ROWS: dict[str, tuple[str, Row]] = {
    "rewiring": ("All rewiring against training steps", measure_rewiring),
    "selection": ("One exact event against a sort", measure_selection),
    "deepr": ("Rule deepr against static masks", measure_deepr),
    "masked": ("Static masks against dense training", measure_masked),
    "rules": ("Every rule against dense training", measure_rules),
    "memory": ("Memory", measure_memory),
}


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Rows by name, each of which may be several with commas, in the order of the page.

    Returns:
        Those asked for; all for none.

    Raises:
        ArgumentError: There is no such row; close names are suggested.
    """
    asked = [name.strip() for several in names for name in several.split(",")]
    for name in asked:
        if name not in ROWS:
            close = difflib.get_close_matches(name, ROWS, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ArgumentError(
                f"there is no row {name!r}",
                where="--only",
                remedy=f"{hint}There are {', '.join(ROWS)}.",
            )
    return tuple(name for name in ROWS if name in asked or not asked)


def measure(
    names: Sequence[str],
    settings: Settings,
    sizes: Sizes | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> DynamicReport:
    """Measure rows one after another; each interleaves what it compares.

    Args:
        names: Which rows; all when empty.
        settings: How to measure. The number of threads is torch's own afterwards again.
        sizes: Of what is measured; `None` is the full size.
        say: Called with one line before each row.

    Raises:
        ArgumentError: A row is unknown.
        BenchError: A measuring process failed.
    """
    rows, sizes = chosen(names), Sizes() if sizes is None else sizes
    threads, before = torch.get_num_threads(), os.getloadavg()[0]
    parts = []
    torch.set_num_threads(settings.threads)
    try:
        for name in rows:
            title, row = ROWS[name]
            say(f"measuring {name} (load {os.getloadavg()[0]:.1f})")
            parts.append(Part(name, title, row(sizes, settings)))
    finally:
        torch.set_num_threads(threads)
    conditions = (
        f"{machine_name()}, {os.cpu_count()} cores; torch {torch.__version__}, threads: "
        f"{settings.threads}; interleaved rounds: {settings.rounds}; load {before:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after."
    )
    return DynamicReport(conditions, tuple(parts))


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Rows, out of {', '.join(ROWS)}; default all.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads inside a torch operator.")] = 2,
    batch: Annotated[int, typer.Option(help="Images of a step of ResNet-50.")] = 8,
    size: Annotated[int, typer.Option(help="Side of these images.")] = 224,
    quick: Annotated[bool, typer.Option("--quick", help="One round of tiny steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page there.")] = None,
) -> None:
    """Measure what dynamic sparse training costs.

    Takes six to eight minutes on an otherwise idle machine. Exit codes: 0 done; 1 a measuring
    process failed; 2 bad usage.
    """
    with exit_codes():
        settings = Settings(1 if quick else rounds, threads)
        sizes = Sizes.quick() if quick else Sizes.of(batch, size)
        report = measure(only or [], settings, sizes, lambda line: typer.echo(line, err=True))
    publish(report, "bench.dynamic_speed", out, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
