"""Data as the command line names it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from energy_model.errors import ArgumentError
from transform.cli.model import parse_shape
from transform.cli.objects import find_object, run_user_code, user_code

KINDS = (
    "digits (scikit-learn's 8x8 digits), fake:SHAPE:CLASSES (e.g. fake:1x28x28:10), "
    "package.module:callable"
)
_BATCH_SIZE = 64
_BATCHES = (4, 2, 2)


class Data(NamedTuple):
    """Three iterables of batches; `valid` and `test` may be absent."""

    train: Iterable[Any]
    valid: Iterable[Any] | None
    test: Iterable[Any] | None


def load_data(spec: str, seed: int = 0) -> Data:
    """Data by its name.

    Args:
        spec: `digits`, `fake:SHAPE:CLASSES` or `package.module:callable`.
        seed: Seed of the split, or of the random data.

    Raises:
        ArgumentError: An unknown name, or a callable that does not return three iterables.
    """
    if spec == "digits":
        from bench.zoo.digits import digits_batches

        return Data(*digits_batches(seed=seed))
    if spec.startswith("fake:"):
        return _fake(spec, seed)
    if ":" not in spec:
        raise ArgumentError(f"unknown data {spec!r}", where="--data", remedy=f"There are: {KINDS}.")
    with user_code():
        found = run_user_code(find_object(spec, "--data"), spec, "--data")
    if not isinstance(found, tuple | list) or len(found) != 3 or found[0] is None:
        held = "no training data" if isinstance(found, tuple | list) else type(found).__name__
        if isinstance(found, tuple | list) and len(found) != 3:
            held = f"{len(found)} values"
        raise ArgumentError(
            f"{spec!r} returns {held}, not (train, valid, test)",
            where="--data",
            remedy="Return three iterables of batches (inputs, targets); valid and test may be "
            "None.",
        )
    return Data(*found)


def _fake(spec: str, seed: int) -> Data:
    _, shape_text, classes = [*spec.split(":", 2), ""][:3]
    if not classes.isdecimal() or int(classes) < 1:
        raise ArgumentError(
            f"{spec!r} is not fake:SHAPE:CLASSES",
            where="--data",
            remedy="Write the shape of one sample and the number of classes: fake:1x28x28:10.",
        )
    shape = parse_shape(shape_text, "--data")
    generator = torch.Generator().manual_seed(seed)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn((_BATCH_SIZE, *shape), generator=generator)
        return inputs, torch.randint(int(classes), (_BATCH_SIZE,), generator=generator)

    train, valid, test = ([batch() for _ in range(count)] for count in _BATCHES)
    return Data(train, valid, test)
