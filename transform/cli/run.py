"""`transform run`: the cells of a recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energy_model.errors import ArgumentError, InfeasibleBudget
from transform.cli import options
from transform.cli.progress import progress_mode
from transform.recipe_parts import Cell
from transform.recipe_run import run_cell
from transform.recipes import Recipe, load_recipe, select_cells

EPILOG = """
Examples:
  transform run digits-energy --out runs/digits
  transform run lenet5-mnist-energy --list
  transform run lenet5-mnist-energy --data-root data --matrix --out runs/lenet5
  transform run mine.yaml --select 7 --out runs/mine
"""


def run(
    recipe: options.RecipeName,
    out: options.RunFolder = None,
    data_root: options.DataRoot = None,
    matrix: options.Matrix = False,
    select: options.Select = None,
    list_cells: options.ListCells = False,
    dry_run: options.DryRun = False,
    device: options.Device = None,
) -> None:
    """Run a recipe: its single run, or with --matrix every cell of its matrix.

    Each cell has its own folder below DIR, with result.json and the compressed model. Finished
    cells are skipped, a killed one goes on from its checkpoints. Test data are read once, at the
    end of a cell. Cells whose budget cannot be reached are named at the end, with exit code 3.
    """
    found = load_recipe(recipe)
    if list_cells:
        _list(found)
        return
    if out is None:
        raise ArgumentError(
            "nothing says where to write", where="--out", remedy="Give --out DIR, or --list."
        )
    plan = found.dry() if dry_run else found
    run_cells(plan, select_cells(plan, matrix, select), out, data_root, device, dry=dry_run)


def run_cells(
    recipe: Recipe,
    cells: Sequence[Cell],
    out: Path,
    data_root: Path | None = None,
    device: str | None = None,
    *,
    dry: bool = False,
) -> None:
    """Run cells one after the other, each in its folder; one line each on stdout.

    Args:
        recipe: Their recipe.
        cells: The cells.
        out: Folder of the cells' folders.
        data_root: Folder of data and weights.
        device: Where to work.
        dry: Do not save the models.

    Raises:
        InfeasibleBudget: Of the first cell whose method cannot go as low, after all have run.
    """
    refused: list[InfeasibleBudget] = []
    for number, cell in enumerate(cells, start=1):
        print(f"[{number}/{len(cells)}] {cell}", file=sys.stderr, flush=True)
        try:
            found = run_cell(
                recipe,
                cell,
                out / cell.folder,
                data_root=data_root,
                device=device,
                dry=dry,
                command=typed_command(),
                progress=progress_mode(),
            )
        except InfeasibleBudget as error:
            refused.append(error)
            print(f"{cell}: infeasible", flush=True)
        else:
            print(f"{cell}: {_summary(found)}", flush=True)
    if refused:
        raise refused[0]


def typed_command() -> str:
    """The command line as it was typed, to be written beside what it makes."""
    return shlex.join(["transform", *sys.argv[1:]])


def _summary(found: dict[str, Any]) -> str:
    scores = found["metrics"]
    parts = [f"energy {found['energy']['after'] / max(1, found['energy']['before']):.2%}"]
    for name in ("valid", "test"):
        before, after = scores[name]["before"], scores[name]["after"]
        if before is not None and after is not None:
            parts.append(f"{name} {before:.2%} -> {after:.2%}")
    return ", ".join(parts)


def _list(recipe: Recipe) -> None:
    cells, cost = recipe.cells(), recipe.cost
    print(f"{recipe.name}: {' '.join(recipe.about.split())}")
    if cost.minutes is not None:
        whole = cost.minutes * len(cells)
        print(f"cost: {cost.minutes:g} minutes a cell on 2 cores, {whole:g} for all {len(cells)}")
    if cost.needs:
        print(f"needs: {cost.needs}")
    for cell in cells:
        print(cell)
