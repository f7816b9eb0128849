"""What a data set gives before it is split, batched and normalised."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.zoo.data.images import Images
from energy_model.errors import CompressionError, StorageError


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images and their classes.

    Attributes:
        images: The pixels.
        labels: Class numbers int64, `(N,)`.
    """

    images: Images
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """The official parts of a data set.

    Attributes:
        train: The official training set.
        test: The official test set.
        classes: Number of classes.
        normalize: Name of the data set's normalisation; None: the inputs are numbers already.
        valid: The official validation set, if there is one; otherwise a part of train becomes it.
        note: What a reader of a result must know about the pixels.
    """

    train: Labelled
    test: Labelled
    classes: int
    normalize: str | None
    valid: Labelled | None = None
    note: str = ""


def torchvision_class(name: str) -> Any:
    """A class of `torchvision.datasets`, imported when a data set needs it.

    Raises:
        CompressionError: torchvision is not installed.
    """
    try:
        return getattr(importlib.import_module("torchvision.datasets"), name)
    except ModuleNotFoundError as error:
        raise CompressionError(
            f"the data set {name} needs {error.name}",
            remedy="Install the torchvision that belongs to your torch, without its dependencies.",
        ) from error


def missing(what: str, where: Path, get: str) -> StorageError:
    """The error for data that are not there.

    Args:
        what: What is missing.
        where: Where it was looked for.
        get: How to get it, a sentence.
    """
    return StorageError(
        f"{what} is not there",
        where=str(where),
        remedy=f"{get} Or name another folder of data by --data-root or TRANSFORM_DATA.",
    )
