"""Data as a recipe names it: `NAME[:ARGUMENT][:key=value,...]`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bench.zoo.data.augment import Augmentation, parse_augmentations
from bench.zoo.data.normalize import NORMALIZATIONS
from energy_model.errors import ArgumentError

WHERE = "data"
RESIZINGS = ("bilinear", "pad")
_MAX_DIGITS = 9

# What every name with 8-bit images of one size understands.
IMAGE_KEYS = ("size", "resize", "augment", "normalize", "subset", "batch", "split")
_FILE_KEYS = ("size", "augment", "normalize", "subset", "batch", "split", "workers")
_PLAIN_KEYS = ("subset", "batch", "split")

# The keys that each name understands.
NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mnist": (*IMAGE_KEYS, "ci"),
        "fashion": IMAGE_KEYS,
        "kmnist": IMAGE_KEYS,
        "cifar10": IMAGE_KEYS,
        "cifar10-jpeg": (*IMAGE_KEYS, "ci"),
        "cifar100": IMAGE_KEYS,
        "flowers102": (*_FILE_KEYS, "swap"),
        "digits": _PLAIN_KEYS,
        "imagefolder": _FILE_KEYS,
        "fake": ("batch",),
    }
)
_ARGUMENTS = MappingProxyType({"imagefolder": "ROOT", "fake": "SHAPE:CLASSES"})


@dataclass(frozen=True, slots=True)
class DataSpec:
    """One data set and what is done to it.

    Attributes:
        name: One of `NAMES`, or `""` for the user's own `package.module:callable`.
        argument: `ROOT` of an image folder, `SHAPE:CLASSES` of fake data, or the user's callable.
        size: Side of the square images in pixels; None keeps them (224 for files of any size).
        resize: `bilinear` as Pillow does it, or `pad` with black.
        augment: What is done to the training images, by chance.
        normalize: A key of `NORMALIZATIONS`; None takes that of the data set.
        subset: Number of images for train and valid together, equally many of each class.
        batch: Batch size; None takes the caller's.
        split: Seed that chooses `valid` and the subset. It is not the seed of a run, so that all
            runs, and the base model that they start from, share one split.
        ci: Take the small committed part of the data set, in the folder `ci` of the root.
        workers: Threads that decode image files.
        swap: Train on the official test part, which is the largest, and test on the training part,
            as some papers do.
    """

    name: str
    argument: str = ""
    size: int | None = None
    resize: str = "bilinear"
    augment: tuple[Augmentation, ...] = field(default=())
    normalize: str | None = None
    subset: int | None = None
    batch: int | None = None
    split: int = 0
    ci: bool = False
    workers: int = 2
    swap: bool = False


def parse_spec(spec: str) -> DataSpec:
    """Read a data specification, e.g. `mnist:size=32` or `cifar10:augment=crop+flip,batch=64`.

    Args:
        spec: `NAME[:key=value,...]`, `imagefolder:ROOT[:key=value,...]`,
            `fake:SHAPE:CLASSES[:key=value,...]` or `package.module:callable`.

    Raises:
        ArgumentError: Unknown name or key, or a bad value; says which there are.
    """
    name, _, rest = spec.partition(":")
    if name not in NAMES:
        if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", spec):
            return DataSpec(name="", argument=spec)
        raise ArgumentError(f"unknown data {spec!r}", where=WHERE, remedy=_known_names(name))
    argument, pairs = _split_options(rest)
    if bool(argument) != (name in _ARGUMENTS):
        form = f"{name}:{_ARGUMENTS[name]}" if name in _ARGUMENTS else name
        raise ArgumentError(
            f"{spec!r} is not {form}[:key=value,...]",
            where=WHERE,
            remedy=f"{_keys_of(name)} A value holds no colon and no comma.",
        )
    return DataSpec(name=name, argument=argument, **_options(name, pairs))


def _split_options(rest: str) -> tuple[str, list[str]]:
    """The argument before the options, and the `key=value` pairs."""
    head, _, tail = rest.rpartition(":")
    if "=" in tail:
        return head, tail.split(",")
    return rest, []


def _options(name: str, pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in NAMES[name]:
            raise ArgumentError(
                f"{name!r} has no option {key!r}", where=WHERE, remedy=_keys_of(name)
            )
        if key in found:
            raise ArgumentError(f"{key!r} stands twice", where=WHERE, remedy="Keep one of them.")
        found[key] = _READERS[key](key, text)
    return found


def _known_names(name: str) -> str:
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    names = [f"{known}:{_ARGUMENTS[known]}" if known in _ARGUMENTS else known for known in NAMES]
    return f"{hint}There are: {', '.join(names)}, package.module:callable."


def _keys_of(name: str) -> str:
    return f"Its options are: {', '.join(NAMES[name])}."


def _bad(key: str, text: str, remedy: str) -> ArgumentError:
    return ArgumentError(f"{key}={text} is not understood", where=WHERE, remedy=remedy)


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or len(text) > _MAX_DIGITS or int(text) < least:
        raise _bad(key, text, f"Write a whole number from {least}.")
    return int(text)


def _positive(key: str, text: str) -> int:
    return _whole(key, text, 1)


def _seed(key: str, text: str) -> int:
    return _whole(key, text, 0)


def _switch(key: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise _bad(key, text, "Write 0 or 1.")
    return text == "1"


def _one_of(allowed: Mapping[str, Any] | tuple[str, ...]) -> Callable[[str, str], str]:
    def read(key: str, text: str) -> str:
        if text not in allowed:
            raise _bad(key, text, f"One of: {', '.join(allowed)}.")
        return text

    return read


def _augmentations(_: str, text: str) -> tuple[Augmentation, ...]:
    return parse_augmentations(text)


_READERS: Mapping[str, Callable[[str, str], Any]] = MappingProxyType(
    {
        "size": _positive,
        "resize": _one_of(RESIZINGS),
        "augment": _augmentations,
        "normalize": _one_of(NORMALIZATIONS),
        "subset": _positive,
        "batch": _positive,
        "split": _seed,
        "ci": _switch,
        "workers": _positive,
        "swap": _switch,
    }
)
