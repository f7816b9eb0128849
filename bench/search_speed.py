"""What a search over keep-states costs: `python -m bench.search_speed`.

Every number is a ratio of what took turns in one run: steps of the search and of the network that
it leaves against plain steps, ways of running candidates against a plain forward, and with `--six`
the networks of the authors' table of overheads.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.dynamic_report import Part
from bench.measure import machine_name
from bench.search_backends import measure_backends
from bench.search_published import measure_published
from bench.search_report import SearchReport
from bench.search_sizes import SearchSizes
from bench.search_steps import measure_steps
from bench.speed.ratio import Outcome
from bench.speed.rounds import Settings
from bench.speed_page import exit_codes, publish
from energy_model.errors import ArgumentError

Row = Callable[[SearchSizes, Settings], Outcome]
ROWS: dict[str, tuple[str, Row]] = {
    "steps": ("Steps and the whole run against dense training", measure_steps),
    "backends": ("Back ends against a forward of the whole network", measure_backends),
}
SIX = "six"


def chosen(names: Sequence[str], *, six: bool) -> tuple[str, ...]:
    """Rows by name, each of which may be several with commas, in the order of the page.

    Args:
        names: Those asked for; all for none, unless only the six networks are.
        six: The six networks are asked for.

    Raises:
        ArgumentError: There is no such row; close names are suggested.
    """
    asked = [name.strip() for several in names for name in several.split(",")]
    known = (*ROWS, SIX)
    for name in asked:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ArgumentError(
                f"there is no row {name!r}",
                where="--only",
                remedy=f"{hint}There are {', '.join(known)}.",
            )
    wanted = set(asked) or set(ROWS)
    return tuple(name for name in known if name in wanted or (six and name == SIX))


def measure(
    names: Sequence[str],
    settings: Settings,
    sizes: SearchSizes | None = None,
    say: Callable[[str], None] = lambda line: None,
    *,
    six: bool = False,
) -> SearchReport:
    """Measure rows one after another; each interleaves what it compares.

    Args:
        names: Which rows; all but the six networks when empty.
        settings: How to measure. The number of threads is torch's own afterwards again.
        sizes: Of what is measured; `None` is the full size.
        say: Called with one line before each row.
        six: Measure the six networks as well.

    Raises:
        ArgumentError: A row is unknown.
    """
    rows, sizes = chosen(names, six=six), SearchSizes() if sizes is None else sizes
    threads, before = torch.get_num_threads(), os.getloadavg()[0]
    parts, published = [], None
    torch.set_num_threads(settings.threads)
    try:
        for name in rows:
            say(f"measuring {name} (load {os.getloadavg()[0]:.1f})")
            if name == SIX:
                published = measure_published(sizes, settings)
            else:
                title, row = ROWS[name]
                parts.append(Part(name, title, row(sizes, settings)))
    finally:
        torch.set_num_threads(threads)
    conditions = (
        f"{machine_name()}, {os.cpu_count()} cores; torch {torch.__version__}, threads: "
        f"{settings.threads}; interleaved rounds: {settings.rounds}; load {before:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after."
    )
    return SearchReport(conditions, tuple(parts), published)


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Rows, out of {', '.join((*ROWS, SIX))}.")
    ] = None,
    six: Annotated[bool, typer.Option("--six", help="The six published networks as well.")] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads inside a torch operator.")] = 1,
    batch: Annotated[int, typer.Option(help="Images of a step of the six networks.")] = 128,
    size: Annotated[int, typer.Option(help="Side of these images.")] = 64,
    quick: Annotated[bool, typer.Option("--quick", help="One round of tiny steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page there.")] = None,
) -> None:
    """Measure what a search over keep-states costs.

    Takes a few minutes on an otherwise idle machine, and some more with --six. Exit codes: 0 done;
    1 a measurement failed; 2 bad usage.
    """
    with exit_codes():
        settings = Settings(1 if quick else rounds, threads)
        sizes = SearchSizes.quick() if quick else SearchSizes(batch=batch, side=size)
        report = measure(
            only or [], settings, sizes, lambda line: typer.echo(line, err=True), six=six
        )
    publish(report, "bench.search_speed", out, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
