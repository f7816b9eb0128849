"""A comparison as CSV, Markdown, LaTeX and a plot."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from passes.storage.atomic import json_bytes, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.comparison import Entry, Table

# Colour-blind safe (Okabe, Ito); the baseline, the last, is grey.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_BASELINE, _INK = "#777777", "#333333"
_MARKERS = "osD^vP"


def write_comparison(table: Table, folder: Path) -> list[Path]:
    """Write `comparison.csv`, `.json`, `.md`, `.tex` and `.png`, each whole or not at all.

    Raises:
        StorageError: A file cannot be written.
    """
    texts = {".csv": to_csv(table), ".md": to_markdown(table), ".tex": to_latex(table)}
    for suffix, text in texts.items():
        write_file(folder / f"comparison{suffix}", text.encode())
    write_file(folder / "comparison.json", json_bytes(table.to_dict()))
    plot_comparison(table, folder / "comparison.png")
    return sorted(folder.glob("comparison.*"))


def to_csv(table: Table) -> str:
    """One row per method and budget; accuracies are fractions, to the last digit."""
    from bench.comparison import Entry

    text = io.StringIO()
    names = [field.name for field in fields(Entry)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for entry in table.entries:
        values = {name: getattr(entry, name) for name in names}
        values["seeds"] = " ".join(map(str, entry.seeds))
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """Methods x budgets, then the paired tests, then the command."""
    budgets = table.budgets
    lines = [
        _heading(table),
        "",
        "| method | " + " | ".join(_piped(budget) for budget in budgets) + " |",
        "| --- |" + " ---: |" * len(budgets),
    ]
    for label in table.labels:
        cells = [_score(table.at(label, budget)) for budget in budgets]
        lines.append(f"| {_piped(label)} | " + " | ".join(cells) + " |")
    lines += ["", _caption(table), "", *_tests(table)]
    return "\n".join([*lines, f"Made with `{table.command}`.", ""])


def to_latex(table: Table) -> str:
    r"""A `tabular` of methods x budgets; needs no package."""
    budgets = table.budgets
    head = " & ".join(["method", *(_latex(budget) for budget in budgets)])
    lines = [
        f"% {' '.join(table.command.split())}",
        f"% {_caption(table)}",
        rf"\begin{{tabular}}{{l{'r' * len(budgets)}}}",
        r"\hline",
        rf"{head} \\",
        r"\hline",
    ]
    for label in table.labels:
        cells = [_score(table.at(label, budget)).replace("±", r"$\pm$") for budget in budgets]
        lines.append(" & ".join([_latex(label), *cells]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def plot_comparison(table: Table, path: Path | str) -> Path:
    """Test accuracy against the energy that is left, with the deviation over seeds.

    Args:
        table: The comparison.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format.
        StorageError: The file cannot be written.
    """
    from bench.plots import new_figure, save_figure

    figure, axes = new_figure(width=7.5, height=4.5)
    for number, label in enumerate(table.labels):
        color = _BASELINE if label == table.baseline else _COLORS[number % len(_COLORS)]
        own = [entry for entry in table.entries if entry.label == label]
        axes.errorbar(
            [100 * entry.energy for entry in own],
            [100 * entry.mean for entry in own],
            yerr=[100 * (entry.std or 0) for entry in own],
            label=label,
            color=color,
            marker=_MARKERS[number % len(_MARKERS)],
            capsize=3,
        )
    if table.base is not None:
        axes.axhline(100 * table.base, color=_INK, linestyle=":", linewidth=1)
        axes.annotate(
            f"original {table.base:.2%}",
            (0.99, 100 * table.base),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_INK,
        )
    _name_axes(axes, table)
    return save_figure(figure, Path(path))


def _name_axes(axes: Axes, table: Table) -> None:
    axes.set_xlabel("modelled energy, % of the original (relaxed; not measured)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(_title(table), loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _title(table: Table) -> str:
    return f"{table.experiment['name']}: {table.experiment['model']} on {table.experiment['data']}"


def _heading(table: Table) -> str:
    return f"# {_title(table)}"


def _caption(table: Table) -> str:
    seeds = sorted({len(entry.seeds) for entry in table.entries})
    count = " or ".join(map(str, seeds))
    base = f"; the original has {table.base:.2%}" if table.base is not None else ""
    steps = sorted({entry.steps for entry in table.entries})
    trained = " or ".join(f"{step:,}" for step in steps)
    return (
        f"Test accuracy, %: mean ± standard deviation over {count} seed{'s' * (seeds != [1])}"
        f"{base}; {trained} training steps each."
    )


def _tests(table: Table) -> list[str]:
    tested = [entry for entry in table.entries if entry.p is not None]
    if not tested:
        return [
            f"Nothing is tested against {table.baseline}: that takes two seeds in common.",
            "",
        ]
    lines = [
        f"Against {table.baseline}, paired by seed (t test, two-sided, not corrected for several "
        "tests):",
        "",
        "| budget | method | difference, points | p | pairs | weights kept | energy |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in tested:
        difference = 100 * (entry.difference or 0)
        lines.append(
            f"| {_piped(entry.budget)} | {_piped(entry.label)} | {difference:+.2f} | "
            f"{_probability(entry.p)} | {entry.pairs} | {entry.nonzeros:.2%} | "
            f"{entry.energy:.2%} |"
        )
    return [*lines, ""]


def _probability(p: float | None) -> str:
    if p is None or math.isnan(p):
        return "-"
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _score(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    return f"{100 * entry.mean:.2f}" + (
        f" ± {100 * entry.std:.2f}" if entry.std is not None else ""
    )


def _piped(text: str) -> str:
    return text.replace("|", r"\|")


def _latex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash "),
        ("<=", r"$\le$"),
        (">=", r"$\ge$"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("&", r"\&"),
        ("#", r"\#"),
    ):
        text = text.replace(plain, escaped)
    return text
