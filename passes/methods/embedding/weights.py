"""Weights of candidates, beside the record of their search: safetensors and JSON."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from energy_model.errors import StorageError
from passes.methods.embedding.jobs import TrainingState
from passes.storage.atomic import json_bytes, read_json, storage_errors, write_folder
from passes.storage.tensors import check_sha256, load_tensors, save_tensors, sha256_file
from passes.storage.tree import pack_tree, unpack_tree

_NAME = re.compile(r"([0-9a-f]+)-(\d+)")
_STATE, _TENSORS = "state.json", "tensors.safetensors"


class CandidateWeights:
    """Where training of each candidate stopped, one folder for each candidate and rung.

    Args:
        folder: Where they lie; made on the first save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def save(self, digest: str, rung: int, state: TrainingState) -> None:
        """Write a state; one that a killed run has left for the same rung is replaced.

        Raises:
            StorageError: It holds what cannot be written down, or the disk refuses.
        """
        tensors: dict[str, Tensor] = {}
        packed = pack_tree([dict(state.model), dict(state.optimizer)], tensors, "t")
        path = self._path(digest, rung)
        with tempfile.TemporaryDirectory(prefix="transform-candidate-") as scratch:
            draft = Path(scratch) / _TENSORS
            # Tied weights share their memory, which the file format does not allow.
            save_tensors(draft, {name: tensor.clone() for name, tensor in tensors.items()})
            about = {"epochs": state.epochs, "sha256": sha256_file(draft), "state": packed}
            files = {_TENSORS: draft.read_bytes(), _STATE: json_bytes(about)}
        if path.exists():
            _remove(path)
        write_folder(path, files)

    def load(self, digest: str, rung: int) -> TrainingState:
        """Read a state.

        Raises:
            StorageError: It is missing or damaged.
        """
        path = self._path(digest, rung)
        about = read_json(path / _STATE)
        check_sha256(path / _TENSORS, str(about.get("sha256")))
        try:
            model, optimizer = unpack_tree(about["state"], load_tensors(path / _TENSORS))
            return TrainingState(int(about["epochs"]), model, optimizer)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the weights are damaged: {type(error).__name__}: {error}",
                where=str(path),
                remedy="Remove the folder of the search; it starts anew.",
            ) from error

    def known(self) -> frozenset[tuple[str, int]]:
        """Digest and rung of all that lie here, whole."""
        if not self.folder.is_dir():
            return frozenset()
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return frozenset((match[1], int(match[2])) for match in matches if match)

    def keep(self, needed: Iterable[tuple[str, int]]) -> None:
        """Remove all that are not needed, and what a killed run left half written."""
        if not self.folder.is_dir():
            return
        names = {self._path(digest, rung).name for digest, rung in needed}
        for path in sorted(self.folder.iterdir()):
            if path.name not in names:
                _remove(path)

    def _path(self, digest: str, rung: int) -> Path:
        return self.folder / f"{digest}-{rung}"


def _remove(path: Path) -> None:
    """Under another name first: a kill leaves nothing half removed under this one."""
    hidden = path.with_name(f".{path.name.lstrip('.')}.partial")
    with storage_errors(path):
        if hidden != path:
            shutil.rmtree(hidden, ignore_errors=True)
            path.rename(hidden)
        shutil.rmtree(hidden)
