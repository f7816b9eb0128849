"""`load_data`: from the name of a data set to batches for training, validation and testing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.zoo.data.cifar import load_cifar, load_cifar_jpeg
from bench.zoo.data.folders import load_flowers, load_folder
from bench.zoo.data.loader import Batches, Examples, ShuffledBatches
from bench.zoo.data.mnist import load_mnist
from bench.zoo.data.normalize import Normalization, normalization
from bench.zoo.data.plain import load_digits, load_fake
from bench.zoo.data.source import Labelled, Source
from bench.zoo.data.spec import NAMES, DataSpec, parse_spec
from bench.zoo.data.split import Rows, balanced_subset, stratified_split
from bench.zoo.data.user import load_user
from bench.zoo.data_root import data_root
from energy_model.errors import ArgumentError

_FROM_FILES = {
    "mnist": load_mnist,
    "fashion": load_mnist,
    "kmnist": load_mnist,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "cifar10-jpeg": load_cifar_jpeg,
    "flowers102": load_flowers,
    "imagefolder": load_folder,
}


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Batches for the three uses of data; `valid` never shares an image with `test`.

    Attributes:
        train: Batches `(inputs, targets)`, in a new order at every iteration. Those of a named
            data set are `ShuffledBatches`, with `state_dict()`.
        valid: Batches in a fixed order, for every choice that is made; None if the user has none.
        test: Batches in a fixed order, for the last number only; None if the user has none.
        classes: Number of classes; None for the user's own data.
        input_shape: Shape of one input; None for the user's own data.
        description: One line: counts, shape, and what is done to the images.
    """

    train: Iterable[Any]
    valid: Iterable[Any] | None
    test: Iterable[Any] | None
    classes: int | None
    input_shape: tuple[int, ...] | None
    description: str


def load_data(
    spec: str, *, root: Path | None = None, seed: int = 0, batch_size: int = 128
) -> DataSplits:
    """Load a data set by its name; nothing is ever downloaded.

    `valid` is the official validation set where there is one, and otherwise a stratified tenth of
    the official training set: fixed, whatever `seed` is.

    Args:
        spec: `NAME[:key=value,...]`, see `parse_spec`; e.g. `mnist:size=32`,
            `cifar10:augment=crop+flip`, `fake:3x32x32:10`, `package.module:callable`.
        root: Folder of the data sets; None takes `data_root()`.
        seed: Seed of the order and of the changes of the training images, and of fake data.
        batch_size: Examples in a batch; the option `batch` of the spec wins.

    Raises:
        ArgumentError: Unknown name or option, or a bad value.
        StorageError: A file is missing or damaged; says which, and how to get it.
    """
    parsed = parse_spec(spec)
    if not parsed.name:
        return DataSplits(*load_user(parsed.argument), None, None, f"{parsed.argument}: user's own")
    if seed < 0:
        raise ArgumentError(f"the seed {seed} is negative", where="seed", remedy="Take 0.")
    size = parsed.batch or batch_size
    source = _source(parsed, root or data_root(), size, seed)
    shape = source.train.images.shape
    normalize = None
    if source.normalize is not None:
        normalize = normalization(parsed.normalize or source.normalize, shape[0])
    return _batched(parsed, source, _examples(parsed, source), normalize, size, seed)


def _batched(
    spec: DataSpec,
    source: Source,
    parts: tuple[Examples, Examples, Examples],
    normalize: Normalization | None,
    batch_size: int,
    seed: int,
) -> DataSplits:
    train, valid, test = parts
    return DataSplits(
        ShuffledBatches(train, batch_size, normalize, spec.augment, seed),
        Batches(valid, batch_size, normalize),
        Batches(test, batch_size, normalize),
        source.classes,
        source.train.images.shape,
        _describe(spec, source, [len(part) for part in parts]),
    )


def _source(spec: DataSpec, root: Path, batch_size: int, seed: int) -> Source:
    if spec.name == "digits":
        return load_digits(spec)
    if spec.name == "fake":
        return load_fake(spec, batch_size, seed)
    return _FROM_FILES[spec.name](spec, root)


def _examples(spec: DataSpec, source: Source) -> tuple[Examples, Examples, Examples]:
    valid = source.train if source.valid is None else source.valid
    if source.valid is None:
        rows = stratified_split(source.train.labels, spec.split)
    else:
        rows = np.arange(len(source.train.labels)), np.arange(len(valid.labels))
    if spec.subset is not None:
        rows = _subset(spec, source, rows, spec.subset)
    return (
        _part(source.train, rows[0]),
        _part(valid, rows[1]),
        _part(source.test, np.arange(len(source.test.labels))),
    )


def _subset(
    spec: DataSpec, source: Source, rows: tuple[Rows, Rows], count: int
) -> tuple[Rows, Rows]:
    """Parts of both, so that no image of a larger set's `valid` is ever trained on."""
    if count < 2 * source.classes:
        raise ArgumentError(
            f"subset={count} leaves a class without images",
            where="data",
            remedy=f"Take at least {2 * source.classes}: one of each class to train, one to check.",
        )
    held = max(source.classes, count // 10)
    valid = source.train if source.valid is None else source.valid
    return (
        balanced_subset(source.train.labels, rows[0], count - held, spec.split),
        balanced_subset(valid.labels, rows[1], held, spec.split),
    )


def _part(labelled: Labelled, rows: Rows) -> Examples:
    targets = torch.from_numpy(labelled.labels)
    return Examples(labelled.images, targets, torch.from_numpy(rows))


def _describe(spec: DataSpec, source: Source, counts: list[int]) -> str:
    name = f"{spec.name}:{spec.argument}" if spec.argument else spec.name
    size = "x".join(map(str, source.train.images.shape))
    done = [
        source.note,
        "ci subset" if spec.ci else "",
        f"resized ({spec.resize})" if spec.size and "resize" in NAMES[spec.name] else "",
        f"normalize={spec.normalize or source.normalize}" if source.normalize else "",
        f"augment={'+'.join(map(str, spec.augment))}" if spec.augment else "",
    ]
    counted = "{} train, {} valid, {} test".format(*counts)
    return "; ".join([f"{name}: {counted}, {size}, {source.classes} classes", *filter(None, done)])
