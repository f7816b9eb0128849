"""`transform run`: the cells of a recipe."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from energy_model.errors import CompressionError, InfeasibleBudget
from transform.cli import options
from transform.cli.progress import progress_mode
from transform.recipes.parts import Cell
from transform.recipes.recipe import Recipe, load_recipe, select_cells
from transform.recipes.run import run_cell

EPILOG = """
Examples:
  transform run digits-energy
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

    Each cell has its own folder below --out, with result.json and the compressed model. Finished
    cells are skipped, a killed one goes on from its checkpoints. Test data are read once, at the
    end of a cell. A cell that fails does not stop the others: those that failed are named at the
    end, with exit code 1, or 3 if nothing but budgets that cannot be reached stood in their way.
    """
    found = load_recipe(recipe)
    if list_cells:
        _list(found)
        return
    plan, folder = found.dry() if dry_run else found, out or Path("runs") / found.name
    run_cells(plan, select_cells(plan, matrix, select), folder, data_root, device, dry=dry_run)


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
        InfeasibleBudget: Of the first cell whose method cannot go as low, if no cell fails in
            another way; after all have run.
        CompressionError: Cells failed; after all have run. Of a single cell its own error.
    """
    failed: dict[str, Exception] = {}
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
        except Exception as error:
            if isinstance(error, InfeasibleBudget):
                print(f"{cell}: infeasible", flush=True)
            if len(cells) == 1:
                raise
            failed[str(cell)] = error
            _report(error)
        else:
            print(f"{cell}: {_summary(found)}", flush=True)
    if failed:
        raise _failure(failed, len(cells))


def _report(error: Exception) -> None:
    """Say at once what went wrong, on stderr; what nobody raised on purpose with its traceback."""
    if isinstance(error, CompressionError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _failure(failed: Mapping[str, Exception], count: int) -> CompressionError:
    """List the cells that failed on stderr; the error that ends the command."""
    print(f"{len(failed)} of {count} cells failed:", file=sys.stderr)
    for name, error in failed.items():
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    first = next(iter(failed.values()))
    if isinstance(first, InfeasibleBudget) and all(
        isinstance(error, InfeasibleBudget) for error in failed.values()
    ):
        return first
    return CompressionError(
        f"{len(failed)} of {count} cells failed",
        remedy="They are listed above; the same command runs only what is not finished.",
    )


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
