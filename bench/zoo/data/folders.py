"""Data sets of one file per image: folders of classes, and Flowers-102."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.zoo.data.images import FileImages
from bench.zoo.data.source import Labelled, Source, missing, torchvision_class
from bench.zoo.data.spec import DataSpec
from energy_model.errors import CompressionError, StorageError

_SIZE = 224


def load_folder(spec: DataSpec, root: Path) -> Source:
    """`imagefolder:ROOT`: `ROOT/train/CLASS/*` and `ROOT/test/CLASS/*`, perhaps `ROOT/val`.

    Without `test`, `val` is the test set, as it is for ImageNet, and a part of train the
    validation set.

    Args:
        spec: The folder, relative to the data root or to the current folder, and the size.
        root: The data root.

    Raises:
        StorageError: No such folder, an empty class, or classes that differ.
        CompressionError: torchvision is not installed.
    """
    folder = root / spec.argument
    if not folder.is_dir():
        folder = Path(spec.argument)
    test = next((part for part in ("test", "val", "valid") if (folder / part).is_dir()), "test")
    held = next((part for part in ("val", "valid") if (folder / part).is_dir()), test)
    names, train = _read_folder(folder / "train", spec)
    parts = [train]
    for part in (test, held) if held != test else (test,):
        found, labelled = _read_folder(folder / part, spec)
        if found != names:
            raise StorageError(
                f"its classes are not those of {folder / 'train'}",
                where=str(folder / part),
                remedy=f"Differing: {', '.join(sorted(set(found) ^ set(names))[:5])}.",
            )
        parts.append(labelled)
    valid = parts[2] if len(parts) > 2 else None
    return Source(parts[0], parts[1], classes=len(names), normalize="imagenet", valid=valid)


def _read_folder(folder: Path, spec: DataSpec) -> tuple[list[str], Labelled]:
    image_folder = torchvision_class("ImageFolder")
    try:
        found = image_folder(str(folder))
    except FileNotFoundError as error:
        get = f"Put one folder per class there, each with images ({error})."
        raise missing("a folder of images by class", folder, get) from error
    paths, labels = zip(*found.samples, strict=True)
    return found.classes, _labelled([Path(path) for path in paths], labels, spec)


def load_flowers(spec: DataSpec, root: Path) -> Source:
    """`flowers102` with its official parts of 1,020, 1,020 and 6,149 images; valid is official.

    With the option `swap`, the 6,149 images are trained on, and the first 1,020 are the test set.

    Raises:
        StorageError: The files are missing or damaged.
        CompressionError: torchvision, or scipy, which reads the list of the parts, is not there.
    """
    flowers = torchvision_class("Flowers102")
    parts = []
    for split in ("test", "train", "val") if spec.swap else ("train", "test", "val"):
        try:
            part = flowers(str(root), split=split, download=False)
        except ModuleNotFoundError as error:
            raise CompressionError(
                f"flowers102 needs {error.name}", remedy="Install the extra `demo`."
            ) from error
        except (RuntimeError, OSError) as error:
            get = "`torchvision.datasets.Flowers102(ROOT, download=True)` fetches it."
            raise missing("Flowers-102", root / "flowers-102", get) from error
        # The class has no public list of files, and decoding all images for their labels is slow.
        parts.append(_labelled([Path(file) for file in part._image_files], part._labels, spec))
    note = "train and test swapped" if spec.swap else ""
    return Source(parts[0], parts[1], 102, "imagenet", valid=parts[2], note=note)


def _labelled(paths: Sequence[Path], labels: Sequence[int], spec: DataSpec) -> Labelled:
    images = FileImages(tuple(paths), spec.size or _SIZE, spec.workers)
    return Labelled(images, np.asarray(labels, np.int64))
