"""`transform compare`: a table of finished runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from energy_model.errors import ArgumentError, CompressionError, StorageError
from passes.storage.atomic import json_bytes, write_file
from transform.cli import options
from transform.cli.progress import progress_mode
from transform.cli.run import run_cells, typed_command
from transform.progress import Progress
from transform.recipes.recipe import load_recipe, recipe_names

EPILOG = """
Examples:
  transform compare runs/lenet5 --out results/lenet5
  transform compare digits-energy --out results/digits
  transform compare runs/a runs/b --baseline "magnitude global" --out results/both
"""

Deployed = Annotated[
    bool,
    typer.Option(
        "--deployed",
        help="Also count parameters, MACs and bytes of the runs' ONNX files, and measure their "
        "latency side by side: deployment.md and .json.",
    ),
]


def compare(
    sources: options.Results,
    out: options.ComparisonFolder,
    baseline: options.Baseline = None,
    deployed: Deployed = False,
    data_root: options.DataRoot = None,
    device: options.Device = None,
) -> None:
    """Compare methods at equal budgets and equal training steps.

    Mean and standard deviation of the test accuracy over seeds, and paired tests of each method
    against the baseline: over seeds (Student's t and the sign test), and over test samples
    (McNemar). Prints the Markdown table; writes it also as CSV, JSON and LaTeX, and plots the
    accuracy, the weights kept, the energy per layer and the training. Recipes are run first;
    finished cells are not run again, and what finished is compared even if a cell fails.
    """
    from bench.comparison import read_results, tabulate
    from bench.comparison_plots import write_plots
    from bench.comparison_text import to_markdown, write_comparison

    failures: list[CompressionError] = []
    folders = [_results_of(source, out, data_root, device, failures) for source in sources]
    try:
        results = read_results(folders)
    except StorageError as error:
        # What failed first is why there are no results.
        raise (failures or [error])[0] from None
    table = tabulate(results.values(), baseline, typed_command())
    written = [*write_comparison(table, out), *write_plots(table, results, out)]
    print(to_markdown(table), end="")
    if deployed:
        written += _deployed(results, out)
    print(f"written to {out}: {', '.join(path.name for path in written)}", file=sys.stderr)
    if failures:
        raise failures[0]


def _deployed(results: Mapping[Path, Mapping[str, Any]], out: Path) -> list[Path]:
    """Count and measure the files of the runs; print the table and write it."""
    from bench.deployment import deployment

    show = Progress(progress_mode())
    with show.stage("measuring the files"):
        found = deployment(results)
    text = f"{found.to_markdown()}\nMade with `{typed_command()}`.\n"
    print(f"\n{text}", end="")
    paths = [out / "deployment.md", out / "deployment.json"]
    write_file(paths[0], text.encode())
    write_file(paths[1], json_bytes({"command": typed_command()} | found.to_dict()))
    return paths


def _results_of(
    source: str,
    out: Path,
    data_root: Path | None,
    device: str | None,
    failures: list[CompressionError],
) -> Path:
    """A folder as it is; a recipe after it was run, with what failed noted."""
    if Path(source).is_dir():
        return Path(source)
    if not Path(source).exists() and source not in recipe_names():
        raise ArgumentError(
            f"{source!r} is neither a folder of results nor a recipe",
            where="RESULTS",
            remedy="Name a folder that `transform run` wrote, a recipe's YAML file, or one of "
            f"{', '.join(recipe_names())}.",
        )
    recipe = load_recipe(source)
    folder = out / "runs" / recipe.name
    try:
        run_cells(recipe, recipe.cells(), folder, data_root, device)
    except CompressionError as error:
        failures.append(error)
    return folder
