"""Data as the command line names it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

KINDS = (
    "NAME[:key=value,...] with a name out of mnist, fashion, kmnist, cifar10, cifar10-jpeg, "
    "cifar100, flowers102, digits, imagefolder:ROOT, fake:SHAPE:CLASSES (e.g. "
    "mnist:size=32, cifar10:augment=crop+flip, fake:1x28x28:10), or package.module:callable"
)
# What needs no files is small: an epoch of a few batches would hardly train.
_BATCH_SIZES = {"digits": 64, "fake": 64}
_BATCH_SIZE = 128


class Data(NamedTuple):
    """Three iterables of batches; `valid` and `test` may be absent."""

    train: Iterable[Any]
    valid: Iterable[Any] | None
    test: Iterable[Any] | None


def load_data(spec: str, seed: int = 0, root: Path | None = None) -> Data:
    """Data by its name.

    Args:
        spec: `NAME[:key=value,...]` or `package.module:callable`, see `bench.zoo.data.parse_spec`.
            Batches hold 64 examples of `digits` and `fake`, else 128, unless `batch=` is given.
        seed: Seed of the order of the training examples, and of fake data. The split is fixed.
        root: Folder of the data sets; `None` takes `TRANSFORM_DATA`.

    Raises:
        ArgumentError: An unknown name, or a callable that does not return three iterables.
        StorageError: A file is missing; says which, and how to get it.
    """
    from bench.zoo.data import load_data as load_splits

    size = _BATCH_SIZES.get(spec.partition(":")[0], _BATCH_SIZE)
    splits = load_splits(spec, root=root, seed=seed, batch_size=size)
    return Data(splits.train, splits.valid, splits.test)
