"""What a finished run left in its folder: the costs of every layer, and its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energy_model.cost import CostTable
from energy_model.errors import ArgumentError, StorageError
from passes.storage.atomic import read_json
from transform.recipes.run import training_curve

COMPRESSED, TRAINED = "compressed.json", "train.json"
_FORMATS = {COMPRESSED: "transform-compressed", TRAINED: "transform-trained"}

Curve = Sequence[Sequence[float | None]]
"""Rows of epoch, mean loss, validation metric or `None`, learning rate; one an epoch."""


def find_run(folder: Path) -> Path:
    """The file that describes the finished run of a folder.

    Args:
        folder: What `transform compress` or `transform train` wrote, or a cell of `transform run`.

    Raises:
        StorageError: There is none.
    """
    for path in (folder / COMPRESSED, folder / "compressed" / COMPRESSED, folder / TRAINED):
        if path.is_file():
            return path
    raise StorageError(
        "there is no finished run",
        where=str(folder),
        remedy="Name a folder that `transform compress`, `train` or `run` wrote.",
    )


def saved_costs(path: Path) -> tuple[CostTable, CostTable] | None:
    """Costs of every layer before and after, by the run's file; `None` if nothing was compressed.

    Raises:
        StorageError: The file is damaged, or of another version.
    """
    if path.name != COMPRESSED:
        return None
    values = _read(path)
    try:
        costs = values["costs"]
        return CostTable.from_dict(costs["before"]), CostTable.from_dict(costs["after"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"no costs ({error})") from error


def saved_curve(path: Path) -> Curve:
    """The training of a run, by its file; empty if nothing was trained.

    Raises:
        StorageError: The file is damaged, or of another version.
    """
    values = _read(path)
    try:
        return checked_curve(training_curve(values["history"]), str(path))
    except (KeyError, TypeError, AttributeError, ArgumentError) as error:
        raise _damaged(path, f"no history ({error})") from error


def checked_curve(rows: Any, where: str) -> Curve:
    """The rows of a curve, if that is what they are.

    Raises:
        ArgumentError: They are not.
    """
    numbers = (int, float)
    good = isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == 4
        and all(isinstance(value, numbers) for value in row[:2])
        and all(value is None or isinstance(value, numbers) for value in row[2:])
        for row in rows
    )
    if not good:
        raise ArgumentError(
            "the curve is no rows of epoch, loss, metric and rate",
            where=where,
            remedy="Run the cell again: remove its result.json.",
        )
    return list(rows)


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if values.get("format") != _FORMATS[path.name] or values.get("version") != 1:
        raise _damaged(path, "another format or version")
    return values


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(f"this is no finished run: {why}", where=str(path), remedy="Run it again.")
