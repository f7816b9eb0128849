"""A comparison as CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from passes.storage.atomic import json_bytes, write_file

if TYPE_CHECKING:
    from bench.comparison import Entry, Table

TESTS = "two-sided, not corrected for several tests"


def write_comparison(table: Table, folder: Path) -> list[Path]:
    """Write `comparison.csv`, `.json`, `.md` and `.tex`, each whole or not at all.

    Returns:
        The files.

    Raises:
        StorageError: A file cannot be written.
    """
    contents = {
        ".csv": to_csv(table).encode(),
        ".json": json_bytes(table.to_dict()),
        ".md": to_markdown(table).encode(),
        ".tex": to_latex(table).encode(),
    }
    paths = [folder / f"comparison{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_file(path, content)
    return paths


def to_csv(table: Table) -> str:
    """One row per method and budget; accuracies are fractions, to the last digit."""
    text = io.StringIO()
    rows = [entry.to_dict() for entry in table.entries]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    # `None` is written as an empty cell.
    writer.writerows({**row, "seeds": " ".join(map(str, row["seeds"]))} for row in rows)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """Methods x budgets, then the paired tests and what they mean, then the command."""
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
    r"""A `tabular` of methods x budgets, and one of the paired tests; needs no package."""
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
        cells = [label, *(_score(table.at(label, budget)) for budget in budgets)]
        lines.append(" & ".join(map(_latex, cells)) + r" \\")
    lines += [r"\hline", r"\end{tabular}"]
    return "\n".join([*lines, *_latex_tests(table), ""])


def title_of(table: Table) -> str:
    """What was compared: the experiment, its model and its data."""
    return f"{table.experiment['name']}: {table.experiment['model']} on {table.experiment['data']}"


def _heading(table: Table) -> str:
    return f"# {title_of(table)}"


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


def _tested(table: Table) -> list[Entry]:
    return [entry for entry in table.entries if entry.against.pairs]


_COLUMNS = (
    "budget",
    "method",
    "difference, points",
    "p, t",
    "p, sign",
    "p, McNemar",
    "samples won : lost",
    "seeds",
    "weights kept",
    "energy",
)


def _row(entry: Entry) -> list[str]:
    found = entry.against
    difference = f"{100 * (found.difference or 0):+.2f}"
    if found.spread is not None:
        difference += f" ± {100 * found.spread:.2f}"
    return [
        entry.budget,
        entry.label,
        difference,
        _probability(found.p),
        _probability(found.sign),
        _probability(found.mcnemar),
        "-" if found.won is None else f"{found.won:,} : {found.lost:,}",
        f"{found.pairs}",
        f"{entry.nonzeros:.2%}",
        f"{entry.energy:.2%}",
    ]


def _tests(table: Table) -> list[str]:
    rows = [_row(entry) for entry in _tested(table)]
    if not rows:
        return [f"Nothing is compared with {table.baseline}: no method has a seed in common.", ""]
    return [
        f"Against {table.baseline}, paired by seed ({TESTS}):",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "| --- | --- |" + " ---: |" * (len(_COLUMNS) - 2),
        *(f"| {' | '.join(map(_piped, row))} |" for row in rows),
        "",
        *(f"- {note}" for note in notes(table)),
        "",
    ]


def _latex_tests(table: Table) -> list[str]:
    rows = [_row(entry) for entry in _tested(table)]
    if not rows:
        return []
    return [
        "",
        f"% Against {table.baseline}, paired by seed ({TESTS}).",
        *(f"% {note}" for note in notes(table)),
        rf"\begin{{tabular}}{{ll{'r' * (len(_COLUMNS) - 2)}}}",
        r"\hline",
        " & ".join(_COLUMNS) + r" \\",
        r"\hline",
        *(" & ".join(map(_latex, row)) + r" \\" for row in rows),
        r"\hline",
        r"\end{tabular}",
    ]


def notes(table: Table) -> list[str]:
    """What the tests say, what they do not, and which difference is noise; one sentence or two."""
    compared = [entry.against for entry in _tested(table)]
    found = []
    if table.samples is not None:
        found.append(
            f"One of the {table.samples:,} test samples is worth {100 / table.samples:.2g} points."
        )
    if any(each.spread is not None for each in compared):
        most = max(each.pairs for each in compared)
        found += [
            "A difference smaller than its spread (±, the standard deviation over seeds) is noise.",
            "t, sign: over seeds, whether the methods differ when training is repeated. The sign "
            f"test of {most} seeds cannot go below {_probability(2.0 ** (1 - most))}.",
        ]
    worth = 1 / table.samples if table.samples else 0.0
    if any(
        each.difference and each.spread is not None and each.spread < worth for each in compared
    ):
        found.append(
            "A spread below the worth of one sample is not resolved: there, trust no p of t."
        )
    if any(each.mcnemar is not None for each in compared):
        found.append(
            "McNemar: over test samples, exact, of one pair of runs; p is the median over seeds. "
            "All seeds share the test samples, so they are not added up into one test; the counts "
            "won and lost are sums over seeds."
        )
    if any(each.judged < each.pairs for each in compared):
        found.append(
            "McNemar leaves out runs that do not say which test samples they have right, or that "
            "read them in another order."
        )
    return found


def _probability(p: float | None) -> str:
    if p is None:
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
        ("<", "$<$"),
        ("±", r"$\pm$"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("&", r"\&"),
        ("#", r"\#"),
    ):
        text = text.replace(plain, escaped)
    return text
