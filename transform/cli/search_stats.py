"""`transform search-stats`: what a search over architectures has found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from energy_model.errors import ArgumentError
from passes.methods.embedding.method import RECORD
from passes.methods.embedding.record import SearchRecord
from transform.cli import options
from transform.search_stats import search_stats as told
from transform.storage import CHECKPOINTS, load
from transform.training.candidates import SEARCH

EPILOG = """
Examples:
  transform compress bench.zoo:digits_cnn --data digits --method embedding \\
      --budget "params<=25%" --out small
  transform search-stats small
  transform search-stats small --plot front.png
"""

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A saved result of the method 'embedding', or the folder of a search that runs or was "
        "interrupted.",
        exists=True,
    ),
]
Top = Annotated[
    int, typer.Option(metavar="N", min=0, help="How many of the best of the search are listed.")
]
PlotFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Plot accuracy against cost of all students to this file."),
]


def search_stats(
    folder: Folder, top: Top = 8, plot: PlotFile = None, as_json: options.AsJson = False
) -> None:
    """Print what a search has found: accuracy, cost, ratio, times and reward of the students."""
    record = _record(folder)
    if record is None:
        raise ArgumentError(
            "the result comes from no search over architectures",
            where=str(folder),
            remedy="Name the folder of a run with --method embedding.",
        )
    if as_json:
        print(json.dumps(record.to_dict(), indent=1, allow_nan=False))
    else:
        print(told(record, top))
    if plot is not None:
        from bench.search_plot import plot_search

        print(f"plotted {plot_search(record, plot)}", file=sys.stderr)


def _record(folder: Path) -> SearchRecord | None:
    going = folder / CHECKPOINTS / SEARCH / RECORD
    return SearchRecord.of_ledger(going) if going.is_file() else load(folder).search
