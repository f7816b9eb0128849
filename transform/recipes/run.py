"""Run one cell of a recipe: compress, train, and read the test data once, at the very end."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError, StorageError
from passes.inputs import as_batch
from passes.storage.atomic import json_bytes, read_json, write_file
from transform.compress import compress
from transform.evaluate import correct_samples
from transform.progress import Mode
from transform.recipes.parts import Cell
from transform.recipes.recipe import Recipe
from transform.result import Compressed
from transform.storage import CHECKPOINTS, load
from transform.training.fit import run_identity

if TYPE_CHECKING:
    from transform.cli.data import Data

RESULT = "result.json"
FORMAT, VERSION = "transform-result", 1
_COMPRESSED, _INDEX = "compressed", "compressed.json"


def run_cell(
    recipe: Recipe,
    cell: Cell,
    folder: Path,
    *,
    data_root: Path | None = None,
    device: str | None = None,
    dry: bool = False,
    command: str = "",
    progress: Mode | bool = "auto",
) -> dict[str, Any]:
    """Run a cell, go on with one that was killed, or read one that is finished.

    Args:
        recipe: The recipe; `recipe.dry()` for a dry run.
        cell: One of its cells.
        folder: The cell's own folder: `result.json`, and `compressed/` with the saved model.
        data_root: Folder of data and weights; `None` takes `TRANSFORM_DATA`.
        device: Where to work.
        dry: Do not save the model.
        command: What the user typed, for the result.
        progress: `"auto"`, `"bar"`, `"log"` or `"none"`.

    Returns:
        What `result.json` holds; metrics are fractions, energies multiples of one MAC.

    Raises:
        StorageError: The folder holds another run, or data are missing.
        CompressionError: Whatever `transform.compress` raises.
    """
    identity = run_identity(recipe_identity(recipe), cell.to_dict())
    if (folder / RESULT).is_file():
        return _finished(folder, identity)
    began = time.monotonic()
    root = _root(data_root)
    model, (data, valid, test) = _loaded(recipe, cell, root)
    out = None if dry else folder / _COMPRESSED
    result: Compressed
    if out is not None and (out / _INDEX).is_file():
        result = load(out, model)
    else:
        if out is not None:
            _drop_halves(out)
        start: nn.Module | Compressed = model
        stages = (*recipe.earlier(cell.seed), cell)
        for number, stage in enumerate(stages):
            last = stage is cell
            where = out if last or out is None else folder / _stage(recipe, stages[: number + 1])
            if not last and where is not None and (where / _INDEX).is_file():
                start = load(where, model)
                continue
            if number:  # in the order of a fresh start, whether or not earlier stages were run
                data, valid, _ = _data(recipe, cell, root)
            start = compress(
                start,
                stage.budget,
                data,
                valid=valid,
                method=stage.method,
                layers=recipe.layers,
                # What is left must still be the original's layers for the stages that follow.
                keep_shapes=not last,
                hardware=recipe.hardware,
                train=False if stage.train is None else stage.train,
                out=where,
                device=device,
                seed=stage.seed,
                progress=progress,
            )
        assert isinstance(start, Compressed)
        result = start
    place = next(result.model.parameters()).device
    tested, correct = _tested(model.to(place), result.model, test, place)
    found = {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity,
        "recipe": recipe_identity(recipe),
        "cell": cell.to_dict(),
        "command": command,
        "seconds": round(time.monotonic() - began, 1),
        **_measured(model, result),
        "metrics": {"valid": dict(result.metrics), "test": tested},
        "test_correct": correct,
        "curve": training_curve(result.history),
    }
    if result.search is not None:
        found["search"] = result.search.to_dict()
    write_file(folder / RESULT, json_bytes(found))
    # As a later call reads it: tuples of a configuration have become lists.
    return read_json(folder / RESULT)


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """What all cells of one experiment share; cells that differ in it are not compared."""
    return {
        key: value
        for key, value in recipe.to_dict().items()
        if key in ("name", "model", "weights", "data", "hardware", "layers")
        or (key == "stages" and value)
    }


def _stage(recipe: Recipe, stages: Sequence[Cell]) -> str:
    """Name of the folder of the last of some stages; other ones before it are another run."""
    digest = run_identity(recipe_identity(recipe), *(stage.to_dict() for stage in stages))
    return f"stage-{len(stages)}-{digest[:8]}"


def _finished(folder: Path, identity: str) -> dict[str, Any]:
    found = read_json(folder / RESULT)
    if found.get("identity") != identity:
        raise StorageError(
            "the folder holds the result of another run",
            where=str(folder),
            remedy="Choose another --out, or remove the folder.",
        )
    return found


def _root(data_root: Path | None) -> Path:
    from bench.zoo.data_root import data_root as default_root

    return data_root if data_root is not None else default_root()


def _loaded(recipe: Recipe, cell: Cell, root: Path) -> tuple[nn.Module, Data]:
    from transform.cli.model import load_model

    weights = root / recipe.weights if recipe.weights else None
    if weights is not None and not weights.is_file():
        raise StorageError(
            "the weights are not there",
            where=str(weights),
            remedy="Name the folder of data and weights by --data-root, or leave `weights` out."
            + (f" The recipe needs {recipe.cost.needs}." if recipe.cost.needs else ""),
        )
    data = _data(recipe, cell, root)
    require_apart(data.valid, data.test)
    return load_model(recipe.model, weights, cell.seed), data


def _data(recipe: Recipe, cell: Cell, root: Path) -> Data:
    from transform.cli.data import load_data

    return load_data(recipe.data, cell.seed, root)


def require_apart(valid: Iterable[Any] | None, test: Iterable[Any] | None) -> None:
    """Raise if the data that choices are made on are the test data.

    Raises:
        ArgumentError: Both are one object, or begin with the same batch.
    """
    if valid is None or test is None:
        return
    first = [next(iter(islice(part, 1)), None) for part in (valid, test)]
    if valid is test or (first[0] is not None and _same(*first)):
        raise ArgumentError(
            "the validation data are the test data",
            where="data",
            remedy="Nothing is ever selected on test data: hold out a part of train.",
        )


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool(torch.equal(first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second) and bool(first == second)


def _drop_halves(out: Path) -> None:
    """Remove what a kill left beside the checkpoints while the finished model was written."""
    if not (out / CHECKPOINTS).is_dir():
        return
    for path in out.iterdir():
        if path.name != CHECKPOINTS:
            path.unlink()


def _tested(
    original: nn.Module, finished: nn.Module, test: Iterable[Any] | None, device: torch.device
) -> tuple[dict[str, float | None], dict[str, Any] | None]:
    """Test accuracies, and which samples are right: the test data are read once by each model."""
    accuracy: dict[str, float | None] = {"before": None, "after": None}
    correct: dict[str, Any] = {}
    for name, model in (("before", original), ("after", finished)):
        order = hashlib.sha256()
        right = None
        if test is not None:
            right = correct_samples(model, _noted(model, test, order), device)
        if right is None:
            return {"before": None, "after": None}, None
        accuracy[name] = statistics.fmean(right)
        correct |= {"samples": len(right), "order": order.hexdigest()[:16], name: packed(right)}
    return accuracy, correct


def _noted(model: nn.Module, data: Iterable[Any], order: Any) -> Iterator[Any]:
    """The batches, their targets taken into a digest: only equal orders are paired by sample."""
    for item in data:
        targets = as_batch(model, item).targets
        if targets is not None:
            order.update(torch.as_tensor(targets).long().cpu().numpy().tobytes())
        yield item


def packed(truths: Sequence[bool]) -> str:
    """Truth values as bits in hexadecimal, the first in the highest bit, filled up with zeros."""
    return np.packbits(np.asarray(truths, bool)).tobytes().hex()


def training_curve(history: Iterable[Mapping[str, Any]]) -> list[list[float | int | None]]:
    """One row an epoch out of a history: epoch, mean loss, validation metric or `None`, rate."""
    rows: list[list[float | int | None]] = []
    for event in history:
        if "epoch" not in event or "loss" not in event:
            continue
        row = [event["epoch"], event["loss"], event.get("metric"), event.get("lr")]
        # What is logged within an epoch comes before its last row, which holds the mean.
        if rows and rows[-1][0] == row[0]:
            rows.pop()
        rows.append(row)
    return rows


def _measured(model: nn.Module, result: Compressed) -> dict[str, Any]:
    steps = [row.get("step", 0) for row in result.history]
    before, after = result.costs.before.total, result.costs.after.total
    return {
        "steps": max(steps, default=0),
        "holds": result.certificate.holds,
        "energy": {
            "before": before.energy.relaxed,
            "after": after.energy.relaxed,
            "exact": after.energy.exact,
        },
        "nonzeros": {"before": before.nonzeros, "after": after.nonzeros},
        "macs": {"before": before.macs, "after": after.macs},
        "params": {"before": _parameters(model), "after": _parameters(result.model)},
    }


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
