"""`transform plot`: pictures of one finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from energy_model.errors import ArgumentError

EPILOG = """
Examples:
  transform plot small
  transform plot runs/digits/energy-energy-30-seed-0-1a2b3c4d --out pictures
"""
_COLOR = "#0072B2"


def plot(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder that `transform compress` or `transform train` wrote, or a cell of "
            "`transform run`.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for energy.png, sparsity.png and training.png; by default that of the "
            "run. Existing ones are replaced.",
        ),
    ] = None,
) -> None:
    """Plot a finished run: the energy and the weights of each layer, and the training.

    Writes energy.png (before and after) and sparsity.png if the model was compressed, training.png
    (loss and validation metric over epochs) if it was trained. The model's code is not needed.
    """
    from bench.plots import plot_energy, plot_sparsity
    from bench.saved_runs import find_run, saved_costs, saved_curve
    from bench.training_plots import plot_training

    path = find_run(folder)
    target = out if out is not None else folder
    costs, curve = saved_costs(path), saved_curve(path)
    written = []
    if costs is not None:
        written.append(plot_energy(*costs, target / "energy.png"))
        written.append(plot_sparsity(costs[1], target / "sparsity.png"))
    if curve:
        groups = {folder.name: {"": [curve]}}
        written.append(plot_training(groups, target / "training.png", {"": _COLOR}))
    if not written:
        raise ArgumentError(
            "there is nothing to plot", where=str(folder), remedy="The run trained nothing."
        )
    for picture in written:
        print(picture)
    print(f"plotted {path}", file=sys.stderr)
