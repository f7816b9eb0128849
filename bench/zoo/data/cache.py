"""Decoded images, kept so that they are decoded once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import StorageError
from passes.storage.atomic import write_file


def cache_folder() -> Path:
    """The environment variable `TRANSFORM_CACHE`, or `~/.cache/transform`; it may not exist."""
    named = os.environ.get("TRANSFORM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "transform"


def cached_array(
    name: str, shape: tuple[int, ...], make: Callable[[], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """An array from the cache, or made and put there.

    A damaged file is made anew. A cache that cannot be written is a warning: nothing is lost but
    time.

    Args:
        name: A name that changes whenever the content would, e.g. with a hash of what it was made
            from.
        shape: What the array must look like.
        make: Makes it, uint8.
    """
    path = cache_folder() / f"{name}.npy"
    found = _read(path, shape)
    if found is not None:
        return found
    array = make()
    try:
        write_file(path, lambda target: _save(target, array))
    except StorageError as error:
        warnings.warn(f"decoded images are not kept for the next time: {error}", stacklevel=2)
    return array


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    try:
        array: NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _save(path: Path, array: NDArray[np.uint8]) -> None:
    with path.open("xb") as file:
        np.save(file, array, allow_pickle=False)
