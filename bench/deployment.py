"""What finished runs are worth where they are deployed: parameters, MACs, bytes and latency."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.measure import Progress, measure
from energy_model.errors import StorageError

MODEL = Path("compressed") / "model.onnx"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A method at a budget: means over seeds, and the latency of its first seed's file.

    Attributes:
        label: The method.
        budget: What was asked.
        seeds: Number of seeds.
        accuracy: Mean test accuracy, a fraction; `None` without test data.
        params: Mean number of parameters.
        macs: Mean multiply-accumulates of one sample.
        bytes: Mean size of the ONNX files.
        median_ms: Median latency of the file of the first seed, milliseconds; `None` if not
            measured.
        ratio: Its latency over that of the file with the most MACs, median over rounds.
        low: First quartile of that ratio.
        high: Third quartile.
    """

    label: str
    budget: str
    seeds: int
    accuracy: float | None
    params: float
    macs: float
    bytes: float
    median_ms: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """All methods and budgets, by falling MACs.

    Attributes:
        rows: One for each method and budget.
        setting: Runtime, threads, batch and machine of the latencies; empty if not measured.
    """

    rows: tuple[Deployed, ...]
    setting: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"setting": self.setting, "rows": [asdict(row) for row in self.rows]}

    def to_markdown(self) -> str:
        """One table."""
        lines = [
            "| budget | method | seeds | accuracy | parameters | MACs | ONNX bytes | latency, ms "
            "| of the largest |",
            "| --- | --- |" + " ---: |" * 7,
            *(_line(row) for row in self.rows),
            "",
            "Means over seeds; latency of the first seed's file" + self._latency(),
        ]
        return "\n".join([*lines, ""])

    def _latency(self) -> str:
        if not self.setting:
            return " not measured."
        return f", quartiles over rounds in brackets: {self.setting}."


def _line(row: Deployed) -> str:
    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})"
    cells = [
        row.budget.replace("|", "\\|"),
        row.label.replace("|", "\\|"),
        f"{row.seeds}",
        accuracy,
        f"{row.params:,.0f}",
        f"{row.macs:,.0f}",
        f"{row.bytes:,.0f}",
        "-" if row.median_ms is None else f"{row.median_ms:.3f}",
        ratio,
    ]
    return f"| {' | '.join(cells)} |"


def deployment(
    results: Mapping[Path, Mapping[str, Any]],
    *,
    latency: bool = True,
    rounds: int = 7,
    progress: Progress | None = None,
) -> Deployment:
    """Count the files of finished runs, and measure them side by side.

    Args:
        results: As `bench.comparison.read_results` returns them.
        latency: Measure: batch 1, one thread, all files in turns.
        rounds: Turns of each file.
        progress: Called before every step.

    Raises:
        StorageError: A run has no ONNX file, or was made before MACs were recorded.
        BenchError: A file cannot be measured.
    """
    cells: dict[tuple[str, str], dict[int, Path]] = {}
    for folder, result in results.items():
        if "macs" not in result or not (folder / MODEL).is_file():
            raise StorageError(
                "the run has no ONNX file, or no count of its MACs",
                where=str(folder),
                remedy="Run the recipe again.",
            )
        cell = result["cell"]
        cells.setdefault((cell["label"], cell["budget"]), {})[cell["seed"]] = folder
    rows = [
        _counted(label, budget, [results[f] for f in folders.values()], list(folders.values()))
        for (label, budget), folders in cells.items()
    ]
    first = [folders[min(folders)] / MODEL for folders in cells.values()]
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].macs, rows[i].label))
    rows, first = [rows[i] for i in order], [first[i] for i in order]
    if not latency:
        return Deployment(tuple(rows))
    return _measured(rows, first, rounds, progress)


def _counted(
    label: str, budget: str, results: Sequence[Mapping[str, Any]], folders: Sequence[Path]
) -> Deployed:
    scores = [result["metrics"]["test"]["after"] for result in results]
    return Deployed(
        label,
        budget,
        len(results),
        None if None in scores else statistics.fmean(scores),
        statistics.fmean(result["params"]["after"] for result in results),
        statistics.fmean(result["macs"]["after"] for result in results),
        statistics.fmean((folder / MODEL).stat().st_size for folder in folders),
    )


def _measured(
    rows: Sequence[Deployed], files: Sequence[Path], rounds: int, progress: Progress | None
) -> Deployment:
    report = measure(files, threads=1, batch=1, rounds=rounds, progress=progress)
    own = report.measurements[0]
    compared = [None, *report.comparisons]
    measured = [
        replace(
            row,
            median_ms=found.median_ms,
            ratio=1.0 if other is None else other.ratio,
            low=1.0 if other is None else other.low,
            high=1.0 if other is None else other.high,
        )
        for row, found, other in zip(rows, report.measurements, compared, strict=True)
    ]
    setting = f"{own.runtime}, batch {own.batch}, {own.threads} thread, {own.machine}"
    return Deployment(tuple(measured), setting)
