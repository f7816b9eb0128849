"""Data that need no files: scikit-learn's digits, and random numbers."""

from __future__ import annotations

import re

import torch

from bench.zoo.data.images import ArrayImages
from bench.zoo.data.source import Labelled, Source
from bench.zoo.data.spec import DataSpec
from bench.zoo.digits import Batch, digits_batches
from energy_model.errors import ArgumentError

_BATCHES = (4, 2, 2)


def load_digits(spec: DataSpec) -> Source:
    """`digits`: the parts and numbers of `digits_batches`.

    Raises:
        CompressionError: scikit-learn is not installed.
    """
    train, valid, test = (_joined(part) for part in digits_batches(seed=spec.split))
    return Source(train, test, classes=10, normalize=None, valid=valid)


def load_fake(spec: DataSpec, batch_size: int, seed: int) -> Source:
    """`fake:SHAPE:CLASSES`: normal inputs and random classes; 4, 2 and 2 batches.

    Args:
        spec: Its argument is e.g. `1x28x28:10`.
        batch_size: Examples in a batch.
        seed: Seed of the numbers.

    Raises:
        ArgumentError: The argument is malformed.
    """
    match = re.fullmatch(r"(\d{1,6}(?:[x,]\d{1,6})*):(\d{1,6})", spec.argument)
    shape = [int(size) for size in re.split("[x,]", match[1])] if match else []
    classes = int(match[2]) if match else 0
    if classes < 1 or min(shape) < 1:
        raise ArgumentError(
            f"'fake:{spec.argument}' is not fake:SHAPE:CLASSES",
            where="data",
            remedy="Write the shape of one sample and the number of classes: fake:1x28x28:10.",
        )
    generator = torch.Generator().manual_seed(seed)

    def batch() -> Batch:
        inputs = torch.randn((batch_size, *shape), generator=generator)
        return inputs, torch.randint(classes, (batch_size,), generator=generator)

    train, valid, test = (_joined([batch() for _ in range(count)]) for count in _BATCHES)
    return Source(train, test, classes, normalize=None, valid=valid, note="random numbers")


def _joined(batches: list[Batch]) -> Labelled:
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Labelled(ArrayImages(inputs), targets.numpy())
