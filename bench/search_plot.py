"""Every student of a search over architectures, and those that no other beats."""

from __future__ import annotations

from pathlib import Path

from bench.plots import new_figure, save_figure
from passes.methods.embedding.ranking import last_rows
from passes.methods.embedding.record import SearchRecord

_PALE, _FULL, _FRONT, _INK = "#9ECAE1", "#0072B2", "#E69F00", "#333333"


def plot_search(record: SearchRecord, path: Path | str, cost: str | None = None) -> Path:
    """Accuracy against cost: a dot for every student on the rung that it reached.

    Those of the highest rung are dark, and the front among them is a line; finalists are rings,
    where full training has brought them, and the teacher is a cross.

    Args:
        record: Of a finished search.
        path: File to write; its suffix is the format.
        cost: Key of the cost; the first that the reward counts by default.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix names no known format, or there is no such cost.
        StorageError: The file cannot be written.
    """
    key = record.metric[0] if cost is None else cost
    figure, axes = new_figure(width=7.0, height=4.5)
    front = record.front(key)
    rows = last_rows(record.rows)
    top = max((row.rung for row in rows), default=0)
    for own, color, label in (
        ([row for row in rows if row.rung < top], _PALE, "stopped early"),
        ([row for row in rows if row.rung == top], _FULL, "last rung"),
    ):
        if own:
            x, y = [row.costs[key] for row in own], [100 * (row.accuracy or 0.0) for row in own]
            axes.plot(x, y, "o", color=color, markersize=4, label=label)
    if front:
        x, y = [row.costs[key] for row in front], [100 * (row.accuracy or 0.0) for row in front]
        axes.plot(x, y, "-", color=_FRONT, label="front")
    x, y = (
        [one.costs[key] for one in record.finalists],
        [100 * o.accuracy for o in record.finalists],
    )
    axes.plot(x, y, "o", markersize=9, markerfacecolor="none", color=_INK, label="finalists")
    axes.plot(record.costs[key], 100 * record.accuracy, "x", color=_INK, label="teacher")
    axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel("accuracy, validation data, %")
    axes.legend(frameon=False, fontsize="small")
    return save_figure(figure, Path(path))
