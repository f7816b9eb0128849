"""Runs in the numbers that papers on keep-states give: `python -m bench.kept_report RUNS...`.

A table for each budget, a row for each method, means over seeds: loss and top-1, top-3 and top-5
accuracy on the test data, the kept share by the authors' counting, and beside it what is really
left: parameters, multiply-accumulates, and bytes of the ONNX file. A model is tested once; its
numbers lie beside the run then, as `kept.json`.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.kept_runs import Kept, read_kept
from bench.topk import RANKS
from energy_model.errors import ArgumentError, CompressionError
from passes.storage.atomic import write_file

_HEAD = (
    "| method | seeds | "
    + " | ".join(f"top-{rank}" for rank in RANKS)
    + " | loss | R | parameters | of all | MACs | of all | ONNX bytes |\n| --- |"
    + " ---: |" * (len(RANKS) + 8)
)
_NOTE = (
    "Means over seeds, of top-1 with the standard deviation; accuracies on the test data, in "
    "percent. R: the kept share by the counting of Salehinejad and Valaee, by output filters alone."
)


def to_markdown(runs: Sequence[Kept]) -> str:
    """A table for each budget, the widest first, its methods by falling accuracy."""
    budgets: dict[str, dict[str, list[Kept]]] = {}
    for run in sorted(runs, key=lambda run: -run.macs[1]):
        budgets.setdefault(run.budget, {}).setdefault(run.label, []).append(run)
    lines = []
    for budget, methods in budgets.items():
        rows = sorted(methods.values(), key=lambda rows: -_mean(r.scores.top[0] for r in rows))
        lines += [f"## {budget}", "", _HEAD, *map(_row, rows), ""]
    return "\n".join([*lines, _NOTE])


def _row(runs: Sequence[Kept]) -> str:
    tops = [[100 * run.scores.top[place] for run in runs] for place in range(len(RANKS))]
    spread = f" +- {statistics.stdev(tops[0]):.2f}" if len(runs) > 1 else ""
    params, macs = ([getattr(run, name) for run in runs] for name in ("params", "macs"))
    cells = [
        runs[0].label.replace("|", "\\|"),
        str(len(runs)),
        f"{_mean(tops[0]):.2f}{spread}",
        *(f"{_mean(top):.2f}" for top in tops[1:]),
        f"{_mean(run.scores.loss for run in runs):.4f}",
        f"{_mean(run.share for run in runs):.1%}",
        *(text for pairs in (params, macs) for text in _counts(pairs)),
        f"{_mean(run.bytes for run in runs):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _counts(pairs: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """What is left, and its share of the original's."""
    return f"{_mean(a for _, a in pairs):,.0f}", f"{_mean(a / b for b, a in pairs):.1%}"


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `transform run` wrote.")],
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page there.")] = None,
) -> None:
    """Print what finished runs keep and score."""
    try:
        text = to_markdown(read_kept(folders, data_root))
    except CompressionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error
    if out is not None:
        command = shlex.join(["python", "-m", "bench.kept_report", *sys.argv[1:]])
        write_file(out, f"# What is kept\n\n    {command}\n\n{text}\n".encode())
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
