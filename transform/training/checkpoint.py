"""Checkpoints of a run: safetensors and JSON, the last complete one wins."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from energy_model.errors import StorageError
from passes.storage.atomic import json_bytes, read_json, storage_errors, write_folder
from passes.storage.tensors import check_sha256, load_tensors, save_tensors, sha256_file
from passes.storage.tree import pack_tree, unpack_tree

_NAME = re.compile(r"epoch-(\d{6})")
_STATE, _TENSORS = "state.json", "tensors.safetensors"


def _digest(packed: Any) -> str:
    return hashlib.sha256(json.dumps(packed, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run, in a folder.

    Args:
        folder: Where they lie; made on the first save.
        run: Identity of the run. A folder of another run is refused.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self.run = run

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write the state after an epoch in one step, then drop the older ones."""
        tensors: dict[str, Tensor] = {}
        packed = pack_tree(state, tensors, "t")
        older = self._complete()
        with tempfile.TemporaryDirectory(prefix="transform-checkpoint-") as scratch:
            draft = Path(scratch) / _TENSORS
            save_tensors(draft, {name: t.clone() for name, t in tensors.items()})
            description = {"run": self.run, "sha256": sha256_file(draft), "state": packed}
            description["digest"] = _digest(packed)
            files = {_TENSORS: draft.read_bytes(), _STATE: json_bytes(description)}
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_folder(self.folder / f"epoch-{epoch:06d}", files)
        for path in older.values():
            shutil.rmtree(path)

    def load(self) -> dict[str, Any] | None:
        """The state of the last complete checkpoint; `None` when there is none.

        Raises:
            StorageError: It is damaged, or belongs to another run.
        """
        complete = self._complete()
        if not complete:
            return None
        path = complete[max(complete)]
        description = read_json(path / _STATE)
        if description.get("run") != self.run:
            raise StorageError(
                "the folder holds checkpoints of another run (model, budget, method, training or "
                "seed differ)",
                where=str(self.folder),
                remedy="Choose another folder, or remove this one.",
            )
        if description.get("digest") != _digest(description.get("state")):
            raise StorageError(
                "the checkpoint does not match its digest",
                where=str(path),
                remedy="Remove this folder; the run starts anew.",
            )
        check_sha256(path / _TENSORS, str(description.get("sha256")))
        state: dict[str, Any] = unpack_tree(description["state"], load_tensors(path / _TENSORS))
        return state

    def drop(self) -> None:
        """Remove them, and leave what else is known of the run."""
        for path in self._complete().values():
            shutil.rmtree(path)

    def clear(self) -> None:
        """Remove them all: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _complete(self) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match[1]): path for match, path in matches if match}
