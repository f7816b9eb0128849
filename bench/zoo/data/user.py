"""The user's own data: `package.module:callable` that returns (train, valid, test)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from energy_model.errors import ArgumentError
from transform.cli.objects import find_object, run_user_code, user_code

_PARTS = ("train", "valid", "test")


def load_user(name: str) -> tuple[Iterable[Any], Iterable[Any] | None, Iterable[Any] | None]:
    """Call the user's function without arguments.

    Args:
        name: `package.module:callable`; it returns three iterables of batches `(inputs, targets)`,
            valid and test may be None.

    Raises:
        ArgumentError: There is no such function, it fails, it returns something else, or one
            object stands for two parts.
    """
    with user_code():
        found = run_user_code(find_object(name, "data"), name, "data")
    if not isinstance(found, tuple | list) or len(found) != len(_PARTS):
        held = f"{len(found)} values" if isinstance(found, tuple | list) else type(found).__name__
        raise ArgumentError(
            f"{name!r} returns {held}, not (train, valid, test)",
            where="data",
            remedy="Return three iterables of batches (inputs, targets); valid and test may be "
            "None.",
        )
    if found[0] is None:
        raise ArgumentError(
            f"{name!r} returns None as train",
            where="data",
            remedy="Return batches (inputs, targets) to train on; only valid and test may be None.",
        )
    for first, second in ((0, 1), (0, 2), (1, 2)):
        if found[first] is not None and found[first] is found[second]:
            raise ArgumentError(
                f"{name!r} returns one object as {_PARTS[first]} and as {_PARTS[second]}",
                where="data",
                remedy="Nothing may be chosen on test data, nor tested on what was trained on: "
                "hold out a part of train, or return None.",
            )
    return found[0], found[1], found[2]
