"""`transform compare`: a table of finished runs."""

from __future__ import annotations

import sys
from pathlib import Path

from transform.cli import options
from transform.cli.run import run_cells, typed_command
from transform.recipes import load_recipe

EPILOG = """
Examples:
  transform compare runs/lenet5 --out results/lenet5
  transform compare digits-energy --out results/digits
  transform compare runs/a runs/b --baseline "magnitude global" --out results/both
"""


def compare(
    sources: options.Results,
    out: options.ComparisonFolder,
    baseline: options.Baseline = None,
    data_root: options.DataRoot = None,
    device: options.Device = None,
) -> None:
    """Compare methods at equal budgets and equal training steps.

    Mean and standard deviation of the test accuracy over seeds, and a paired t test of each method
    against the baseline. Prints the Markdown table; writes it also as CSV, JSON, LaTeX and a plot.
    Recipes are run first; finished cells are not run again.
    """
    from bench.comparison import read_results, tabulate
    from bench.comparison_text import to_markdown, write_comparison

    folders = [_results_of(source, out, data_root, device) for source in sources]
    table = tabulate(read_results(folders), baseline, typed_command())
    written = write_comparison(table, out)
    print(to_markdown(table), end="")
    print(f"written to {out}: {', '.join(path.name for path in written)}", file=sys.stderr)


def _results_of(source: str, out: Path, data_root: Path | None, device: str | None) -> Path:
    """A folder as it is; a recipe after it was run."""
    if Path(source).is_dir():
        return Path(source)
    recipe = load_recipe(source)
    folder = out / "runs" / recipe.name
    run_cells(recipe, recipe.cells(), folder, data_root, device)
    return folder
