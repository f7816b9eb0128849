"""Runs in the numbers that papers on keep-states give: `python -m bench.kept_report RUNS...`.

A table for each budget, a row for each method, means over seeds: loss and top-1, top-3 and top-5
accuracy on the test data, the kept share by the authors' counting, and beside it what is really
left: parameters, multiply-accumulates, and bytes of the ONNX file.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import read_results
from bench.deployment import MODEL
from bench.kept_share import kept_share
from bench.topk import RANKS, TopK, top_k
from energy_model.errors import ArgumentError, CompressionError, StorageError
from passes.storage.atomic import write_file
from transform.cli.data import load_data
from transform.cli.model import load_model
from transform.storage import load

# Of the accuracy that the run itself noted; another machine may turn a few samples.
_TOLERANCE = 0.005
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


@dataclass(frozen=True, slots=True)
class Kept:
    """One finished run.

    Attributes:
        label: The method.
        budget: What was asked.
        seed: The seed.
        scores: Of the finished model on the test data.
        share: R, by the authors' counting.
        params: Parameters before and after.
        macs: Multiply-accumulates of a sample before and after.
        bytes: Size of the ONNX file.
    """

    label: str
    budget: str
    seed: int
    scores: TopK
    share: float
    params: tuple[int, int]
    macs: tuple[int, int]
    bytes: int


def read_kept(folders: Iterable[Path], data_root: Path | None = None) -> list[Kept]:
    """Every finished run below the folders, its model run on the test data.

    Raises:
        StorageError: A run is missing, damaged, or scores something else than it noted.
        ArgumentError: The data have no test part.
    """
    tests: dict[str, list[Any]] = {}
    return [
        _kept(folder, result, _test(result["recipe"]["data"], data_root, tests))
        for folder, result in read_results(folders).items()
    ]


def _test(spec: str, root: Path | None, known: dict[str, list[Any]]) -> list[Any]:
    """The test batches of a data set, read once."""
    if spec not in known:
        found = load_data(spec, root=root).test
        if found is None:
            raise ArgumentError("there are no test data", where=spec)
        known[spec] = list(found)
    return known[spec]


def _kept(folder: Path, result: Mapping[str, Any], test: Sequence[Any]) -> Kept:
    file, cell = folder / MODEL, result["cell"]
    if "macs" not in result or not file.is_file():
        raise StorageError(
            "the run has no ONNX file, or no count of its MACs",
            where=str(folder),
            remedy="Run the recipe again.",
        )
    original = load_model(result["recipe"]["model"], seed=cell["seed"])
    model = load(file.parent, original).model
    scores, noted = top_k(model, test), result["metrics"]["test"]["after"]
    if noted is None or abs(noted - scores.top[0]) > _TOLERANCE:
        raise StorageError(
            f"the saved model scores {scores.top[0]:.4f} on the test data, the run noted {noted}",
            where=str(folder),
            remedy="Name the data that the run was made with by --data-root.",
        )
    return Kept(
        cell["label"],
        cell["budget"],
        cell["seed"],
        scores,
        kept_share(original, model),
        (result["params"]["before"], result["params"]["after"]),
        (result["macs"]["before"], result["macs"]["after"]),
        file.stat().st_size,
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
