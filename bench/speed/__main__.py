"""The command `python -m bench.speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.speed.rounds import Settings
from bench.speed.suite import BENCHMARKS, run_suite
from bench.speed_page import exit_codes, publish


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help=f"Out of {', '.join(BENCHMARKS)}; default all."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of each comparison.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads inside a torch operator.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page there.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when a target is missed.")
    ] = False,
) -> None:
    """Measure the compiler's own speed, as ratios to a sort, a forward pass and `import torch`.

    Takes a few minutes, on an otherwise idle machine. Exit codes: 0 done; 1 a measuring process
    failed, or with --check a target was missed; 2 bad usage.
    """
    with exit_codes():
        report = run_suite(names or [], Settings(rounds, threads), _say)
    publish(report, "bench.speed", out, as_json=as_json)
    if check and not report.met:
        raise typer.Exit(1)


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    typer.run(main)
