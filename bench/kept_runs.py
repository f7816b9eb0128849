"""What finished runs keep and score, evaluated once and kept beside each run.

The saved model of a run is tested and its file measured the first time that it is asked for; the
numbers then lie beside `result.json` as `kept.json`, and speak for the run where its model is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.comparison import read_results
from bench.deployment import MODEL
from bench.kept_share import kept_share
from bench.topk import RANKS, TopK, top_k
from energy_model.errors import ArgumentError, StorageError
from passes.storage.atomic import json_bytes, read_json, write_file
from transform.cli.data import load_data
from transform.cli.model import load_model
from transform.storage import load

KEPT = "kept.json"
FORMAT, VERSION = "transform-kept", 1
_NUMBERS = ("loss", "samples", "share", "bytes")
_RUN_AGAIN, _TEST_AGAIN = "Run the recipe again.", "Remove it to test the run again."
# Of the accuracy that the run itself noted; another machine may turn a few samples.
_TOLERANCE = 0.005


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


class _TestData:
    """The test batches of data sets, each read once, and only if a model is tested on it."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._known: dict[str, list[Any]] = {}

    def __call__(self, spec: str) -> Sequence[Any]:
        if spec not in self._known:
            found = load_data(spec, root=self._root).test
            if found is None:
                raise ArgumentError("there are no test data", where=spec)
            self._known[spec] = list(found)
        return self._known[spec]


def read_kept(folders: Iterable[Path], data_root: Path | None = None) -> list[Kept]:
    """Every finished run below the folders; its model is tested unless it was before.

    Args:
        folders: What `transform run` wrote.
        data_root: The folder of the data sets.

    Raises:
        StorageError: A run is missing or damaged, was finished anew after it had been tested, or
            its model scores something else than it noted.
        ArgumentError: The data have no test part.
    """
    test = _TestData(data_root)
    return [_kept(folder, result, test) for folder, result in read_results(folders).items()]


def _kept(folder: Path, result: Mapping[str, Any], test: _TestData) -> Kept:
    file, cell = folder / KEPT, result["cell"]
    if "macs" not in result:
        raise StorageError("the run has no count of its MACs", where=str(folder), remedy=_RUN_AGAIN)
    known = _read(file, result["identity"]) if file.is_file() else None
    found = known or _evaluated(folder, result, test)
    _check_same(found, result, file)
    if known is None:
        write_file(file, json_bytes(found))
    return Kept(
        cell["label"],
        cell["budget"],
        cell["seed"],
        TopK(found["loss"], tuple(found["top"][str(rank)] for rank in RANKS), found["samples"]),
        found["share"],
        (result["params"]["before"], result["params"]["after"]),
        (result["macs"]["before"], result["macs"]["after"]),
        found["bytes"],
    )


def _read(file: Path, identity: str) -> dict[str, Any]:
    found = read_json(file)
    wanted = {"format": FORMAT, "version": VERSION, "identity": identity}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise StorageError(
                f"its {key} is {found.get(key)!r}, that of the run {value!r}",
                where=str(file),
                remedy=_TEST_AGAIN,
            )
    top = found.get("top", {})
    missing = [name for name in _NUMBERS if name not in found]
    missing += [str(rank) for rank in RANKS if str(rank) not in top]
    if missing:
        raise StorageError(f"{missing[0]!r} is missing", where=str(file), remedy=_TEST_AGAIN)
    return found


def _check_same(found: Mapping[str, Any], result: Mapping[str, Any], file: Path) -> None:
    """A run of the same name may have been finished anew, or tested on other data."""
    top, noted = found["top"][str(RANKS[0])], result["metrics"]["test"]["after"]
    if noted is None or abs(noted - top) > _TOLERANCE:
        remedy = "Name the data that the run was made with by --data-root"
        raise StorageError(
            f"the saved model scores {top:.4f} on the test data, the run noted {noted}",
            where=str(file.parent),
            remedy=f"{remedy}; remove {file.name} if the run was finished again after it.",
        )


def _evaluated(folder: Path, result: Mapping[str, Any], test: _TestData) -> dict[str, Any]:
    file = folder / MODEL
    if not file.is_file():
        raise StorageError("the run has no ONNX file", where=str(folder), remedy=_RUN_AGAIN)
    original = load_model(result["recipe"]["model"], seed=result["cell"]["seed"])
    model = load(file.parent, original).model
    scores = top_k(model, test(result["recipe"]["data"]))
    return {
        "format": FORMAT,
        "version": VERSION,
        "identity": result["identity"],
        "loss": scores.loss,
        "top": {str(rank): top for rank, top in zip(RANKS, scores.top, strict=True)},
        "samples": scores.samples,
        "share": kept_share(original, model),
        "bytes": file.stat().st_size,
    }
